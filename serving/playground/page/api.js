/** Asks the server: little-endian float32 and JSON, one function for each route. */

export class ApiError extends Error {
  /** @param {number} status 0 where no server answered */
  constructor(status, { reason, message, cure, retry_after_ms }) {
    super(message);
    Object.assign(this, { status, reason, cure, retryAfterMs: retry_after_ms });
  }
}

export async function network(options = {}) {
  return (await ask('api/network', options)).json();
}

export async function weights(options = {}) {
  return new Float32Array(await (await ask('api/weights', options)).arrayBuffer());
}

/**
 * Looks at an image.
 * @param {Uint8Array} image 784 bytes
 * @param {{answer?: 0, version?: number, epoch?: number, off?: Array<{layer: string, map: number}>}} options
 * @returns {Promise<{head: object, values: Float32Array}>}
 */
export async function look(image, { off = [], ...options } = {}) {
  const switchedOff = off.map(({ layer, map }) => `${layer}:${map}`).join();
  const { head, body } = await frame('api/look', { ...options, off: switchedOff || null }, image);
  return { head, values: new Float32Array(body) };
}

/** Has a photograph prepared: {head: {inverted, box}, image}. */
export async function photograph(blob) {
  const { head, body } = await frame('api/photograph', {}, blob);
  return { head, image: new Uint8Array(body) };
}

/** How much each patch of an image counts: {head, values}. */
export async function occlusion(image, options = {}) {
  const { head, body } = await frame('api/occlusion', options, image);
  return { head, values: new Float32Array(body) };
}

/** A frame: the length of its header, the header as JSON, the rest. */
async function frame(path, query, body) {
  const type = body instanceof Blob ? body.type : 'application/octet-stream';
  const answer = await (await ask(path, query, { method: 'POST', headers: { 'Content-Type': type }, body })).arrayBuffer();
  const length = new DataView(answer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(answer, 4, length)));
  return { head, body: answer.slice(4 + length) };
}

async function ask(path, query, options) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  let response;
  try {
    response = await fetch(`${path}?${new URLSearchParams(given)}`, options);
  } catch {
    throw new ApiError(0, { reason: 'NO_ANSWER', message: '', cure: '' });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const told = await response.json().catch(() => ({}));
  return new ApiError(response.status, { reason: `HTTP_${response.status}`, message: response.statusText, cure: '', ...told });
}

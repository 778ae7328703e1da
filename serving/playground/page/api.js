/** Asks the server: little-endian float32 and JSON. All throw ApiError. */

export class ApiError extends Error {
  /** `status` is 0 where no server answered; `told` is {reason, message, cure, retry_after_ms}. */
  constructor(status, { message, ...told }) {
    const { reason, cure = '' } = told; // the server's message has both
    super(message.replace(`${reason}: `, '').replace(` (${cure})`, ''));
    Object.assign(this, { status, cure, ...told });
  }
}

export async function network(options) {
  return (await ask('api/network', options)).json();
}

export async function weights(options) {
  return new Float32Array(await (await ask('api/weights', options)).arrayBuffer());
}

/** Looks at an image, 784 bytes: {head, values}. Options are {answer: 0, version, epoch, off: [{layer, map}]}. */
export function look(image, { off = [], ...options }) {
  return frame('api/look', { ...options, off: writeOff(off) }, image);
}

/** Writes maps that are switched off, as the server and links have them; null for none. */
export function writeOff(off) {
  return off.map(({ layer, map }) => `${layer}:${map}`).join() || null;
}

/** Has a photograph prepared: {head: {inverted, box}, values}, an image. */
export function photograph(blob) {
  return frame('api/photograph', {}, blob, Uint8Array);
}

/** Asks for a frame: the length of its header, the header as JSON, then numbers. */
export async function frame(path, query, body, Numbers = Float32Array) {
  const type = body instanceof Blob ? body.type : 'application/octet-stream';
  const answer = await (await ask(path, query, { method: 'POST', headers: { 'Content-Type': type }, body })).arrayBuffer();
  const length = new DataView(answer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(answer, 4, length)));
  return { head, values: new Numbers(answer, 4 + length) };
}

async function ask(path, query, options) {
  const given = Object.entries(query).filter(([, value]) => value !== null);
  const response = await fetch(`${path}?${new URLSearchParams(given)}`, options).catch(() => { throw new ApiError(0, { reason: 'NO_ANSWER', message: '' }); });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new ApiError(response.status, { reason: `HTTP_${response.status}`, message: response.statusText, ...told });
}

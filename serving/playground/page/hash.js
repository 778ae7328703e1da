/** Writes what is chosen into the URL's hash, and reads it back: a picture can be sent as a link. */

import { HOME } from './camera.js';

const LANGUAGES = ['en', 'zh'], THEMES = ['system', 'light', 'dark'], VIEWS = ['3d', 'flat'];
const CAMERA = Object.keys(HOME);

/** For each choice: to text (null leaves it out), and from text (undefined: no such value). */
const CODES = {
  image: { // g94, or p and 784 bytes in base64url
    write: (image, { source }) => (source.kind === 'garment' ? `g${source.index}` : image && `p${toBase64(image)}`),
    read: readImage,
  },
  cell: { write: (cell) => cell && `${cell.layer}:${cell.map},${cell.y},${cell.x}`, read: readCell },
  view: { read: oneOf(VIEWS) },
  minus: { write: (minus) => (minus ? '1' : null), read: (text) => ({ minus: text === '1' }) },
  tab: { read: (text) => ({ tab: text }) },
  lang: { read: oneOf(LANGUAGES) },
  theme: { read: oneOf(THEMES) },
  camera: { write: (camera) => CAMERA.map((key) => +camera[key].toFixed(3)).join(), read: readCamera },
  version: { read: readNumber },
  epoch: { read: readNumber },
  off: { write: (off) => off.map(({ layer, map }) => `${layer}:${map}`).join() || null, read: readOff },
  tour: { read: readNumber },
};

/** The hash of a state: only what differs from the choices at first, and the image. */
export function writeHash(state, choices) {
  const pairs = [];
  for (const [key, { write = (value) => value }] of Object.entries(CODES)) {
    if (key !== 'image' && Object.is(state[key], choices[key])) continue;
    const text = write(state[key], state);
    if (text !== null && text !== undefined && text !== '') pairs.push(`${key}=${text}`);
  }
  return `#${pairs.join('&')}`;
}

/** What a hash says, as a patch of the state; what it says wrongly is left out. */
export function readHash(hash) {
  const patch = {};
  for (const [key, text] of new URLSearchParams(hash.slice(1))) Object.assign(patch, CODES[key]?.read(text, key));
  return patch;
}

function oneOf(values) {
  return (text, key) => (values.includes(text) ? { [key]: text } : {});
}

function readNumber(text, key) {
  return /^\d{1,6}$/.test(text) ? { [key]: Number(text) } : {};
}

function readImage(text) {
  if (/^g\d{1,2}$/.test(text)) return { source: { kind: 'garment', index: Number(text.slice(1)) } };
  if (!/^p[\w-]{1046}$/.test(text)) return {};
  return { image: fromBase64(text.slice(1)), source: { kind: 'link' } };
}

function readCell(text) {
  const [, layer, ...place] = text.match(/^([\w.]+):(\d{1,3}),(\d{1,2}),(\d{1,2})$/) ?? [];
  return layer ? { cell: { layer, map: Number(place[0]), y: Number(place[1]), x: Number(place[2]) } } : {};
}

function readCamera(text) {
  const numbers = text.split(',').map(Number);
  if (numbers.length !== CAMERA.length || !numbers.every(Number.isFinite) || numbers[2] <= 0) return {};
  return { camera: Object.fromEntries(CAMERA.map((key, i) => [key, numbers[i]])) };
}

function readOff(text) {
  return { off: [...text.matchAll(/([\w.]+):(\d{1,3})/g)].map(([, layer, map]) => ({ layer, map: Number(map) })) };
}

function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

function fromBase64(text) {
  return Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), (c) => c.charCodeAt(0));
}

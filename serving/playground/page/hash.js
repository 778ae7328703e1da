/** Writes what is chosen into the URL's hash, and reads it back: a picture can be sent as a link. */

import { writeOff } from './api.js';
import { HOME } from './camera.js';
import { isInside } from './layout.js';

const CAMERA = Object.keys(HOME);
const ALWAYS = ['image', 'view', 'lang']; // the last two depend on the device at first

/** For each choice: to text (null leaves it out), and from text, as a patch of the state (undefined: no such value). */
const CODES = {
  image: { write: (image, { source }) => (source.kind === 'garment' ? `g${source.index}` : image && `p${toBase64(image)}`), read: readImage },
  cell: { write: (cell) => cell && `${cell.layer}:${cell.map},${cell.y},${cell.x}`, read: readCell },
  view: { read: oneOf('3d', 'flat') },
  minus: { write: (minus) => (minus ? '1' : null), read: (text) => ({ minus: text === '1' }) },
  tab: { read: (tab) => ({ tab }) },
  lang: { read: oneOf('en', 'zh') },
  theme: { read: oneOf('system', 'light', 'dark') },
  camera: { write: (camera) => CAMERA.map((key) => +camera[key].toFixed(3)).join(), read: readCamera },
  version: { read: readNumber },
  epoch: { read: readNumber },
  off: { write: writeOff, read: (text) => ({ off: [...text.matchAll(/([\w.]+):(\d{1,3})/g)].map(([, layer, map]) => ({ layer, map: Number(map) })) }) },
  compare: { read: (text) => (/^(served|\d{1,6})$/.test(text) ? { compare: text } : undefined) },
  tour: { read: readNumber },
};

/** The hash of a state: what differs from the choices at first. The image is g94, or p and 784 bytes in base64url. */
export function writeHash(state, choices) {
  const isChosen = ([key]) => ALWAYS.includes(key) || !Object.is(state[key], choices[key]);
  const pairs = Object.entries(CODES).filter(isChosen).map(([key, { write = (value) => value }]) => [key, write(state[key], state)]);
  return `#${pairs.filter(([, text]) => text !== null && text !== '').map((pair) => pair.join('=')).join('&')}`;
}

/** What a hash says, as a patch of the state; what is wrong, or not in the network if that is known, is left out. */
export function readHash(hash, network) {
  const patch = Object.assign({}, ...Array.from(new URLSearchParams(hash.slice(1)), ([key, text]) => CODES[key]?.read(text, key)));
  if (!network) return patch;
  if (patch.cell && !isInside(network, patch.cell)) delete patch.cell;
  if (patch.off) patch.off = patch.off.filter((place) => isInside(network, place));
  return patch;
}

function oneOf(...values) {
  return (text, key) => (values.includes(text) ? { [key]: text } : undefined);
}

function readNumber(text, key) {
  return /^\d{1,6}$/.test(text) ? { [key]: Number(text) } : undefined;
}

function readImage(text) {
  if (/^g\d{1,2}$/.test(text)) return { source: { kind: 'garment', index: Number(text.slice(1)) } };
  return /^p[\w-]{1046}$/.test(text) ? { image: fromBase64(text.slice(1)), source: { kind: 'link' } } : undefined;
}

function readCell(text) {
  const [, layer, ...place] = text.match(/^([\w.]+):(\d{1,3}),(\d{1,2}),(\d{1,2})$/) ?? [], [map, y, x] = place.map(Number);
  return layer && { cell: { layer, map, y, x } };
}

function readCamera(text) {
  const numbers = text.split(',').map(Number);
  if (numbers.length !== CAMERA.length || !numbers.every(Number.isFinite) || numbers[2] <= 0) return undefined;
  return { camera: Object.fromEntries(CAMERA.map((key, i) => [key, numbers[i]])) };
}

function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

function fromBase64(text) {
  return Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), (c) => c.charCodeAt(0));
}

/**
 * Turns a drawing (light on black, size x size) into what Fashion-MNIST's makers would have made of the garment:
 * 28 x 28, cloth filled, its box as large as the image and in the middle. Mass is not centred: theirs is not.
 */

import { closing, gapOf, grow, hasInside, linesOf, outside, square } from './outline.js';

const CLOTH = 200; // brightness of cloth
const SEAM = 120; // brightness of lines on it: 0.6 of the cloth's
const PARED = 1; // lines are made thinner by this on both sides: a pen is broader than a seam
const SIDE = 28;

/**
 * Returns the drawing as an image, Uint8Array(784): filled and centred, or if not `isFilled` the whole pad as it is.
 * `gap`: see gapOf; found when it is read, so read it once the pen is up.
 */
export function prepare(ink, isFilled) {
  const size = Math.sqrt(ink.length);
  const image = isFilled ? centre(fill(ink, size), size) : shrink(ink, size);
  return {
    image,
    get gap() {
      return isFilled ? gapOf(ink, size) : null;
    },
  };
}

function shrink(ink, size) {
  const image = new Uint8Array(SIDE * SIDE);
  average(ink, size, { top: 0, left: 0, height: size, width: size }, SIDE, SIDE, image);
  return image;
}

function fill(ink, size) {
  const lines = linesOf(ink);
  const around = outside(closing(lines, size), size);
  if (!hasInside(lines, around, size)) return ink.map((value) => (value * CLOTH) / 255);
  const beyond = square(around, size, PARED, false);
  const seams = square(lines, size, PARED, true);
  return seams.map((seam, i) => (beyond[i] ? 0 : seam ? SEAM : CLOTH));
}

/** Moves the drawing's box, its longer side made 28, to the middle. */
function centre(pixels, size) {
  const image = new Uint8Array(SIDE * SIDE);
  const box = { left: size, right: 0, top: size, bottom: 0 };
  for (let i = 0; i < size * size; i++) if (pixels[i] > 12) grow(box, i % size, Math.floor(i / size));
  if (!box.right) return image;
  const height = box.bottom - box.top;
  const width = box.right - box.left;
  const rows = Math.max(1, Math.round((height * SIDE) / Math.max(height, width)));
  const columns = Math.max(1, Math.round((width * SIDE) / Math.max(height, width)));
  const first = ((SIDE - rows) >> 1) * SIDE + ((SIDE - columns) >> 1);
  average(pixels, size, { ...box, height, width }, rows, columns, image.subarray(first));
  return image;
}

/** Writes the areas' means, rows x columns of them, into lines of 28: first along x, then along y. */
function average(pixels, size, { top, left, height, width }, rows, columns, image) {
  const across = shares(left, width, columns);
  const lines = new Float64Array(height * columns);
  for (let y = 0; y < height; y++) {
    for (let c = 0; c < columns; c++) lines[y * columns + c] = mean(across[c], pixels, (top + y) * size, 1);
  }
  const down = shares(0, height, rows);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) image[r * SIDE + c] = Math.round(mean(down[r], lines, c, columns));
  }
}

function mean({ first, weights }, pixels, start, step) {
  let sum = 0;
  for (let k = 0; k < weights.length; k++) sum += weights[k] * pixels[start + (first + k) * step];
  return sum;
}

/** Returns for each of `parts` equal parts the first pixel that it covers, and its and the next ones' weights. */
function shares(start, length, parts) {
  const each = length / parts;
  return Array.from({ length: parts }, (_, part) => {
    const from = start + part * each;
    const first = Math.floor(from);
    const weights = [];
    for (let i = first; i < from + each - 1e-9; i++) weights.push((Math.min(from + each, i + 1) - Math.max(from, i)) / each);
    return { first, weights };
  });
}

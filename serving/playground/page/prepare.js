/**
 * Turns a drawing (light on black, size x size) into what Fashion-MNIST's makers would have made of the garment:
 * 28 x 28, cloth filled, its box as large as the image and in the middle. Mass is not centred: theirs is not.
 */

import { closing, grow, hasInside, linesOf, newBox, outside, square } from './outline.js';

const CLOTH = 200; // brightness of cloth
const SEAM = 120; // brightness of lines on it: 0.6 of the cloth's
const PARED = 1; // lines are made thinner by this on both sides: a pen is broader than a seam
const SIDE = 28;

/** Returns the drawing as an image, Uint8Array(784): filled and centred, or if not `isFilled` the whole pad as it is. */
export function prepare(ink, isFilled) {
  const size = Math.sqrt(ink.length);
  return isFilled ? centre(fill(ink, size), size) : average(ink, size, { top: 0, left: 0, height: size, width: size }, SIDE, SIDE);
}

function fill(ink, size) {
  const lines = linesOf(ink), around = outside(closing(lines, size), size);
  if (!hasInside(lines, around)) return ink.map((value) => (value * CLOTH) / 255);
  const beyond = square(around, size, PARED, false), seams = square(lines, size, PARED, true);
  return seams.map((seam, i) => (beyond[i] ? 0 : seam ? SEAM : CLOTH));
}

/** Moves the drawing's box, its longer side made 28, to the middle. */
function centre(pixels, size) {
  const box = newBox();
  pixels.forEach((value, i) => value > 12 && grow(box, i, size));
  if (!box.right) return new Uint8Array(SIDE * SIDE);
  const height = box.bottom - box.top, width = box.right - box.left;
  const [rows, columns] = [height, width].map((side) => Math.max(1, Math.round((side * SIDE) / Math.max(height, width))));
  return average(pixels, size, { ...box, height, width }, rows, columns);
}

/** Puts the means of an area's parts, rows x columns, in the middle of an image: along x, then y. */
function average(pixels, size, { top, left, height, width }, rows, columns) {
  const image = new Uint8Array(SIDE * SIDE), lines = new Float64Array(height * columns);
  const first = ((SIDE - rows) >> 1) * SIDE + ((SIDE - columns) >> 1);
  const across = shares(left, width, columns), down = shares(0, height, rows);
  for (let y = 0; y < height; y++) {
    for (let c = 0; c < columns; c++) lines[y * columns + c] = mean(across[c], pixels, (top + y) * size, 1);
  }
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) image[first + r * SIDE + c] = Math.round(mean(down[r], lines, c, columns));
  }
  return image;
}

function mean({ first, weights }, pixels, start, step) {
  return weights.reduce((sum, weight, k) => sum + weight * pixels[start + (first + k) * step], 0);
}

/** Returns for each of `parts` equal parts the first pixel that it covers, and its and the next ones' weights. */
function shares(start, length, parts) {
  const each = length / parts;
  return Array.from({ length: parts }, (_, part) => {
    const from = start + part * each, first = Math.floor(from), weights = [];
    for (let i = first; i < from + each - 1e-9; i++) weights.push((Math.min(from + each, i + 1) - Math.max(from, i)) / each);
    return { first, weights };
  });
}

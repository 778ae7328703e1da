/** Finds what the lines of a drawing enclose, and where an outline is open. Pixels are 0 or 1, size x size of them. */

const LINE = 60; // ink above this is a line
const CLOSED = 3; // gaps of up to twice this are closed, in pixels of 112
const SOLID = 5; // broad strokes are left where so much is taken off all round
const WIDER = [5, 8, 12, 16, 20, 28]; // closings that are tried to find a gap

/**
 * Returns where an outline is open, {x, y, width} in the pad's pixels; null if it is closed or the shape is painted.
 * A gap that is as wide as the garment is not found: x, y and width are null.
 */
export function gapOf(ink) {
  const size = Math.sqrt(ink.length), lines = linesOf(ink), shut = closing(lines, size);
  const isPainted = square(lines, size, SOLID, true).includes(1);
  if (!lines.includes(1) || isPainted || hasInside(lines, outside(shut, size))) return null;
  for (const radius of WIDER) {
    const wider = closing(lines, size, radius), around = outside(wider, size);
    const found = hasInside(lines, around) && bridge(shut, wider, around, size);
    if (found) return found;
  }
  return { x: null, y: null, width: null };
}

/** Returns which pixels of the ink are lines. */
export function linesOf(ink) {
  return ink.map((value) => (value > LINE ? 1 : 0));
}

/** Tells whether the lines enclose something: else the shape was painted, or is not closed. */
export function hasInside(lines, around) {
  let body = 0, inner = 0;
  lines.forEach((line, i) => {
    if (around[i]) return;
    body++;
    if (!line) inner++;
  });
  return inner > 0 && inner >= 0.15 * body;
}

/** Closes gaps of up to twice the radius. */
export function closing(lines, size, radius = CLOSED) {
  return square(square(lines, size, radius, false), size, radius, true);
}

/** Returns for each pixel whether any (or every) pixel of the square around it is set. */
export function square(pixels, size, radius, isEvery) {
  return along(along(pixels, size, radius, isEvery, 1, size), size, radius, isEvery, size, 1);
}

/** The same in one direction: a running count costs the same for any radius. */
function along(pixels, size, radius, isEvery, step, line) {
  const result = new Uint8Array(size * size);
  for (let start = 0; start < size * line; start += line) {
    let count = 0;
    for (let i = -radius; i < size; i++) {
      const entering = i + radius, leaving = entering - 2 * radius - 1;
      if (entering < size) count += pixels[start + entering * step];
      if (leaving >= 0) count -= pixels[start + leaving * step];
      if (i < 0) continue;
      const all = Math.min(entering, size - 1) - Math.max(leaving, -1);
      result[start + i * step] = isEvery ? +(count === all) : +(count > 0);
    }
  }
  return result;
}

/** Returns what is reached from the border without crossing a line. */
export function outside(lines, size) {
  const reached = new Uint8Array(size * size), stack = [];
  const visit = (i) => {
    if (!lines[i] && !reached[i]) reached[i] = stack.push(i) && 1;
  };
  for (let i = 0; i < size; i++) [i, (size - 1) * size + i, i * size, i * size + size - 1].forEach(visit);
  while (stack.length) eachNeighbour(stack.pop(), size, visit);
  return reached;
}

function eachNeighbour(i, size, visit) {
  const x = i % size;
  if (x > 0) visit(i - 1);
  if (x < size - 1) visit(i + 1);
  if (i >= size) visit(i - size);
  if (i < size * (size - 1)) visit(i + size);
}

/** Returns the middle and the longer side of what the wider closing put between inside and outside. */
function bridge(shut, wider, around, size) {
  const seen = shut.slice();
  for (let i = 0; i < size * size; i++) {
    if (!wider[i] || seen[i]) continue;
    const box = newBox(), stack = [i], sides = new Set();
    seen[i] = 1;
    while (stack.length) {
      const here = stack.pop();
      grow(box, here, size);
      eachNeighbour(here, size, (next) => {
        if (!wider[next]) sides.add(around[next]);
        else if (!seen[next]) seen[next] = stack.push(next) && 1;
      });
    }
    const { left, right, top, bottom } = box;
    if (sides.size === 2) return { x: (left + right) / 2, y: (top + bottom) / 2, width: Math.max(right - left, bottom - top) };
  }
  return null;
}

/** A box that holds nothing yet. */
export function newBox() {
  return { left: Infinity, right: 0, top: Infinity, bottom: 0 };
}

/** Widens the box so that it holds the pixel. */
export function grow(box, i, size) {
  const x = i % size, y = Math.floor(i / size);
  box.left = Math.min(box.left, x);
  box.right = Math.max(box.right, x + 1);
  box.top = Math.min(box.top, y);
  box.bottom = Math.max(box.bottom, y + 1);
}

/** Finds what the lines of a drawing enclose, and where an outline is open. Pixels are 0 or 1, size x size of them. */

const LINE = 60; // ink above this is a line
const CLOSED = 3; // gaps of up to twice this are closed, in pixels of 112

/**
 * Returns where an outline is open, {x, y, width} in the pad's pixels; null if it is closed or the shape is painted.
 * A gap that is as wide as the garment is not found: x, y and width are null.
 */
export function gapOf(ink, size) {
  const lines = linesOf(ink);
  const shut = closing(lines, size);
  const isWhole = hasInside(lines, outside(shut, size), size) || isSolid(lines, size);
  if (isWhole || !lines.includes(1)) return null;
  for (const radius of [5, 8, 12, 16, 20, 28]) {
    const wider = closing(lines, size, radius);
    const around = outside(wider, size);
    const found = hasInside(lines, around, size) && bridge(shut, wider, around, size);
    if (found) return found;
  }
  return { x: null, y: null, width: null };
}

/** Returns which pixels of the ink are lines. */
export function linesOf(ink) {
  return ink.map((value) => (value > LINE ? 1 : 0));
}

/** Tells whether the lines enclose something: else the shape was painted, or is not closed. */
export function hasInside(lines, around, size) {
  let body = 0;
  let inner = 0;
  for (let i = 0; i < size * size; i++) {
    if (around[i]) continue;
    body++;
    if (!lines[i]) inner++;
  }
  return inner > 0 && inner >= 0.15 * body;
}

/** Tells whether it was painted with broad strokes: something is left where a pen's line would be gone. */
function isSolid(lines, size) {
  return square(lines, size, 5, true).includes(1);
}

/** Closes gaps of up to twice the radius. */
export function closing(lines, size, radius = CLOSED) {
  return square(square(lines, size, radius, false), size, radius, true);
}

/** Returns for each pixel whether any (or every) pixel of the square around it is set. */
export function square(pixels, size, radius, isEvery) {
  const rows = along(pixels, size, radius, isEvery, 1, size);
  return along(rows, size, radius, isEvery, size, 1);
}

/** The same in one direction. A running count: its cost does not depend on the radius. */
function along(pixels, size, radius, isEvery, step, line) {
  const result = new Uint8Array(size * size);
  for (let start = 0; start < size * line; start += line) {
    let count = 0;
    for (let i = -radius; i < size; i++) {
      const entering = i + radius;
      const leaving = entering - 2 * radius - 1;
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
  const reached = new Uint8Array(size * size);
  const stack = new Int32Array(size * size);
  let depth = 0;
  const visit = (i) => {
    if (lines[i] || reached[i]) return;
    reached[i] = 1;
    stack[depth++] = i;
  };
  for (let i = 0; i < size; i++) for (const k of [i, (size - 1) * size + i, i * size, i * size + size - 1]) visit(k);
  while (depth) eachNeighbour(stack[--depth], size, visit);
  return reached;
}

function eachNeighbour(i, size, visit) {
  const x = i % size;
  if (x > 0) visit(i - 1);
  if (x < size - 1) visit(i + 1);
  if (i >= size) visit(i - size);
  if (i < size * (size - 1)) visit(i + size);
}

/** Returns the middle and the longer side of what the wider closing put between the inside and what is around. */
function bridge(shut, wider, around, size) {
  const seen = new Uint8Array(size * size);
  for (let i = 0; i < size * size; i++) {
    if (shut[i] || !wider[i] || seen[i]) continue;
    const box = { left: size, right: 0, top: size, bottom: 0, inside: false, outside: false };
    const stack = [i];
    seen[i] = 1;
    while (stack.length) {
      const here = stack.pop();
      grow(box, here % size, Math.floor(here / size));
      eachNeighbour(here, size, (next) => {
        if (!wider[next]) box[around[next] ? 'outside' : 'inside'] = true;
        else if (!shut[next] && !seen[next]) seen[next] = stack.push(next) && 1;
      });
    }
    const { left, right, top, bottom } = box;
    if (box.inside && box.outside) return { x: (left + right) / 2, y: (top + bottom) / 2, width: Math.max(right - left, bottom - top) };
  }
  return null;
}

/** Widens the box so that it holds the pixel. */
export function grow(box, x, y) {
  box.left = Math.min(box.left, x);
  box.right = Math.max(box.right, x + 1);
  box.top = Math.min(box.top, y);
  box.bottom = Math.max(box.bottom, y + 1);
}

/** Shows where a cell comes from: frames and lines, and its field on the input. */

import { clamp } from './dom.js';
import { explain, originOf, weightsOfValues } from './explain.js';
import { cellCorners, cellOf, cornersOf, middleOf, outlineOf, shape3, shelfOf } from './layout.js';

const STRONGEST = 24; // lines of a dense unit
const MANY_MAPS = 8; // more of them are too close for a ring round each

/** Frames and lines: of the pinned cell, of that under the pointer, of what panels point at. */
export function linesOf(layout, state) {
  const { cell, hover, marks } = state, chosen = cell ?? hover, marked = marks.map(({ layer, map }) => ({ map, shelf: shelfOf(layout.shelves, { layer }) }));
  return [
    ...(chosen ? [...ringOf(layout, chosen), ...linksOf(layout, chosen, state.values, weightsOfValues(state))] : []),
    ...marked.flatMap(({ map, shelf }) => frame(outlineOf(shelf.quads[shelf.isVector ? 0 : map]), 2.5)),
    ...[cell, hover].flatMap((place) => (place ? framesOf(layout, place) : [])),
  ];
}

/** Where a cell of a shelf lies in the shelf's first layer, as {map, y, x}; null in a border of zeros. */
export function baseOf(net, shelf, { map, y, x }) {
  for (const index of shelf.layers.slice(1).reverse()) {
    const { kind, padding, padding_mode: mode } = net.layers[index];
    if (kind !== 'pad') continue;
    const [, height, width] = shape3(net.layers[index - 1]), [top, left] = [y - padding[0], x - padding[1]];
    [y, x] = [clamp(top, 0, height - 1), clamp(left, 0, width - 1)];
    if ((y !== top || x !== left) && mode !== 'replicate') return null;
  }
  return { map, y, x };
}

/** The part of the input that can change a cell: [top, left, height, width]. */
function fieldOf({ net, shelves: [input] }, shelf, { y, x }) {
  let [top, left, bottom, right] = [y, x, y, x]; // the last row and column
  for (let index = shelf.shown; index > input.shown; index--) {
    const layer = net.layers[index], [, height, width] = shape3(net.layers[index - 1]), { kind, padding, kernel } = layer;
    if (kind === 'linear') [top, left, bottom, right] = [0, 0, height - 1, width - 1];
    if (kind === 'pad') [top, left, bottom, right] = [top - padding[0], left - padding[1], bottom - padding[0], right - padding[1]];
    if (!kernel) continue;
    [top, left] = originOf(layer, { y: top, x: left });
    [bottom, right] = originOf(layer, { y: bottom, x: right }).map((first, i) => first + kernel[i] - 1);
  }
  [top, left] = [Math.max(0, top), Math.max(0, left)];
  return [top, left, Math.min(input.height, bottom + 1) - top, Math.min(input.width, right + 1) - left];
}

/** The four lines round a block of cells. A line is {from, to, sign, alpha, width}, its colour by its sign. */
function frame(corners, width = 1.5) {
  return corners.map((from, i) => ({ from, to: corners[(i + 1) % 4], alpha: 1, width }));
}

/** Frames of a cell, of its windows one shelf below, and of its field. */
function framesOf(layout, cell) {
  const shelf = shelfOf(layout.shelves, cell), [input] = layout.shelves, frames = [cellCorners(shelf, cell)];
  if (shelf !== input) frames.push(cornersOf(input.quads[0], ...fieldOf(layout, shelf, cell)), ...windowsOf(layout, shelf, cell));
  return frames.flatMap((corners) => frame(corners));
}

function belowOf({ shelves }, shelf) {
  return shelves[shelves.indexOf(shelf) - 1];
}

/** The maps that a convolution's or a pooling's map is computed from. */
function sourcesOf({ kind, base }, below, map) {
  return (kind === 'pool' ? [map] : base.table?.[map])?.map((source) => below.quads[source]) ?? below.quads;
}

/** Corners of the windows of a cell of a convolution or pooling on the maps one shelf below. */
function windowsOf(layout, shelf, cell) {
  const at = baseOf(layout.net, shelf, cell), below = belowOf(layout, shelf), { kernel } = shelf.base;
  if (!at || !kernel || below.isVector) return [];
  return sourcesOf(shelf, below, cell.map).map((quad) => cornersOf(quad, ...originOf(shelf.base, at), ...kernel));
}

/** Lines to a cell from what it was computed from: width by its part in it, colour by its sign. */
function linksOf(layout, cell, values, weights) {
  const { net, shelves } = layout, shelf = shelfOf(shelves, cell), at = baseOf(net, shelf, cell);
  if (shelf === shelves[0] || !at) return [];
  const corners = cellCorners(shelf, cell), windows = windowsOf(layout, shelf, cell);
  if (shelf.kind === 'pool') return windows[0].map((from, i) => ({ from, to: corners[i], alpha: 0.8, width: 1 }));
  if (!weights) return [];
  const { terms } = explain(net, values, weights, shelf.layers[0], at), below = belowOf(layout, shelf);
  const places = windows.length ? terms.map(({ sum }, i) => ({ sum, from: middleOf(windows[i][0], windows[i][1]) })) : unitsOf(below, terms);
  const reach = Math.max(...places.map(({ sum }) => Math.abs(sum))) || 1, to = middleOf(corners[0], corners[2]);
  return places.map(({ from, sum }) => {
    const share = Math.abs(sum) / reach;
    return { from, to, sign: Math.sign(sum), alpha: 0.4 + 0.55 * share, width: 0.6 + 3 * share };
  });
}

/** The inputs of a dense unit with the largest products. */
function unitsOf(below, terms) {
  const strongest = [...terms].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)).slice(0, STRONGEST);
  return strongest.map(({ map, sum }) => {
    const corners = cellCorners(below, cellOf(below, map));
    return { sum, from: middleOf(corners[0], corners[2]) };
  });
}

/** The border that a convolution sees round the maps below: a hatched ring. */
function ringOf(layout, cell) {
  const shelf = shelfOf(layout.shelves, cell), { padding: [down, across] = [0, 0] } = shelf.base;
  if (shelf.kind !== 'conv' || !down) return [];
  const sources = sourcesOf(shelf, belowOf(layout, shelf), cell.map), quads = sources.slice(0, sources.length > MANY_MAPS ? 1 : MANY_MAPS);
  return quads.flatMap((quad) => [
    ...hatchesOf(quad, down, across),
    ...frame(cornersOf(quad, -down, -across, quad.rows + 2 * down, quad.columns + 2 * across), 0.7),
  ]);
}

/** Short diagonals in the ring round a map, one for each cell of its border. */
function hatchesOf(quad, down, across) {
  const hatches = [];
  const add = (y, x) => {
    const [, to, , from] = cornersOf(quad, y, x, down, across);
    hatches.push({ from, to, alpha: 0.4, width: 0.5 });
  };
  for (let x = -across; x < quad.columns + across; x += across) add(-down, x), add(quad.rows, x);
  for (let y = 0; y < quad.rows; y += down) add(y, -across), add(y, quad.columns);
  return hatches;
}

/** Shows where a cell comes from: frames round what it was computed from, lines from there, and its field on the input. */

import { explain, shape3, windowOf } from './explain.js';
import { cornersOf, groupsOf, middleOf, placeOf } from './layout.js';

const STRONGEST = 24; // lines of a dense unit
const MANY_MAPS = 8; // more of them are too close for a ring round each

/** The shelf of a cell, by the name of the shelf's first layer. */
export function shelfOf(layout, cell) {
  return layout.shelves.find((shelf) => shelf.first === cell.layer);
}

/** Whether a network has such a cell, or map: {layer, map}. */
export function isInside(net, { layer, map, y = 0, x = 0 }) {
  const group = groupsOf(net).find(({ first }) => first === layer);
  if (!group) return false;
  const [maps, height, width] = shape3(net.layers[group.layers.at(-1)]);
  return map < maps && y < height && x < width;
}

/** Where a cell of what a shelf shows lies in the shelf's first layer; null in a border of zeros. */
export function baseOf(net, shelf, { y, x }) {
  for (const index of shelf.layers.slice(1).reverse()) {
    const layer = net.layers[index];
    if (layer.kind !== 'pad') continue;
    const [, height, width] = shape3(net.layers[index - 1]);
    [y, x] = [y - layer.padding[0], x - layer.padding[1]];
    const isOutside = y < 0 || x < 0 || y >= height || x >= width;
    if (isOutside && layer.padding_mode !== 'replicate') return null;
    [y, x] = [Math.max(0, Math.min(height - 1, y)), Math.max(0, Math.min(width - 1, x))];
  }
  return { y, x };
}

/** The part of the input shelf that can change a cell: {top, left, height, width}. */
export function fieldOf(net, layout, cell) {
  const input = layout.shelves[0].shown;
  let index = shelfOf(layout, cell).shown, [top, left, bottom, right] = [cell.y, cell.x, cell.y + 1, cell.x + 1];
  for (; index > input; index--) {
    const layer = net.layers[index];
    if (layer.kind === 'linear') [top, left, bottom, right] = [0, 0, ...shape3(net.layers[index - 1]).slice(1)];
    if (layer.kind === 'pad') [top, left, bottom, right] = [top - layer.padding[0], left - layer.padding[1], bottom - layer.padding[0], right - layer.padding[1]];
    if (layer.kind !== 'conv' && layer.kind !== 'pool') continue;
    const first = windowOf(layer, top, left).origin, last = windowOf(layer, bottom - 1, right - 1).origin;
    [top, left, bottom, right] = [...first, last[0] + layer.kernel[0], last[1] + layer.kernel[1]];
  }
  const [, height, width] = shape3(net.layers[input]);
  [top, left, bottom, right] = [Math.max(0, top), Math.max(0, left), Math.min(height, bottom), Math.min(width, right)];
  return { top, left, height: bottom - top, width: right - left };
}

/** Frames of a cell, of its windows one shelf below, and of its field; without lines. */
export function framesOf(net, layout, cell) {
  const shelf = shelfOf(layout, cell), own = placeOf(shelf, cell.map, cell.y, cell.x);
  const frames = [{ corners: cornersOf(own.quad, own.y, own.x) }];
  if (shelf === layout.shelves[0]) return frames;
  const field = fieldOf(net, layout, cell), input = layout.shelves[0].quads[0];
  frames.push({ corners: cornersOf(input, field.top, field.left, field.height, field.width) });
  return [...frames, ...windowsOf(net, layout, shelf, cell).map(({ corners }) => ({ corners }))];
}

/** The windows of a cell of a convolution or pooling on the maps one shelf below: [{map, corners}]. */
function windowsOf(net, layout, shelf, cell) {
  const layer = net.layers[shelf.layers[0]], base = baseOf(net, shelf, cell), below = layout.shelves[layout.shelves.indexOf(shelf) - 1];
  if (!base || !layer.kernel || below.isVector) return [];
  const { origin, kernel } = windowOf(layer, base.y, base.x);
  const maps = shelf.kind === 'pool' ? [cell.map] : layer.table?.[cell.map] ?? below.quads.map((quad) => quad.map);
  return maps.map((map) => ({ map, corners: cornersOf(below.quads[map], ...origin, ...kernel) }));
}

/** Lines to a cell from what it was computed from: width by the part that each has in it, colour by its sign. */
export function linksOf(net, layout, cell, values, weights) {
  const shelf = shelfOf(layout, cell), index = layout.shelves.indexOf(shelf), base = baseOf(net, shelf, cell);
  if (!index || !base) return [];
  const own = placeOf(shelf, cell.map, cell.y, cell.x), corners = cornersOf(own.quad, own.y, own.x);
  const windows = windowsOf(net, layout, shelf, cell);
  if (shelf.kind === 'pool') return windows[0].corners.map((from, i) => ({ from, to: corners[i], sign: 0, alpha: 0.8, width: 1 }));
  if (!weights) return [];
  const { terms } = explain(net, values, weights, shelf.layers[0], cell.map, base.y, base.x);
  if (shelf.kind === 'linear' || !windows.length) return unitLinks(net, layout.shelves[index - 1], terms, middleOf(corners));
  const reach = Math.max(...terms.map((term) => Math.abs(term.sum))) || 1;
  return terms.map(({ sum }, i) => {
    const [upperLeft, upperRight] = windows[i].corners;
    return lineOf(upperLeft.map((value, k) => (value + upperRight[k]) / 2), middleOf(corners), sum, reach);
  });
}

/** Lines of a dense unit: from the inputs with the largest products. */
function unitLinks(net, below, terms, to) {
  const [, height, width] = shape3(net.layers[below.shown]);
  const strongest = [...terms].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)).slice(0, STRONGEST);
  const reach = Math.abs(strongest[0].sum) || 1;
  return strongest.map(({ map: i, sum }) => {
    const place = placeOf(below, Math.floor(i / (height * width)), Math.floor((i % (height * width)) / width), i % width);
    return lineOf(middleOf(cornersOf(place.quad, place.y, place.x)), to, sum, reach);
  });
}

function lineOf(from, to, sum, reach) {
  const share = Math.abs(sum) / reach;
  return { from, to, sign: Math.sign(sum), alpha: 0.4 + 0.55 * share, width: 0.6 + 3 * share };
}

/** The border of zeros that a convolution sees round the maps below: a hatched ring, as lines and frames. */
export function ringOf(net, layout, cell) {
  const shelf = shelfOf(layout, cell), layer = net.layers[shelf.layers[0]], index = layout.shelves.indexOf(shelf);
  const [down, across] = layer.padding ?? [0, 0];
  if (shelf.kind !== 'conv' || !down || layer.padding_mode === 'replicate') return { frames: [], links: [] };
  const below = layout.shelves[index - 1], maps = layer.table?.[cell.map] ?? below.quads.map((quad) => quad.map);
  const quads = (maps.length > MANY_MAPS ? maps.slice(0, 1) : maps).map((map) => below.quads[map]);
  const frames = quads.map((quad) => ({ corners: cornersOf(quad, -down, -across, quad.rows + 2 * down, quad.columns + 2 * across), width: 0.7 }));
  return { frames, links: quads.flatMap((quad) => hatchesOf(quad, down, across)) };
}

/** Short diagonals in the ring round a map, one for each cell of its border. */
function hatchesOf(quad, down, across) {
  const hatches = [];
  const add = (y, x, height, width) => {
    const [, to, , from] = cornersOf(quad, y, x, height, width);
    hatches.push({ from, to, sign: 0, alpha: 0.4, width: 0.5 });
  };
  for (let x = -across; x < quad.columns + across; x += across) add(-down, x, down, across), add(quad.rows, x, down, across);
  for (let y = 0; y < quad.rows; y += down) add(y, -across, down, across), add(y, quad.columns, down, across);
  return hatches;
}

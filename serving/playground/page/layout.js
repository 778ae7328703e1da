/**
 * Lays the network out: shelves, each above and behind the one before it, and on a shelf one rectangle for each map.
 * Lengths are in units of the scene: a cell of a 28x28 map is 1 wide.
 */

import { shape3 } from './explain.js';

const GAP = 3; // between maps
const STEP_BACK = 26; // from shelf to shelf
const WIDTHS = [150, 185, 220, 255, 290, 330, 380, 440];

/** Groups layers into shelves: a convolution, pooling or dense layer with the scale, activation and padding after it. */
export function groupsOf(net) {
  const groups = [];
  net.layers.forEach((layer, index) => {
    const joins = groups.length > 0 && ['activation', 'scale', 'pad'].includes(layer.kind);
    if (joins) groups.at(-1).layers.push(index);
    else groups.push({ kind: layer.kind, first: layer.name, layers: [index] });
  });
  return groups;
}

/**
 * Lays the shelves out so that they are drawn as large as fits into `width` x `height` pixels.
 * @param {{width: number, height: number, gap: number}} room `gap` in pixels between shelves, for labels
 */
export function shelvesOf(net, room) {
  let best = null;
  for (const widest of WIDTHS) {
    let gap = 9;
    let layout;
    for (let pass = 0; pass < 3; pass++) { // the gap is in pixels, and how long a pixel is depends on the layout
      layout = arrange(net, widest, gap);
      layout.scale = Math.min(room.width / layout.width, room.height / layout.height);
      gap = Math.max(6, room.gap / layout.scale);
    }
    if (!best || layout.scale > best.scale) best = layout;
  }
  return best;
}

function arrange(net, widest, gap) {
  const groups = groupsOf(net);
  const shelves = groups.map((group, i) => shelfOf(net, group, i === groups.length - 1, widest));
  const height = shelves.reduce((sum, shelf) => sum + shelf.height + gap, -gap);
  let y = -height / 2;
  shelves.forEach((shelf, i) => {
    shelf.y = y + shelf.height / 2;
    shelf.z = ((shelves.length - 1) / 2 - i) * STEP_BACK;
    y += shelf.height + gap;
    shelf.quads.forEach((quad) => Object.assign(quad, { shelf: i, y: quad.y + shelf.y, z: shelf.z }));
  });
  return { shelves, quads: shelves.flatMap((shelf) => shelf.quads), width: Math.max(...shelves.map((s) => s.width)), height };
}

/** One shelf: its layers, `shown` the index of the last, whose values are drawn; `quads` its maps, centred on (0, 0). */
function shelfOf(net, group, isLast, widest) {
  const shown = group.layers.at(-1), layer = net.layers[shown];
  let [maps, rows, columns] = shape3(layer);
  const isVector = rows * columns === 1;
  if (isVector) [maps, rows, columns] = [1, 1, maps];
  const cell = isLast ? Math.max(15, widest * 0.06) : isVector ? Math.min(3, (widest * 0.85) / columns) : Math.sqrt(28 / rows);
  const width = columns * cell, height = rows * cell * (isVector && !isLast ? 5 : 1); // the cells of a vector are tall
  const fitting = Math.max(1, Math.min(maps, Math.floor((widest + GAP) / (width + GAP))));
  const lines = Math.ceil(maps / fitting), perLine = Math.ceil(maps / lines);
  const quads = Array.from({ length: maps }, (_, map) => ({
    map, width, height, rows, columns,
    start: layer.start + map * rows * columns,
    x: ((map % perLine) - (perLine - 1) / 2) * (width + GAP),
    y: ((lines - 1) / 2 - Math.floor(map / perLine)) * (height + GAP),
  }));
  return { ...group, shown, isVector, isLast, quads, width: perLine * (width + GAP) - GAP, height: lines * (height + GAP) - GAP };
}

/** The map's rectangle and the cell's place in it: a vector is one rectangle, its units are cells. */
export function placeOf(shelf, map, y, x) {
  return shelf.isVector ? { quad: shelf.quads[0], y: 0, x: map } : { quad: shelf.quads[map], y, x };
}

/** Corners of a block of cells, in the scene: upper left, upper right, lower right, lower left. */
export function cornersOf(quad, y, x, height = 1, width = 1) {
  const w = quad.width / quad.columns, h = quad.height / quad.rows;
  const left = quad.x - quad.width / 2 + x * w, top = quad.y + quad.height / 2 - y * h;
  const right = left + width * w, bottom = top - height * h;
  return [[left, top, quad.z], [right, top, quad.z], [right, bottom, quad.z], [left, bottom, quad.z]];
}

/** The middle of a block's corners. */
export function middleOf(corners) {
  return corners[0].map((_, i) => (corners[0][i] + corners[2][i]) / 2);
}

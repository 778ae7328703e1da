/**
 * Lays the network out: shelves, each above and behind the one before it, and on a shelf one rectangle for each map.
 * Lengths are in units of the scene: a cell of a 28x28 map is 1 wide.
 */

const GAP = 3; // between maps
const STEP_BACK = 26; // from shelf to shelf
const WIDTHS = [150, 185, 220, 255, 290, 330, 380, 440];

/** Number of elements of a shape. */
export function size(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

/** Shape of a layer as [maps, height, width]; a vector's units are maps of one cell. */
export function shape3({ shape }) {
  return shape.length === 3 ? shape : [shape[0], 1, 1];
}

/** Index in `values` of a cell. */
export function indexOf(layer, { map, y, x }) {
  const [, height, width] = shape3(layer);
  return layer.start + (map * height + y) * width + x;
}

/**
 * Groups layers into shelves: a convolution, pooling or dense layer with the scale, activation and padding after it.
 * `first` is the first layer's name, `name` what people call it; `shown` is the index of the last layer, `layer` that layer.
 */
export function shelvesOf(net) {
  const groups = [];
  net.layers.forEach(({ kind }, index) => {
    if (groups.length && ['activation', 'scale', 'pad'].includes(kind)) groups.at(-1).push(index);
    else groups.push([index]);
  });
  return groups.map((layers, i) => {
    const [base, shown] = [net.layers[layers[0]], layers.at(-1)], layer = net.layers[shown], [maps, height, width] = shape3(layer);
    const name = base.name.split('.')[0]; // of `s2.pool` and `s2.scale` it is `s2`
    return { kind: base.kind, first: base.name, name, layers, base, shown, layer, maps, height, width, isVector: height * width === 1, isLast: i === groups.length - 1 };
  });
}

export function kindOf(t, { isLast, kind }) {
  return t(`kind_${isLast ? 'output' : kind}`);
}

/** What a shelf is called: "Convolution conv1". */
export function titleOf(t, shelf) {
  return shelf.kind === 'input' ? kindOf(t, shelf) : `${kindOf(t, shelf)} ${shelf.name}`;
}

/** The shelf of a cell or map, by the name of its first layer. */
export function shelfOf(shelves, { layer }) {
  return shelves.find(({ first }) => first === layer);
}

/** Whether a network has such a cell, or map: {layer, map}. */
export function isInside(net, place) {
  const { map, y = 0, x = 0 } = place, shelf = shelfOf(shelvesOf(net), place);
  return Boolean(shelf) && map < shelf.maps && y < shelf.height && x < shelf.width;
}

/** The cell that is the i-th of a shelf. */
export function cellOf({ first, height, width }, i) {
  return { layer: first, map: Math.floor(i / (height * width)), y: Math.floor(i / width) % height, x: i % width };
}

/** Writes a cell's place: [5, 4, 5], or of a vector [5]. */
export function whereOf({ isVector }, { map, y, x }) {
  return `[${isVector ? map : [map, y, x].join(', ')}]`;
}

/** The cell of a shelf, or of one of its maps, with the largest absolute value. */
export function strongestOf(shelf, values, map = null) {
  const each = shelf.height * shelf.width, from = (map ?? 0) * each, to = map === null ? size(shelf.layer.shape) : from + each;
  const magnitude = (i) => Math.abs(values[shelf.layer.start + i]);
  let best = from;
  for (let i = from; i < to; i++) if (magnitude(i) > magnitude(best)) best = i;
  return cellOf(shelf, best);
}

/** The value of a cell of a shelf. */
export function valueOf({ layer }, values, cell) {
  return values[indexOf(layer, cell)];
}

/** Lays the shelves out as large as fits into {width, height, gap} pixels; the gap is for labels. */
export function layOut(net, room) {
  let best = null;
  for (const widest of WIDTHS) {
    let gap = 9, layout;
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
  const shelves = shelvesOf(net).map((shelf) => withMaps(shelf, widest));
  const height = shelves.reduce((sum, shelf) => sum + shelf.tall + gap, -gap);
  let y = -height / 2;
  shelves.forEach((shelf, i) => {
    shelf.y = y + shelf.tall / 2;
    shelf.z = ((shelves.length - 1) / 2 - i) * STEP_BACK;
    y += shelf.tall + gap;
    shelf.quads.forEach((quad) => Object.assign(quad, { shelf: i, y: quad.y + shelf.y, z: shelf.z }));
  });
  return { net, shelves, quads: shelves.flatMap(({ quads }) => quads), width: Math.max(...shelves.map(({ wide }) => wide)), height };
}

/** A shelf with its maps as rectangles, in lines at most `widest` wide. A vector is one rectangle. */
function withMaps(shelf, widest) {
  const { isVector, isLast, layer } = shelf;
  const [maps, rows, columns] = isVector ? [1, 1, shelf.maps] : [shelf.maps, shelf.height, shelf.width];
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
  return { ...shelf, quads, wide: perLine * (width + GAP) - GAP, tall: lines * (height + GAP) - GAP };
}

/** Corners of a block of cells, in the scene: upper left, upper right, lower right, lower left. */
export function cornersOf(quad, y, x, height = 1, width = 1) {
  const w = quad.width / quad.columns, h = quad.height / quad.rows;
  const left = quad.x - quad.width / 2 + x * w, top = quad.y + quad.height / 2 - y * h;
  const right = left + width * w, bottom = top - height * h;
  return [[left, top, quad.z], [right, top, quad.z], [right, bottom, quad.z], [left, bottom, quad.z]];
}

export function outlineOf(quad) {
  return cornersOf(quad, 0, 0, quad.rows, quad.columns);
}

/** Corners of a cell. */
export function cellCorners({ isVector, quads }, { map, y, x }) {
  return isVector ? cornersOf(quads[0], 0, map) : cornersOf(quads[map], y, x);
}

/** The middle of two points. */
export function middleOf(a, b) {
  return a.map((value, i) => (value + b[i]) / 2);
}

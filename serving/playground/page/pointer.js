/** Pointer, wheel and keys of the stage: turning, moving, zooming, choosing cells. */

import { HOME } from './camera.js';
import { shape3 } from './explain.js';
import { shelfOf } from './links.js';

const TURN = 0.006, STILL = 5; // radians a pixel; a press that moved less chooses a cell
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function listen(stage) {
  const { canvas } = stage, hands = new Hands(stage);
  canvas.addEventListener('pointerdown', (event) => hands.down(event));
  canvas.addEventListener('pointermove', (event) => hands.move(event));
  canvas.addEventListener('pointerup', (event) => hands.up(event));
  canvas.addEventListener('pointercancel', (event) => hands.forget(event));
  canvas.addEventListener('pointerleave', () => stage.app.set({ hover: null }));
  canvas.addEventListener('contextmenu', (event) => event.preventDefault());
  canvas.addEventListener('dblclick', (event) => frameShelf(stage, event));
  canvas.addEventListener('wheel', (event) => { event.preventDefault(); zoom(stage, Math.exp(event.deltaY * 0.001)); }, { passive: false });
  canvas.addEventListener('keydown', (event) => press(stage, event));
}

/** Follows the pointers that are down: one turns, two or the right button move, two also zoom. */
class Hands {
  constructor(stage) {
    this.stage = stage;
    this.points = new Map();
    this.moved = 0;
  }

  down(event) {
    this.stage.canvas.setPointerCapture(event.pointerId);
    if (!this.points.size) this.moved = 0;
    this.points.set(event.pointerId, [event.clientX, event.clientY]);
  }

  move(event) {
    const last = this.points.get(event.pointerId);
    if (!last) return event.pointerType === 'mouse' && this.stage.app.set({ hover: cellUnder(this.stage, event) });
    const before = this.spread();
    this.points.set(event.pointerId, [event.clientX, event.clientY]);
    const dx = event.clientX - last[0], dy = event.clientY - last[1];
    this.moved += Math.abs(dx) + Math.abs(dy);
    if (this.moved < STILL) return;
    if (this.points.size > 1) {
      zoom(this.stage, before / this.spread());
      pan(this.stage, dx / 2, dy / 2);
    } else if (event.buttons & 2 || this.stage.flatness > 0.5) pan(this.stage, dx, dy);
    else turn(this.stage, dx * TURN, dy * TURN);
  }

  up(event) {
    if (this.moved < STILL && event.button === 0 && this.points.size === 1) this.stage.app.set({ cell: cellUnder(this.stage, event) });
    this.forget(event);
  }

  forget(event) {
    this.points.delete(event.pointerId);
  }

  spread() {
    const [a, b] = [...this.points.values()];
    return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 1;
  }
}

function cellUnder(stage, event) {
  const box = stage.canvas.getBoundingClientRect();
  return stage.cellAt(event.clientX - box.left, event.clientY - box.top);
}

function turn({ app }, dx, dy) {
  const { camera } = app.state;
  app.set({ camera: { ...camera, azimuth: camera.azimuth + dx, elevation: Math.max(-0.3, Math.min(1.4, camera.elevation + dy)) } });
}

function zoom({ app }, factor) {
  const { camera } = app.state;
  app.set({ camera: { ...camera, distance: Math.max(0.1, Math.min(3, camera.distance * factor)) } });
}

/** Moves the picture with the pointer. */
function pan({ app, view }, dx, dy) {
  const { camera } = app.state, unit = view.unitsPerPixel();
  app.set({ camera: { ...camera, panX: camera.panX + dx * unit, panY: camera.panY - dy * unit } });
}

/** Brings the shelf under the pointer close. */
function frameShelf(stage, event) {
  const cell = cellUnder(stage, event);
  if (cell) stage.app.set({ camera: stage.view.closeTo(shelfOf(stage.layout, cell), stage.app.state.camera) });
}

function press(stage, event) {
  const { app } = stage, { cell } = app.state, { key } = event;
  if (key === '0') app.set({ camera: HOME });
  else if (key === '+' || key === '=') zoom(stage, 0.9);
  else if (key === '-') zoom(stage, 1 / 0.9);
  else if (key === 'Escape') app.set({ cell: null });
  else if (ARROWS[key] && (event.shiftKey || !cell)) turn(stage, ARROWS[key][0] * 0.08, ARROWS[key][1] * 0.08);
  else if (ARROWS[key]) app.set({ cell: stepped(app.state.network, stage.layout, cell, ...ARROWS[key]) });
  else if (key === 'Enter' || key === 'PageUp' || key === 'PageDown') app.set({ cell: onShelf(stage, cell, key === 'PageDown' ? -1 : 1) });
  else return;
  event.preventDefault();
}

/** The neighbouring cell; past the border, that of the next or last map. */
export function stepped(net, layout, cell, dx, dy) {
  const shelf = shelfOf(layout, cell), [maps, height, width] = shape3(net.layers[shelf.shown]);
  let { map, y, x } = cell;
  [y, x] = [y + dy, x + dx];
  if (x < 0 || x >= width) [map, x] = [map + dx, x < 0 ? width - 1 : 0];
  return { ...cell, map: (map + maps) % maps, y: Math.max(0, Math.min(height - 1, y)), x };
}

/** The strongest cell of the shelf above or below. */
function onShelf({ layout, app: { state } }, cell, step) {
  const { shelves } = layout, from = cell ? shelves.indexOf(shelfOf(layout, cell)) : step > 0 ? -1 : shelves.length;
  const shelf = shelves[(from + step + shelves.length) % shelves.length];
  return strongestOf(state, shelf);
}

/** The cell of a shelf, or of one of its maps, with the largest absolute value. */
export function strongestOf({ network, values }, shelf, map = null) {
  const layer = network.layers[shelf.shown], [maps, height, width] = shape3(layer), each = height * width;
  let best = map === null ? 0 : map * each;
  const end = map === null ? maps * each : (map + 1) * each;
  for (let i = best; i < end; i++) if (Math.abs(values[layer.start + i]) > Math.abs(values[layer.start + best])) best = i;
  return { layer: shelf.first, map: Math.floor(best / each), y: Math.floor((best % each) / width), x: best % width };
}

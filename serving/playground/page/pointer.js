/** Pointer, wheel and keys of the stage: turning, moving, zooming, choosing cells. */

import { HOME } from './camera.js';
import { clamp } from './dom.js';
import { shelfOf, strongestOf } from './layout.js';

const TURN = 0.006, STILL = 5; // radians a pixel; a press that moved less chooses a cell
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Follows the pointers that are down: one turns, two or the right button move, two also zoom. */
export function listen(stage) {
  const { canvas, app } = stage, points = new Map();
  let moved = 0;
  const spread = () => {
    const [a, b] = [...points.values()];
    return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 1;
  };
  Object.assign(canvas, {
    onpointerdown(event) {
      canvas.setPointerCapture(event.pointerId);
      if (!points.size) moved = 0;
      points.set(event.pointerId, [event.clientX, event.clientY]);
    },
    onpointermove(event) {
      const last = points.get(event.pointerId), before = spread();
      if (!last && event.pointerType === 'mouse') app.set({ hover: stage.cellAt(event.offsetX, event.offsetY) });
      if (!last) return;
      points.set(event.pointerId, [event.clientX, event.clientY]);
      const dx = event.clientX - last[0], dy = event.clientY - last[1];
      moved += Math.abs(dx) + Math.abs(dy);
      if (moved < STILL) return;
      if (points.size > 1) {
        zoom(stage, before / spread());
        pan(stage, dx / 2, dy / 2);
      } else if (event.buttons & 2 || stage.flatness > 0.5) pan(stage, dx, dy);
      else turn(stage, dx * TURN, dy * TURN);
    },
    onpointerup(event) {
      if (moved < STILL && event.button === 0 && points.size === 1) choose(stage, event.offsetX, event.offsetY);
      points.delete(event.pointerId);
    },
    onpointercancel: ({ pointerId }) => points.delete(pointerId),
    onpointerleave: () => app.set({ hover: null }),
    oncontextmenu: (event) => event.preventDefault(),
    async ondblclick({ offsetX, offsetY }) {
      const cell = stage.cellAt(offsetX, offsetY), { closeTo } = await import('./presses.js');
      if (cell) app.set({ camera: closeTo(stage.view, shelfOf(stage.layout.shelves, cell), app.state.camera) });
    },
    onkeydown: (event) => press(stage, event),
  });
  canvas.addEventListener('wheel', (event) => { event.preventDefault(); zoom(stage, Math.exp(event.deltaY * 0.001)); }, { passive: false });
}

async function choose(stage, x, y) {
  const cell = stage.cellAt(x, y);
  if (cell) stage.app.set({ cell });
  else (await import('./presses.js')).pressBeside(stage, x, y);
}

function moveCamera({ app }, change) {
  app.set({ camera: { ...app.state.camera, ...change(app.state.camera) } });
}

function turn(stage, dx, dy) {
  moveCamera(stage, ({ azimuth, elevation }) => ({ azimuth: azimuth + dx, elevation: clamp(elevation + dy, -0.3, 1.4) }));
}

function zoom(stage, factor) {
  moveCamera(stage, ({ distance }) => ({ distance: clamp(distance * factor, 0.1, 3) }));
}

/** Moves the picture with the pointer. */
function pan(stage, dx, dy) {
  const unit = stage.view.unitsPerPixel();
  moveCamera(stage, ({ panX, panY }) => ({ panX: panX + dx * unit, panY: panY - dy * unit }));
}

function press(stage, event) {
  const { app, layout: { shelves } } = stage, { cell, values } = app.state, { key } = event, arrow = ARROWS[key];
  if (key === '0') app.set({ camera: HOME });
  else if (key === '+' || key === '=') zoom(stage, 0.9);
  else if (key === '-') zoom(stage, 1 / 0.9);
  else if (key === 'Escape') app.set({ cell: null });
  else if (arrow && (event.shiftKey || !cell)) turn(stage, arrow[0] * 0.08, arrow[1] * 0.08);
  else if (arrow) app.set({ cell: stepped(shelfOf(shelves, cell), cell, ...arrow) });
  else if (['Enter', 'PageUp', 'PageDown'].includes(key)) { // the strongest cell of the shelf above or below
    const step = key === 'PageDown' ? -1 : 1, from = cell ? shelves.indexOf(shelfOf(shelves, cell)) : Math.min(-step, 0);
    app.set({ cell: strongestOf(shelves.at((from + step) % shelves.length), values) });
  } else return;
  event.preventDefault();
}

/** The neighbouring cell; past the border, that of the next or last map. */
function stepped({ maps, height, width }, cell, dx, dy) {
  const x = cell.x + dx, isPast = x < 0 || x >= width;
  return { ...cell, map: (cell.map + (isPast ? dx : 0) + maps) % maps, y: clamp(cell.y + dy, 0, height - 1), x: (x + width) % width };
}

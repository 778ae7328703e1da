/** Drawing, by mouse, pen, finger and keys: a pad of 112x112 pixels. */

import { el } from './dom.js';

export const SIZE = 112;
const BRUSH = 2.5, ERASER = 6; // radii
const STEP = 4; // of the keys' cursor: a pixel of the network's
const NUM_UNDO = 20;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Makes the pad; returns {canvas, tools}. It writes `ink`, `drawing` and `source`. */
export function makePad(app) {
  const pad = new Pad(app);
  return { canvas: pad.canvas, tools: pad.tools };
}

class Pad {
  constructor(app) {
    this.app = app;
    this.undo = [];
    this.isErasing = false;
    this.cursor = null; // of the keys
    this.canvas = el('canvas', { id: 'pad', width: SIZE, height: SIZE, tabIndex: 0, role: 'application', 'aria-label': app.t('pad'), 'aria-describedby': 'pad-keys' });
    this.tools = this.makeTools();
    this.listen();
    app.subscribe(['ink', 'source'], () => this.paint());
    this.paint();
  }

  makeTools() {
    const { t } = this.app, button = (key, click) => el('button', { on: { click } }, t(key));
    this.brush = button('brush', () => this.choose(false));
    this.eraser = button('eraser', () => this.choose(true));
    this.undoButton = button('undo', () => this.takeBack());
    this.choose(false);
    this.undoButton.disabled = true;
    return [this.brush, this.eraser, this.undoButton, button('clear', () => this.change((ink) => ink.fill(0)))];
  }

  choose(isErasing) {
    this.isErasing = isErasing;
    this.brush.setAttribute('aria-pressed', !isErasing);
    this.eraser.setAttribute('aria-pressed', isErasing);
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener('pointerdown', (event) => this.begin(event));
    canvas.addEventListener('pointermove', (event) => this.move(event));
    for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, () => this.end());
    canvas.addEventListener('keydown', (event) => this.press(event));
    canvas.addEventListener('blur', () => { this.cursor = null; this.end(); this.paint(); });
  }

  begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.last = this.at(event);
    this.app.set({ drawing: true });
    this.drawTo(this.last);
  }

  move(event) {
    if (!this.last) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.drawTo(...(events.length ? events : [event]).map((e) => this.at(e)));
  }

  end() {
    if (!this.last) return;
    this.last = null;
    this.app.set({ drawing: false });
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
  }

  /** Draws lines from where the pen is to each of the points. */
  drawTo(...points) {
    const ink = this.app.state.ink.slice();
    for (const point of points) {
      drawLine(ink, this.last, point, this.isErasing ? ERASER : BRUSH, this.isErasing);
      this.last = point;
    }
    this.app.set({ ink, source: { kind: 'drawing' } });
  }

  /** Keys: arrows move, space puts the pen down and lifts it, x is brush or eraser. */
  press(event) {
    const { key } = event;
    if (key === ' ') this.last ? this.end() : this.penDown();
    else if (key === 'x') this.choose(!this.isErasing);
    else if (key === 'z' && (event.ctrlKey || event.metaKey)) this.takeBack();
    else if (KEYS[key]) this.moveCursor(...KEYS[key]);
    else return;
    event.preventDefault();
    this.paint();
  }

  penDown() {
    this.cursor ??= [SIZE / 2, SIZE / 2];
    this.remember();
    this.last = this.cursor;
    this.app.set({ drawing: true });
    this.drawTo(this.cursor);
  }

  moveCursor(dx, dy) {
    const [x, y] = this.cursor ?? [SIZE / 2, SIZE / 2], inside = (v) => Math.max(2, Math.min(SIZE - 2, v));
    this.cursor = [inside(x + dx * STEP), inside(y + dy * STEP)];
    if (this.last) this.drawTo(this.cursor);
  }

  remember() {
    this.undo = [...this.undo, this.app.state.ink].slice(-NUM_UNDO);
    this.undoButton.disabled = false;
  }

  change(edit) {
    this.remember();
    const ink = this.app.state.ink.slice();
    edit(ink);
    this.app.set({ ink, source: { kind: 'drawing' } });
  }

  takeBack() {
    if (!this.undo.length) return;
    this.app.set({ ink: this.undo.pop(), source: { kind: 'drawing' } });
    this.undoButton.disabled = !this.undo.length;
  }

  paint() {
    const { ink } = this.app.state, context = this.canvas.getContext('2d'), image = context.createImageData(SIZE, SIZE);
    ink.forEach((value, i) => { image.data[i * 4] = image.data[i * 4 + 1] = image.data[i * 4 + 2] = value; image.data[i * 4 + 3] = 255; });
    context.putImageData(image, 0, 0);
    if (!this.cursor) return;
    context.strokeStyle = this.isErasing ? '#74add1' : '#fdb863';
    context.lineWidth = this.last ? 3 : 1;
    context.strokeRect(this.cursor[0] - 4, this.cursor[1] - 4, 8, 8);
  }
}

function drawLine(ink, [x0, y0], [x1, y1], radius, isErasing) {
  const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
  for (let k = 0; k <= steps; k++) drawDot(ink, x0 + ((x1 - x0) * k) / steps, y0 + ((y1 - y0) * k) / steps, radius, isErasing);
}

/** A disc with a soft edge of one pixel. */
function drawDot(ink, x, y, radius, isErasing) {
  const from = (v) => Math.max(0, Math.floor(v - radius - 1)), to = (v) => Math.min(SIZE - 1, Math.ceil(v + radius + 1));
  for (let row = from(y); row <= to(y); row++) {
    for (let column = from(x); column <= to(x); column++) {
      const share = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(row + 0.5 - y, column + 0.5 - x)));
      const i = row * SIZE + column;
      ink[i] = isErasing ? ink[i] * (1 - share) : Math.max(ink[i], 255 * share);
    }
  }
}

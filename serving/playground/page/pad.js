/** Drawing, by mouse, pen, finger and keys: a pad of 112x112 pixels. It writes `ink`, `drawing` and `source`. */

import { button, clamp, el } from './dom.js';
import { ARROWS } from './pointer.js';

export const SIZE = 112;
const BRUSH = 2.5, ERASER = 6; // radii
const STEP = 4; // of the keys' cursor: a pixel of the network's
const NUM_UNDO = 20;

export class Pad {
  constructor(app) {
    const { t } = app, words = { role: 'application', 'aria-label': t('pad'), 'aria-describedby': 'pad-keys' };
    Object.assign(this, { app, undo: [], last: null, cursor: null }); // where the pen is down; where that of the keys is
    this.canvas = el('canvas', { id: 'pad', width: SIZE, height: SIZE, tabIndex: 0, ...words });
    this.brush = button(t('brush'), () => this.choose(false));
    this.eraser = button(t('eraser'), () => this.choose(true));
    this.back = button(t('undo'), () => this.takeBack(), { disabled: true });
    this.tools = [this.brush, this.eraser, this.back, button(t('clear'), () => { this.remember(); this.put(new Uint8Array(SIZE * SIZE)); })];
    this.choose(false);
    this.listen();
    app.follow(['ink', 'source', 'gap', 'drawing'], () => this.paint());
  }

  choose(isErasing) {
    this.isErasing = isErasing;
    this.brush.setAttribute('aria-pressed', !isErasing);
    this.eraser.setAttribute('aria-pressed', isErasing);
  }

  listen() {
    Object.assign(this.canvas, {
      onpointerdown: (event) => {
        this.canvas.setPointerCapture(event.pointerId);
        this.penDown(this.at(event));
      },
      onpointermove: (event) => {
        const events = event.getCoalescedEvents?.() ?? [];
        if (this.last) this.drawTo(...(events.length ? events : [event]).map((e) => this.at(e)));
      },
      onpointerup: () => this.penUp(),
      onpointercancel: () => this.penUp(),
      onkeydown: (event) => this.press(event),
      onblur: () => { this.cursor = null; this.penUp(); this.paint(); },
    });
  }

  at({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((clientX - left) / width) * SIZE, ((clientY - top) / height) * SIZE];
  }

  penDown(at) {
    this.remember();
    this.last = at;
    this.app.set({ drawing: true });
    this.drawTo(at);
  }

  penUp() {
    if (this.last) this.app.set({ drawing: false });
    this.last = null;
  }

  /** Draws lines from where the pen is to each of the points. */
  drawTo(...points) {
    const ink = this.app.state.ink.slice();
    for (const point of points) {
      drawLine(ink, this.last, point, this.isErasing ? ERASER : BRUSH, this.isErasing);
      this.last = point;
    }
    this.put(ink);
  }

  put(ink) {
    this.app.set({ ink, source: { kind: 'drawing' } });
  }

  /** Keys: arrows move, space puts the pen down and lifts it, x is brush or eraser. */
  press(event) {
    const { key } = event;
    if (key === ' ') this.last ? this.penUp() : this.penDown((this.cursor ??= [SIZE / 2, SIZE / 2]));
    else if (key === 'x') this.choose(!this.isErasing);
    else if (key === 'z' && (event.ctrlKey || event.metaKey)) this.takeBack();
    else if (ARROWS[key]) this.moveCursor(ARROWS[key]);
    else return;
    event.preventDefault();
    this.paint();
  }

  moveCursor(step) {
    const from = this.cursor ?? [SIZE / 2, SIZE / 2];
    this.cursor = from.map((v, i) => clamp(v + step[i] * STEP, 2, SIZE - 2));
    if (this.last) this.drawTo(this.cursor);
  }

  remember() {
    this.undo = [...this.undo, this.app.state.ink].slice(-NUM_UNDO);
    this.back.disabled = false;
  }

  takeBack() {
    if (this.undo.length) this.put(this.undo.pop());
    this.back.disabled = !this.undo.length;
  }

  /** Paints what is drawn, or a photograph; where an outline is open; and the cursor of the keys. */
  paint() {
    const { ink, source, gap, drawing } = this.app.state, context = paintGrey(this.canvas, ink);
    source.paint?.(context);
    if (gap && !drawing && gap.x !== null) ring(context, gap);
    if (!this.cursor) return;
    Object.assign(context, { strokeStyle: this.isErasing ? '#74add1' : '#fdb863', lineWidth: this.last ? 3 : 1 });
    context.strokeRect(this.cursor[0] - 4, this.cursor[1] - 4, 8, 8);
  }
}

function ring(context, { x, y, width }) {
  Object.assign(context, { strokeStyle: '#ff5d5d', lineWidth: 2 }).beginPath();
  context.arc(x, y, Math.max(6, width / 2 + 3), 0, 2 * Math.PI);
  context.stroke();
}

/** Paints bytes as grey pixels; returns the canvas's context. */
export function paintGrey(canvas, bytes) {
  const context = canvas.getContext('2d'), pixels = context.createImageData(canvas.width, canvas.height);
  const colors = new Uint32Array(pixels.data.buffer); // the highest byte is the opacity
  bytes.forEach((value, i) => { colors[i] = 0xff000000 | (value * 0x010101); });
  context.putImageData(pixels, 0, 0);
  return context;
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
      const share = clamp(radius + 0.5 - Math.hypot(row + 0.5 - y, column + 0.5 - x), 0, 1), i = row * SIZE + column;
      ink[i] = isErasing ? ink[i] * (1 - share) : Math.max(ink[i], 255 * share);
    }
  }
}

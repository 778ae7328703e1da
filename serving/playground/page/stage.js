/** The middle column: all maps on their shelves, and what the pointer or a pinned cell shows about them. */

import { View } from './camera.js';
import { el } from './dom.js';
import { Labels } from './labels.js';
import { layOut, outlineOf, shelfOf } from './layout.js';
import { frame, framesOf, linksOf, ringOf } from './links.js';
import { PALETTES, rangesOf } from './palette.js';
import { listen } from './pointer.js';
import { Scene } from './scene.js';
import { makeTree } from './tree.js';

const TURN_MS = 500; // from 3D to flat

export async function mount(root, app) {
  const canvas = el('canvas', { id: 'maps', tabIndex: 0, role: 'application', 'aria-label': app.t('stage'), 'aria-describedby': 'stage-keys' });
  root.stage = new Stage(root, app, canvas, await makeRenderer(canvas, app)); // for the console
}

async function makeRenderer(canvas, app) {
  try {
    const scene = new Scene(canvas);
    app.cleanUp(() => scene.release());
    return scene;
  } catch {
    app.set({ canTurn: false });
    const { Flat } = await import('./flat.js');
    return new Flat(canvas);
  }
}

class Stage {
  constructor(root, app, canvas, renderer) {
    Object.assign(this, { root, app, canvas, renderer, flatness: app.state.view === 'flat' || !app.state.canTurn ? 1 : 0 });
    root.setAttribute('aria-label', app.t('stage'));
    this.labels = new Labels(app);
    root.append(this.canvas, this.labels.root, makeTree(app), el('p', { id: 'stage-keys', className: 'soft small' }, app.t('stage_keys')));
    this.resize();
    this.listen();
  }

  listen() {
    const { app } = this, observer = new ResizeObserver(() => this.resize());
    app.subscribe(['values', 'empty', 'minus', 'difference'], () => this.takeValues());
    app.subscribe(['cell', 'hover', 'marks', 'off', 'camera', 'theme', 'weights'], () => this.paint());
    app.follow(['cell'], ({ cell }) => cell && app.loadWeights());
    app.subscribe(['view'], () => this.turn());
    observer.observe(this.root);
    app.cleanUp(() => observer.disconnect());
    listen(this);
  }

  /** Lays the shelves out anew for the room there is. */
  resize() {
    const screen = { width: this.root.clientWidth, height: this.root.clientHeight }, ratio = Math.min(2, devicePixelRatio);
    if (!screen.width || !screen.height) return;
    for (const side of ['width', 'height']) this.canvas[side] = Math.round(screen[side] * ratio);
    const room = this.labels.roomIn(screen);
    this.root.classList.toggle('narrow', this.labels.isNarrow);
    this.layout = layOut(this.app.state.network, room);
    this.view = new View(this.layout, screen, room);
    this.renderer.setLayout(this.layout);
    this.takeValues();
  }

  /** Takes new values: the layers', those less the empty image's, or a difference that a panel asks for. Each shelf gets its scale. */
  takeValues() {
    const { state } = this.app, { network, values, empty, minus, difference } = state;
    let shown = difference ? difference.values : values;
    if (shown?.length !== network.num_values) return;
    if (!difference && minus && empty) shown = values.map((value, i) => value - empty[i]);
    this.renderer.setValues(shown);
    Object.assign(this, { shown, ranges: rangesOf(network, this.layout.shelves, shown, state) });
    this.paint();
  }

  /** Goes from depth to flat, or back: in half a second, or at once for who wants no motion. */
  turn() {
    const from = this.flatness, to = this.app.state.view === 'flat' || !this.app.state.canTurn ? 1 : 0, began = performance.now();
    const takes = matchMedia('(prefers-reduced-motion: reduce)').matches ? 0 : TURN_MS;
    const step = () => {
      const share = takes ? Math.min(1, (performance.now() - began) / takes) : 1;
      this.flatness = from + (to - from) * share * share * (3 - 2 * share);
      this.paint();
      if (share < 1) requestAnimationFrame(step);
    };
    step();
  }

  paint() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      if (this.ranges && this.root.isConnected) this.paintNow();
    });
  }

  paintNow() {
    const { view, ranges, shown, layout: { shelves }, app: { state } } = this, palette = PALETTES[this.app.dark() ? 'dark' : 'light'];
    const isOff = ({ shelf, map }) => !shelves[shelf].isVector && state.off.some((place) => place.layer === shelves[shelf].first && place.map === map);
    view.look(state.camera, this.flatness);
    this.renderer.draw({ view, ranges, palette, isOff, lines: this.linesNow() });
    this.labels.place({ view, ranges, palette, shown });
  }

  /** Frames and lines over the maps: of the pinned cell, of the cell under the pointer, of what panels point at. */
  linesNow() {
    const { layout } = this, { cell, hover, marks, values, weights, weightsKey, valuesKey } = this.app.state, chosen = cell ?? hover;
    const marked = marks.map((place) => ({ map: place.map, shelf: shelfOf(layout.shelves, place) }));
    return [
      ...(chosen ? [...ringOf(layout, chosen), ...linksOf(layout, chosen, values, weightsKey === valuesKey ? weights : null)] : []),
      ...marked.flatMap(({ map, shelf }) => frame(outlineOf(shelf.quads[shelf.isVector ? 0 : map]), 2.5)),
      ...[cell, hover].flatMap((place) => (place ? framesOf(layout, place) : [])),
    ];
  }

  /** The cell under a pixel of the canvas, as state has it; null if there is none. */
  cellAt(pixelX, pixelY) {
    const hit = this.view.pick(pixelX, pixelY);
    if (!hit) return null;
    const { quad, y, x } = hit, { isVector, first } = this.layout.shelves[quad.shelf];
    return isVector ? { layer: first, map: x, y: 0, x: 0 } : { layer: first, map: quad.map, y, x };
  }
}

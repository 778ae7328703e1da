/** The middle column: all maps on their shelves. */

import { isOff } from './arithmetic.js';
import { View } from './camera.js';
import { button, el } from './dom.js';
import { Labels, wordsOf } from './labels.js';
import { layOut, shelfOf } from './layout.js';
import { PALETTES, rangesOf } from './palette.js';
import { listen } from './pointer.js';
import { Scene } from './scene.js';

const TURN_MS = 500; // from 3D to flat

export async function mount(root, app) {
  const canvas = el('canvas', { id: 'maps', tabIndex: 0, role: 'application', 'aria-label': app.t('stage'), 'aria-describedby': 'stage-keys stage-summary' });
  root.stage = new Stage(root, app, canvas, await makeRenderer(canvas, app)); // for the console
}

/** Stands in for the tree of shelves and maps until the focus comes to it: then that is loaded. */
function makeTreeButton(app) {
  const open = async () => {
    const { makeTree } = await loadTree(app), hasFocus = document.activeElement === node;
    if (!node.isConnected) return;
    const tree = makeTree(app);
    node.replaceWith(tree);
    if (hasFocus) tree.firstChild.focus();
  };
  const node = button(app.t('tree'), open, { className: 'hidden', onfocus: open });
  return node;
}

async function loadTree(app) {
  return (await Promise.all([import('./tree.js'), app.loadMore()]))[0];
}

/** What readers are told of the canvas, from when the focus has come to the page. */
function makeSummary(app) {
  const node = el('p', { id: 'stage-summary', className: 'hidden' });
  addEventListener('focusin', async () => (await loadTree(app)).summarise(app, node), { once: true });
  return node;
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
    root.append(this.canvas, this.labels.root, makeTreeButton(app), makeSummary(app), el('p', { id: 'stage-keys', className: 'soft small' }, app.t('stage_keys')));
    this.resize();
    this.listen();
  }

  listen() {
    const { app } = this, observer = new ResizeObserver(() => this.resize());
    app.subscribe(['values', 'empty', 'minus', 'difference'], () => this.takeValues());
    app.subscribe(['cell', 'hover', 'marks', 'off', 'camera', 'theme', 'weights'], () => this.paint());
    app.follow(['cell'], ({ cell }) => {
      if (!cell) return;
      app.loadWeights();
      if (this.shown) app.announce(wordsOf(shelfOf(this.layout.shelves, cell), cell, this.shown));
    });
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

  /** Takes new values: the layers', those less the empty image's, or a difference. */
  takeValues() {
    const { state } = this.app, { network, values, empty, minus, difference } = state;
    let shown = difference ? difference.values : values;
    if (shown?.length !== network.num_values) return;
    if (!difference && minus && empty) shown = values.map((value, i) => value - empty[i]);
    this.renderer.setValues(shown);
    Object.assign(this, { shown, ranges: rangesOf(network, this.layout.shelves, shown, state) });
    this.paint();
  }

  /** Goes from depth to flat, or back; at once for who wants no motion. */
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
    const isStriped = ({ shelf, map }) => !shelves[shelf].isVector && isOff(this.app, { layer: shelves[shelf].first, map });
    view.look(state.camera, this.flatness);
    this.renderer.draw({ view, ranges, palette, isOff: isStriped, lines: this.linesNow() });
    this.labels.place({ view, ranges, palette, shown });
  }

  /** Frames and lines over the maps; what makes them is loaded when it is needed. */
  linesNow() {
    const { state } = this.app, isNeeded = state.cell || state.hover || state.marks.length;
    if (isNeeded && this.linesOf) return this.linesOf(this.layout, state);
    if (isNeeded) this.loading ??= this.loadLines();
    return [];
  }

  async loadLines() {
    const [{ linesOf }] = await Promise.all([import('./links.js'), this.renderer.loadLines?.()]);
    this.linesOf = linesOf;
    this.paint();
  }

  /** The cell under a pixel of the canvas, as state has it; null if there is none. */
  cellAt(pixelX, pixelY) {
    const hit = this.view.pick(pixelX, pixelY);
    if (!hit) return null;
    const { quad, y, x } = hit, { isVector, first } = this.layout.shelves[quad.shelf];
    return isVector ? { layer: first, map: x, y: 0, x: 0 } : { layer: first, map: quad.map, y, x };
  }
}

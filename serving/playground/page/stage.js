/** The middle column: all maps on their shelves, and what the pointer or a pinned cell shows about them. */

import { View } from './camera.js';
import { el } from './dom.js';
import { Flat } from './flat.js';
import { makeLabels } from './labels.js';
import { cornersOf, shelvesOf } from './layout.js';
import { framesOf, linksOf, ringOf } from './links.js';
import { PALETTES } from './palette.js';
import { listen } from './pointer.js';
import { rangesOf, shownValues } from './ranges.js';
import { Scene } from './scene.js';
import { makeTree } from './tree.js';

const TURN_MS = 500; // from 3D to flat

export function mount(root, app) {
  root.stage = new Stage(root, app); // for the console
}

class Stage {
  constructor(root, app) {
    Object.assign(this, { root, app, flatness: app.state.view === 'flat' ? 1 : 0 });
    root.setAttribute('aria-label', app.t('stage'));
    this.canvas = el('canvas', { id: 'maps', tabIndex: 0, role: 'application', 'aria-label': app.t('stage'), 'aria-describedby': 'stage-keys' });
    this.renderer = this.makeRenderer();
    this.labels = makeLabels(app);
    root.append(this.canvas, this.labels.root, makeTree(app), el('p', { id: 'stage-keys', class: 'soft small' }, app.t('stage_keys')));
    this.resize();
    this.follow();
    listen(this);
    this.takeValues();
  }

  makeRenderer() {
    try {
      const scene = new Scene(this.canvas);
      this.app.cleanUp(() => scene.release());
      return scene;
    } catch {
      this.app.set({ canTurn: false });
      this.flatness = 1;
      return new Flat(this.canvas);
    }
  }

  follow() {
    const { app } = this;
    app.subscribe(['values', 'empty', 'minus', 'difference'], () => this.takeValues());
    app.subscribe(['cell', 'hover', 'marks', 'off', 'camera', 'theme', 'weights', 'overlay'], () => this.paint());
    app.subscribe(['cell'], ({ cell }) => cell && app.loadWeights());
    app.subscribe(['view'], () => this.turn());
    if (app.state.cell) app.loadWeights();
    const observer = new ResizeObserver(() => this.resize());
    observer.observe(this.root);
    app.cleanUp(() => observer.disconnect());
  }

  /** Lays the shelves out anew for the room there is. */
  resize() {
    const width = this.root.clientWidth, height = this.root.clientHeight, ratio = Math.min(2, devicePixelRatio);
    if (!width || !height) return;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const { network } = this.app.state, margins = this.labels.marginsFor(width);
    this.root.classList.toggle('narrow', this.labels.isNarrow);
    const room = { width: width - margins.left - margins.right, height: height - margins.top - margins.bottom, gap: margins.gap };
    this.layout = shelvesOf(network, room);
    this.view = new View(this.layout, { width, height, margins });
    this.renderer.setLayout(this.layout, network.num_values);
    this.takeValues();
  }

  /** Takes new values: they are uploaded, and each shelf gets its scale. */
  takeValues() {
    const { state } = this.app, values = shownValues(state);
    if (values?.length === state.network.num_values) {
      this.renderer.setValues(values);
      this.shown = values;
      this.ranges = rangesOf(state.network, this.layout.shelves, values, state);
    }
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
    const { view, ranges, layout, shown, app: { state } } = this;
    view.look(state.camera, this.flatness);
    const palette = PALETTES[this.app.dark() ? 'dark' : 'light'];
    this.renderer.draw({ view, ranges, palette, styleOf: (quad) => this.styleOf(quad), ...this.marksOf() });
    this.labels.place({ view, ranges, layout, palette, shown });
  }

  /** Frames and lines over the maps: of the pinned cell, of the cell under the pointer, of what panels point at. */
  marksOf() {
    const { app: { state }, layout } = this, { network, cell, hover } = state, frames = [], links = [];
    for (const { layer, map } of state.marks) {
      const shelf = layout.shelves.find(({ first }) => first === layer);
      const quad = shelf && (shelf.isVector ? shelf.quads[0] : shelf.quads[map]);
      if (quad) frames.push({ corners: cornersOf(quad, 0, 0, quad.rows, quad.columns), width: 2.5 });
    }
    for (const place of [cell, hover]) if (place) frames.push(...framesOf(network, layout, place));
    const chosen = cell ?? hover, weights = state.weightsKey === state.valuesKey ? state.weights : null;
    if (!chosen) return { frames, links };
    const ring = ringOf(network, layout, chosen);
    links.push(...ring.links, ...linksOf(network, layout, chosen, state.values, weights));
    return { frames: [...ring.frames, ...frames], links };
  }

  /** 0 is plain, 2 is switched off. */
  styleOf(quad) {
    const shelf = this.layout.shelves[quad.shelf];
    return this.app.state.off.some(({ layer, map }) => layer === shelf.first && map === quad.map && !shelf.isVector) ? 2 : 0;
  }

  /** The cell under a pixel of the canvas, as state has it; null if there is none. */
  cellAt(x, y) {
    const hit = this.view.pick(x, y);
    if (!hit) return null;
    const shelf = this.layout.shelves[hit.quad.shelf];
    return shelf.isVector ? { layer: shelf.first, map: hit.x, y: 0, x: 0 } : { layer: shelf.first, map: hit.quad.map, y: hit.y, x: hit.x };
  }
}

/** Words over the stage, in the document: a label for each shelf, the classes' names, the legend, the value under the pointer. */

import { el, number, precise } from './dom.js';
import { indexOf, shape3 } from './explain.js';
import { shelfOf } from './links.js';
import { colorOf, css } from './palette.js';
import { cornersOf, groupsOf, middleOf, placeOf } from './layout.js';

const NARROW = 560; // pixels: below, labels stand above their shelves
const NAMES = 60; // pixels that the classes' names take, slanting
const LEGEND = 120; // pixels

export function makeLabels(app) {
  return new Labels(app);
}

/** What a shelf is called: "Convolution", "conv1", "6 × 28 × 28". */
export function wordsOf({ t, state: { network } }, shelf) {
  const { shape } = network.layers[shelf.shown], kind = t(shelf.isLast ? 'kind_output' : `kind_${shelf.kind}`);
  return { kind, name: shelf.kind === 'input' ? '' : nameOf(shelf.first), shape: shape.filter((n, i) => i === 0 || shape[1] * shape[2] > 1).join(' × ') };
}

/** A layer's name for people: of `s2.pool` and `s2.scale` it is `s2`. */
export function nameOf(layer) {
  return layer.split('.')[0];
}

class Labels {
  constructor(app) {
    this.app = app;
    this.shelves = shelvesWithoutPlace(app.state.network).map((shelf) => labelOf(app, shelf));
    this.classes = app.state.network.classes.map((_, i) => el('span', { class: 'label class' }, app.className(i)));
    this.tip = el('span', { class: 'tip', hidden: true });
    this.legend = el('div', { class: 'legend soft small' });
    this.gradient = el('canvas', { width: LEGEND, height: 1 });
    this.root = el('div', { class: 'labels', 'aria-hidden': 'true' }, ...this.shelves, ...this.classes, this.legend, this.tip);
  }

  /** Pixels that words need round the maps, and between the shelves. */
  marginsFor(width) {
    this.isNarrow = width < NARROW;
    const widest = Math.max(...this.shelves.map((node) => node.offsetWidth));
    return this.isNarrow
      ? { top: NAMES + 20, right: 10, bottom: 40, left: 10, gap: 21 }
      : { top: NAMES + 2, right: widest + 16, bottom: 56, left: 16, gap: 8 };
  }

  /** Puts all words where the maps are now. */
  place({ view, ranges, layout, palette, shown }) {
    const boxes = layout.quads.map((quad) => view.box([quad]));
    this.placeShelves(view, layout, boxes);
    this.placeClasses(view, layout.shelves.at(-1));
    this.placeTip(view, layout, shown);
    const { cell, hover } = this.app.state, chosen = hover ?? cell;
    const index = chosen ? layout.shelves.indexOf(shelfOf(layout, chosen)) : 1;
    this.showLegend(layout.shelves[index], ranges[index], palette);
  }

  placeShelves(view, layout, boxes) {
    layout.shelves.forEach((shelf, i) => {
      const node = this.shelves[i], size = { width: node.offsetWidth, height: node.offsetHeight };
      const corner = view.box([shelf.quads[0]]);
      const above = shelf.isLast ? { left: 4, top: corner.top - NAMES - size.height } : { left: corner.left, top: corner.top - size.height - 1 };
      const place = this.isNarrow ? above : besides(view.box([rightmost(shelf)]), size, boxes);
      const { width, height } = view.screen;
      const fits = place.left >= 0 && place.left + size.width <= width && place.top >= 0 && place.top + size.height <= height - 20;
      move(node, place, fits && !(this.isNarrow && boxes.some((box) => overlaps(box, place, size))));
    });
  }

  placeClasses(view, shelf) {
    this.classes.forEach((node, i) => {
      const [a, b] = cornersOf(shelf.quads[0], 0, i).map((corner) => view.toPixels(corner));
      const left = (a[0] + b[0]) / 2 - 2, top = Math.min(a[1], b[1]) - 15;
      node.style.transform = `translate(${left}px, ${top}px) rotate(-42deg)`;
      node.hidden = left < 0 || left > view.screen.width - 20 || top < 0 || top > view.screen.height - 20;
    });
  }

  /** The value of the cell under the pointer, above it. */
  placeTip(view, layout, shown) {
    const { hover, network } = this.app.state;
    this.tip.hidden = !hover;
    if (!hover) return;
    const shelf = shelfOf(layout, hover), layer = network.layers[shelf.shown], place = placeOf(shelf, hover.map, hover.y, hover.x);
    const [, height, width] = shape3(layer), where = height * width > 1 ? [hover.map, hover.y, hover.x] : [hover.map];
    this.tip.textContent = `${nameOf(shelf.first)}[${where.join(', ')}] = ${precise(shown[indexOf(layer, hover.map, hover.y, hover.x)])}`;
    const [x, y] = view.toPixels(middleOf(cornersOf(place.quad, place.y, place.x)));
    const left = Math.max(2, Math.min(view.screen.width - this.tip.offsetWidth - 2, x + 12));
    move(this.tip, { left, top: Math.max(2, y - 34) }, true);
  }

  showLegend(shelf, range, palette) {
    const text = [shelf.first, range.low, range.high, range.isLog, palette.gamma].join();
    if (this.legend.dataset.text === text) return;
    this.legend.dataset.text = text;
    const context = this.gradient.getContext('2d'), { low, high, center } = range;
    for (let i = 0; i < LEGEND; i++) {
      context.fillStyle = css(colorOf(low + ((high - low) * i) / (LEGEND - 1), range, palette));
      context.fillRect(i, 0, 1, 1);
    }
    const middle = low < center && center < high ? `${number(center, 1)} … ` : '';
    const { difference } = this.app.state, title = range.isLog ? this.app.t('log_scale') : difference?.title ?? '';
    this.legend.replaceChildren(el('span', {}, `${nameOf(shelf.first)} ${title}`), this.gradient, el('span', {}, `${number(low)} … ${middle}${number(high)}`));
  }
}

/** The shelves in their order, before anybody has laid them out. */
export function shelvesWithoutPlace(network) {
  const groups = groupsOf(network);
  return groups.map((group, i) => ({ ...group, shown: group.layers.at(-1), isLast: i === groups.length - 1 }));
}

function labelOf(app, shelf) {
  const { kind, name, shape } = wordsOf(app, shelf);
  return el('span', { class: 'label' }, kind, el('small', {}, ` ${name && `${name} · `}${shape}`));
}

/** The map at the upper right of a shelf. */
function rightmost(shelf) {
  return shelf.quads.reduce((best, quad) => (quad.x > best.x ? quad : best));
}

/** Right of a map, and of every other at the same height. */
function besides(own, size, boxes) {
  const top = (own.top + own.bottom - size.height) / 2;
  const level = boxes.filter((box) => box.top < top + size.height && box.bottom > top);
  return { left: Math.max(own.right, ...level.map((box) => box.right)) + 10, top };
}

function overlaps(box, { left, top }, { width, height }) {
  return box.left < left + width && box.right > left && box.top < top + height && box.bottom > top;
}

function move(node, { left, top }, isShown) {
  node.style.transform = `translate(${left}px, ${top}px)`;
  node.style.visibility = isShown ? 'visible' : 'hidden';
}

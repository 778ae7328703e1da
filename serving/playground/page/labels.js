/** Words over the stage: labels of shelves, the classes' names, the legend, the value under the pointer. */

import { el, number, precise, scientific } from './dom.js';
import { cellCorners, cornersOf, kindOf, middleOf, shelfOf, shelvesOf, valueOf, whereOf } from './layout.js';
import { colorOf, css } from './palette.js';

const NARROW = 560; // pixels: below, labels stand above their shelves
const NAMES = 60; // pixels that the classes' names take, slanting
const LEGEND = 120; // pixels

export class Labels {
  constructor(app) {
    const { classes } = app.state.network;
    this.app = app;
    this.shelves = shelvesOf(app.state.network).map((shelf) => labelOf(app, shelf));
    this.classes = classes.map((_, i) => el('span', { className: 'label class' }, app.className(i)));
    this.tip = el('span', { className: 'tip', hidden: true });
    this.legend = el('div', { className: 'legend soft small' });
    this.gradient = el('canvas', { width: LEGEND, height: 1 });
    this.root = el('div', { className: 'labels', 'aria-hidden': 'true' }, this.shelves, this.classes, this.legend, this.tip);
  }

  /** The room in pixels that words leave for the maps, and the gap that they need between the shelves. */
  roomIn({ width, height }) {
    this.isNarrow = width < NARROW;
    const widest = Math.max(...this.shelves.map((node) => node.offsetWidth));
    if (this.isNarrow) return { left: 10, top: NAMES + 20, width: width - 20, height: height - NAMES - 60, gap: 21 };
    return { left: 16, top: NAMES + 2, width: width - widest - 32, height: height - NAMES - 58, gap: 8 };
  }

  /** Puts all words where the maps are now. */
  place({ view, ranges, palette, shown }) {
    const { cell, hover, difference } = this.app.state, { shelves } = view.layout, chosen = hover ?? cell;
    this.placeShelves(view);
    this.placeClasses(view, shelves.at(-1).quads[0]);
    this.placeTip(view, hover, shown);
    const shelf = chosen ? shelfOf(shelves, chosen) : shelves[difference ? largestOf(ranges) : 1];
    this.showLegend(shelf, ranges[shelves.indexOf(shelf)], palette);
  }

  placeShelves(view) {
    const { layout: { shelves, quads }, screen } = view, boxes = quads.map((quad) => view.box([quad]));
    shelves.forEach((shelf, i) => {
      const node = this.shelves[i], { offsetWidth: width, offsetHeight: height } = node;
      const { left, top } = this.isNarrow ? above(view, shelf, height) : besides(view, shelf, height, boxes);
      const isOver = (box) => box.left < left + width && box.right > left && box.top < top + height && box.bottom > top;
      const fits = left >= 0 && left + width <= screen.width && top >= 0 && top + height <= screen.height - 20;
      move(node, left, top);
      node.style.visibility = fits && !(this.isNarrow && boxes.some(isOver)) ? 'visible' : 'hidden';
    });
  }

  placeClasses(view, quad) {
    const { screen } = view;
    this.classes.forEach((node, i) => {
      const [[x, y], [x1, y1]] = cornersOf(quad, 0, i).map((corner) => view.toPixels(corner)), left = (x + x1) / 2 - 2, top = Math.min(y, y1) - 15;
      move(node, left, top, 'rotate(-42deg)');
      node.hidden = left < 0 || left > screen.width - 20 || top < 0 || top > screen.height - 20;
    });
  }

  /** The value of the cell under the pointer, above it. */
  placeTip(view, hover, shown) {
    this.tip.hidden = !hover;
    if (!hover) return;
    const shelf = shelfOf(view.layout.shelves, hover), corners = cellCorners(shelf, hover);
    this.tip.textContent = wordsOf(shelf, hover, shown);
    const [x, y] = view.toPixels(middleOf(corners[0], corners[2]));
    move(this.tip, Math.max(2, Math.min(view.screen.width - this.tip.offsetWidth - 2, x + 12)), Math.max(2, y - 34));
  }

  showLegend({ name }, range, palette) {
    const { low, high, center, isLog } = range, text = [name, low, high, isLog, palette.gamma].join();
    if (this.legend.dataset.text === text) return;
    this.legend.dataset.text = text;
    const context = this.gradient.getContext('2d'), middle = low < center && center < high ? `${number(center, 1)} … ` : '', write = isLog ? scientific : number;
    for (let i = 0; i < LEGEND; i++) {
      context.fillStyle = css(colorOf(low + ((high - low) * i) / (LEGEND - 1), range, palette));
      context.fillRect(i, 0, 1, 1);
    }
    const title = isLog ? this.app.t('log_scale') : this.app.state.difference?.title ?? '';
    this.legend.replaceChildren(el('span', {}, `${name} ${title}`), this.gradient, el('span', {}, `${write(low)} … ${middle}${write(high)}`));
  }
}

/** Says what a cell's value is: "conv2[5, 4, 5] = −1.6312". */
export function wordsOf(shelf, cell, values) {
  return `${shelf.name}${whereOf(shelf, cell)} = ${precise(valueOf(shelf, values, cell))}`;
}

/** Index of the shelf that differs most. */
function largestOf(ranges) {
  const most = ({ low, high }) => Math.max(-low, high);
  return ranges.reduce((best, range, i) => (most(range) > most(ranges[best]) ? i : best), 1);
}

function labelOf({ t }, shelf) {
  const name = shelf.kind === 'input' ? '' : `${shelf.name} · `, shape = shelf.isVector ? shelf.maps : [shelf.maps, shelf.height, shelf.width].join(' × ');
  return el('span', { className: 'label' }, kindOf(t, shelf), el('small', {}, ` ${name}${shape}`));
}

/** Above a shelf's first map; above the last shelf and the names of its classes. */
function above(view, { isLast, quads }, height) {
  const { left, top } = view.box([quads[0]]);
  return isLast ? { left: 4, top: top - NAMES - height } : { left, top: top - height - 1 };
}

/** Right of a shelf's upper right map, and of all maps at the same height. */
function besides(view, { quads }, height, boxes) {
  const own = view.box([quads.reduce((best, quad) => (quad.x > best.x ? quad : best))]), top = (own.top + own.bottom - height) / 2;
  const level = boxes.filter((box) => box.top < top + height && box.bottom > top);
  return { left: Math.max(own.right, ...level.map(({ right }) => right)) + 10, top };
}

function move(node, left, top, more = '') {
  node.style.transform = `translate(${left}px, ${top}px) ${more}`;
}

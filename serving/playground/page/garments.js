/** A shelf of test images: a column for each class, five of the picture's ten rows. */

import { button, el, range } from './dom.js';

const COLUMNS = 10, ROWS = 5, SIDE = 28;
const KEYS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS };
let context = null; // with the whole picture, loaded once

/** The bytes of a garment: `index` is row * 10 + class. */
export async function garment(index) {
  context ??= await loadPicture();
  const { data } = context.getImageData((index % COLUMNS) * SIDE, Math.floor(index / COLUMNS) * SIDE, SIDE, SIDE);
  return Uint8Array.from({ length: SIDE * SIDE }, (_, i) => data[i * 4]);
}

async function loadPicture() {
  const picture = Object.assign(new Image(), { src: 'garments.png' });
  await picture.decode();
  const canvas = new OffscreenCanvas(picture.width, picture.height).getContext('2d', { willReadFrequently: true });
  canvas.drawImage(picture, 0, 0);
  return canvas;
}

/** Makes the buttons; a press sets `source`. */
export function makeGarments(app) {
  const { t } = app, { kind, index } = app.state.source;
  let first = kind === 'garment' && index >= ROWS * COLUMNS ? ROWS : 0; // row shown first
  const choose = (i) => app.set({ source: { kind: 'garment', index: first * COLUMNS + i } });
  const buttons = range(ROWS * COLUMNS).map((i) => button('', () => choose(i), { className: 'garment' }));
  const show = () => {
    const { source } = app.state, chosen = source.kind === 'garment' ? source.index - first * COLUMNS : -1;
    buttons.forEach((node, i) => {
      const row = first + Math.floor(i / COLUMNS), column = i % COLUMNS;
      node.style.backgroundPosition = `${(column / 9) * 100}% ${(row / 9) * 100}%`;
      node.setAttribute('aria-label', t('garment', { name: app.className(column), n: row + 1 }));
      node.setAttribute('aria-pressed', i === chosen);
      node.tabIndex = i === Math.max(0, chosen) % buttons.length ? 0 : -1;
    });
  };
  const onkeydown = (event) => {
    const to = buttons.indexOf(document.activeElement) + KEYS[event.key];
    if (!buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
    choose(to);
  };
  app.follow(['source'], show);
  const others = button(t('other_garments'), () => { first = ROWS - first; show(); }, { className: 'small' });
  return [el('div', { className: 'garments', role: 'group', 'aria-label': t('garments'), onkeydown }, buttons), others];
}

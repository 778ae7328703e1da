/** A shelf of test images to look at: ten columns for the ten classes, five rows of the ten that the picture holds. */

import { el } from './dom.js';

const COLUMNS = 10, ROWS = 5, SIDE = 28;
const KEYS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS };
let pixels = null; // of the whole picture, loaded once

/** The bytes of a garment: `index` is row * 10 + class. */
export async function garment(index) {
  pixels ??= await loadPixels();
  const image = new Uint8Array(SIDE * SIDE), top = Math.floor(index / COLUMNS) * SIDE, left = (index % COLUMNS) * SIDE;
  return image.map((_, i) => pixels[((top + Math.floor(i / SIDE)) * SIDE * COLUMNS + left + (i % SIDE)) * 4]);
}

async function loadPixels() {
  const picture = Object.assign(new Image(), { src: 'garments.png' });
  await picture.decode();
  const context = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, picture.width, picture.height).data;
}

/** Makes the buttons; a press sets `source`. */
export function makeGarments(app) {
  const { t } = app;
  let first = app.state.source.kind === 'garment' && app.state.source.index >= ROWS * COLUMNS ? ROWS : 0; // row shown first
  const buttons = Array.from({ length: ROWS * COLUMNS }, (_, i) => el('button', { class: 'garment', on: { click: () => choose(i) } }));
  const group = el('div', { class: 'garments', role: 'group', 'aria-label': t('garments'), on: { keydown: (event) => press(event) } }, ...buttons);
  const others = el('button', { class: 'small', on: { click: () => { first = ROWS - first; show(); } } }, t('other_garments'));

  const choose = (i) => app.set({ source: { kind: 'garment', index: first * COLUMNS + i } });
  function press(event) {
    const to = buttons.indexOf(document.activeElement) + KEYS[event.key];
    if (!buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
    choose(to);
  }
  function show() {
    const { source } = app.state, chosen = source.kind === 'garment' ? source.index - first * COLUMNS : -1;
    buttons.forEach((button, i) => {
      const row = first + Math.floor(i / COLUMNS), column = i % COLUMNS;
      button.style.backgroundPosition = `${(column / 9) * 100}% ${(row / 9) * 100}%`;
      button.setAttribute('aria-label', t('garment', { name: app.className(column), n: row + 1 }));
      button.setAttribute('aria-pressed', i === chosen);
      button.tabIndex = i === Math.max(0, chosen) % buttons.length ? 0 : -1;
    });
  }
  app.subscribe(['source'], show);
  show();
  return [group, others];
}

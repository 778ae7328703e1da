/** "Which pixels matter": the server classifies 170 copies of the image, each with a square of background on it. */

import { el, number } from './dom.js';
import { css, PALETTES } from './palette.js';

const SQUARE = 5, STRIDE = 2, SCALE = 7; // pixels; of the picture, pixels for one

export function makeOcclusion(app) {
  const { t } = app, result = el('div', { 'aria-live': 'polite' });
  const button = el('button', { id: 'occlusion', on: { click: () => ask() } }, t('occlusion_ask'));
  async function ask() {
    button.disabled = true;
    try {
      const image = app.state.image, { head, values } = await app.api.occlusion(image, { size: SQUARE, stride: STRIDE });
      if (app.state.image === image) show(app, result, image, head, values);
    } catch (error) {
      result.replaceChildren(problemOf(error));
    }
    button.disabled = false;
  }
  app.subscribe(['image'], () => {
    result.replaceChildren();
    app.set({ overlay: null });
  });
  return [el('section', { class: 'check' }, el('h2', {}, t('occlusion_heading')), el('p', { class: 'soft small' }, t('occlusion_about')), button, result)];
}

/** What the server refused, and the cure. */
export function problemOf({ reason, name, message, cure = '' }) {
  return el('p', { class: 'problem' }, `${reason ?? name}: ${message} ${cure}`);
}

function show(app, result, image, head, values) {
  const { t } = app, rows = head.rows ?? Math.sqrt(values.length), worst = values.indexOf(Math.max(...values));
  const place = (i) => STRIDE * i + 1; // of the square's middle
  const words = { name: app.className(head.label), loss: number(100 * values[worst], 1), row: place(Math.floor(worst / rows)), column: place(worst % rows) };
  const took = t('occlusion_took', { images: head.images, batches: head.batches, ms: (head.round_trip_us / 1000).toFixed(1) });
  app.set({ overlay: { values, height: rows, width: rows, title: t('occlusion_heading') } });
  result.replaceChildren(picture(app, image, values, rows, t('occlusion_most', words)), el('p', {}, t('occlusion_most', words)), el('p', { class: 'soft small' }, took));
}

/** The image in grey; over it, as strong as the loss, orange where covering costs, blue where it helps. */
function picture(app, image, values, rows, label) {
  const canvas = el('canvas', { width: 28 * SCALE, height: 28 * SCALE, role: 'img', 'aria-label': label, class: 'occlusion' });
  const context = canvas.getContext('2d'), reach = Math.max(...values.map(Math.abs)) || 1, { warm, cool } = PALETTES.dark;
  image.forEach((value, i) => {
    context.fillStyle = css([value, value, value]);
    context.fillRect((i % 28) * SCALE, Math.floor(i / 28) * SCALE, SCALE, SCALE);
  });
  values.forEach((value, i) => {
    context.globalAlpha = (0.85 * Math.abs(value)) / reach;
    context.fillStyle = css((value < 0 ? cool : warm).map((part) => 255 * part));
    const [x, y] = [i % rows, Math.floor(i / rows)].map((at) => (at * STRIDE + 0.5) * SCALE);
    context.fillRect(x, y, STRIDE * SCALE, STRIDE * SCALE);
  });
  return canvas;
}

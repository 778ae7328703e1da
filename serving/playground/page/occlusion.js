/** "Which pixels matter": the server classifies copies of the image, each with a square of background on it. */

import { button, el, note, number } from './dom.js';
import { isServed } from './header.js';
import { css, PALETTES } from './palette.js';

const SQUARE = 5, STRIDE = 2, SCALE = 7; // pixels; of the picture, pixels for one

export function makeOcclusion(app) {
  const { t } = app, result = el('div', { 'aria-live': 'polite' });
  const ask = button(t('occlusion_ask'), async () => {
    const { image } = app.state;
    ask.disabled = true;
    const found = await app.api.frame('api/occlusion', { size: SQUARE, stride: STRIDE }, image).then((answer) => described(app, image, answer), (error) => [problemOf(error)]);
    if (app.state.image === image) result.replaceChildren(...found);
    ask.disabled = false;
  }, { id: 'occlusion' });
  const served = el('p', { className: 'experiment' }, t('occlusion_served'));
  app.subscribe(['image'], () => result.replaceChildren());
  app.follow(['off', 'epoch', 'version'], (state) => { served.hidden = isServed(state); });
  return el('section', { className: 'check' }, el('h2', {}, t('occlusion_heading')), note(t('occlusion_about')), served, ask, result);
}

/** What the server refused, and the cure. */
export function problemOf({ reason, name, message, cure }) {
  return el('p', { className: 'problem' }, `${reason ?? name}: ${[message, cure].filter(Boolean).join('; ')}`);
}

function described({ t, className }, image, { head, values }) {
  const rows = Math.sqrt(values.length), worst = values.indexOf(Math.max(...values)), place = (i) => STRIDE * i + 1;
  const words = { name: className(head.label), loss: number(100 * values[worst], 1), row: place(Math.floor(worst / rows)), column: place(worst % rows) };
  const took = { images: head.images, batches: head.batches, ms: (head.round_trip_us / 1000).toFixed(1) };
  return [picture(image, values, rows, t('occlusion_most', words)), el('p', {}, t('occlusion_most', words)), note(t('occlusion_took', took))];
}

/** The image; over it, as strong as the loss, orange where covering costs, blue where it helps. */
function picture(image, values, rows, label) {
  const canvas = el('canvas', { width: 28 * SCALE, height: 28 * SCALE, role: 'img', 'aria-label': label, className: 'occlusion' });
  const context = canvas.getContext('2d'), reach = Math.max(...values.map(Math.abs)) || 1, { warm, cool } = PALETTES.dark;
  const paint = (color, x, y, side) => {
    context.fillStyle = css(color);
    context.fillRect(x * SCALE, y * SCALE, side * SCALE, side * SCALE);
  };
  image.forEach((value, i) => paint([value, value, value], i % 28, Math.floor(i / 28), 1));
  values.forEach((value, i) => {
    context.globalAlpha = (0.85 * Math.abs(value)) / reach;
    paint((value < 0 ? cool : warm).map((part) => 255 * part), (i % rows) * STRIDE + 0.5, Math.floor(i / rows) * STRIDE + 0.5, STRIDE);
  });
  return canvas;
}

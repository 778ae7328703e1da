/** The left column: the pad, what the network gets, garments of the test set, photographs. */

import { el } from './dom.js';
import { garment, makeGarments } from './garments.js';
import { makePad, SIZE } from './pad.js';
import { prepare } from './prepare.js';

export function mount(root, app) {
  const { t } = app;
  root.setAttribute('aria-label', t('input'));
  const pad = makePad(app), gets = el('canvas', { id: 'gets', width: 28, height: 28, role: 'img', 'aria-label': t('gets') });
  const hint = el('p', { class: 'soft small', role: 'note' });
  const fill = el('input', { type: 'checkbox', checked: app.state.fill, on: { change: () => app.set({ fill: fill.checked }) } });
  root.append(
    el('div', { class: 'pads' }, figure(pad.canvas, t('draw')), figure(gets, t('gets'))),
    el('p', { id: 'pad-keys', class: 'hidden' }, t('pad_keys')),
    el('div', { class: 'row tools' }, ...pad.tools, photographButton(app), el('label', { title: t('fill_why') }, fill, ` ${t('fill')}`)),
    hint,
    ...makeGarments(app),
  );
  app.subscribe(['source', 'ink', 'fill'], () => prepareImage(app));
  app.subscribe(['image', 'drawing', 'source', 'ink', 'fill'], () => showImage(app, gets, pad.canvas, hint));
  takePhotographs(root, app);
  if (app.state.image) showImage(app, gets, pad.canvas, hint);
  else prepareImage(app);
}

function figure(canvas, caption) {
  return el('figure', {}, canvas, el('figcaption', { class: 'soft small' }, caption));
}

/** Makes the network's image from what was drawn or chosen. */
async function prepareImage(app) {
  const { source, ink, fill } = app.state;
  if (source.kind === 'drawing') return app.set({ image: prepare(ink, fill).image });
  if (source.kind !== 'garment') return;
  const image = await garment(source.index);
  if (app.state.source === source) app.set({ image });
}

/** Paints the network's image; once the pen is up, says where an outline is open, or what was done to a photograph. */
function showImage(app, canvas, pad, hint) {
  const { image, source, drawing, ink, fill } = app.state, { t } = app;
  const context = canvas.getContext('2d'), pixels = context.createImageData(28, 28);
  image?.forEach((value, i) => pixels.data.set([value, value, value, 255], i * 4));
  context.putImageData(pixels, 0, 0);
  hint.textContent = '';
  if (source.kind === 'photograph') hint.textContent = t(source.inverted ? 'photograph_inverted' : 'photograph_prepared');
  if (source.kind !== 'drawing' || drawing || !fill) return;
  const { gap } = prepare(ink, fill);
  if (!gap) return;
  hint.textContent = t('open_outline');
  if (gap.x !== null) ringAt(pad, gap);
}

function ringAt(pad, { x, y, width = 8 }) {
  const context = pad.getContext('2d');
  context.strokeStyle = '#ff5d5d';
  context.lineWidth = 2;
  context.beginPath();
  context.arc(x, y, Math.max(6, width / 2 + 3), 0, 2 * Math.PI);
  context.stroke();
}

function photographButton(app) {
  const { t } = app;
  const file = el('input', { type: 'file', accept: 'image/png,image/jpeg,image/webp', hidden: true, on: { change: () => photograph(app, file.files[0]) } });
  return el('span', {}, file, el('button', { title: t('photograph_how'), on: { click: () => file.click() } }, t('photograph')));
}

/** Takes photographs that are dropped or pasted. */
function takePhotographs(root, app) {
  const end = new AbortController();
  app.cleanUp(() => end.abort());
  root.addEventListener('dragover', (event) => event.preventDefault(), end);
  root.addEventListener('drop', (event) => { event.preventDefault(); photograph(app, event.dataTransfer.files[0]); }, end);
  addEventListener('paste', (event) => photograph(app, event.clipboardData.files[0]), end);
}

/** Has the server prepare a photograph, and shows it on the pad with its box. */
async function photograph(app, blob) {
  if (!blob) return;
  try {
    const { head, image } = await app.api.photograph(blob);
    app.set({ image, source: { kind: 'photograph', ...head }, ink: new Uint8Array(SIZE * SIZE), problem: null });
    drawPhotograph(await createImageBitmap(blob), head.box);
  } catch (error) {
    app.set({ problem: { reason: error.reason ?? error.name, message: error.message, cure: error.cure ?? '' } });
  }
}

function drawPhotograph(bitmap, [top, left, bottom, right]) {
  const context = document.getElementById('pad').getContext('2d'), scale = SIZE / Math.max(bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0, bitmap.width * scale, bitmap.height * scale);
  context.strokeStyle = '#fdb863';
  context.lineWidth = 2;
  context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
}

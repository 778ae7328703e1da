/** The left column: the pad, what the network gets, garments of the test set, photographs. */

import { button, el } from './dom.js';
import { garment, makeGarments } from './garments.js';
import { paintGrey, Pad } from './pad.js';

export function mount(root, app) {
  const { t } = app, pad = new Pad(app), hint = el('p', { className: 'soft small', role: 'note' });
  const gets = el('canvas', { id: 'gets', width: 28, height: 28, role: 'img', 'aria-label': t('gets') });
  const fill = el('input', { type: 'checkbox', checked: app.state.fill, onchange: () => app.set({ fill: fill.checked }) });
  const figure = (canvas, caption) => el('figure', {}, canvas, el('figcaption', { className: 'soft small' }, caption));
  root.setAttribute('aria-label', t('input'));
  root.append(
    el('div', { className: 'pads' }, figure(pad.canvas, t('draw')), figure(gets, t('gets'))),
    el('p', { id: 'pad-keys', className: 'hidden' }, t('pad_keys')),
    el('div', { className: 'row tools' }, pad.tools, photographButtons(app), el('label', { title: t('fill_why') }, fill, ` ${t('fill')}`)),
    hint,
    ...makeGarments(app),
  );
  app.subscribe(['source', 'ink', 'fill'], () => prepareImage(app));
  app.subscribe(['source', 'ink', 'fill', 'drawing'], () => findGap(app));
  app.follow(['image', 'gap', 'drawing', 'source', 'ink'], () => showImage(app, gets, hint));
  takePhotographs(app);
  return app.state.image ? undefined : prepareImage(app).catch((problem) => app.set({ problem }));
}

/** Makes the network's image from what was drawn or chosen. */
async function prepareImage(app) {
  const { source, ink, fill } = app.state;
  let image = null;
  if (source.kind === 'garment') image = await garment(source.index);
  if (source.kind === 'drawing') image = (await import('./prepare.js')).prepare(ink, fill);
  if (image && app.state.source === source && app.state.ink === ink) app.set({ image });
}

/** Finds where an outline is open, once the pen is up: it takes longer than all else. */
async function findGap(app) {
  const { source, ink, fill, drawing } = app.state;
  if (drawing) return;
  const gap = source.kind === 'drawing' && fill ? (await import('./outline.js')).gapOf(ink) : null;
  if (app.state.source === source && app.state.ink === ink && app.state.fill === fill) app.set({ gap });
}

/** Paints the network's image; says if an outline is open, or what was done to a photograph. */
function showImage({ state, t }, canvas, hint) {
  const { image, gap, source, drawing } = state;
  if (image) paintGrey(canvas, image);
  hint.textContent = source.kind === 'photograph' ? t('photograph_prepared', { inverted: source.inverted ? t('photograph_inverted') : '' }) : '';
  if (gap && !drawing) hint.textContent = t('open_outline');
}

/** A file or, where the browser lets pages use it (localhost, https), the camera. */
function photographButtons(app) {
  const { t } = app, openCamera = async () => (await import('./webcam.js')).openCamera(app);
  const file = el('input', { type: 'file', accept: 'image/png,image/jpeg,image/webp', hidden: true, onchange: () => photograph(app, file.files[0]) });
  const choose = button(t('photograph'), () => file.click(), { title: t('photograph_how') });
  return [file, choose, navigator.mediaDevices ? button(t('camera'), openCamera) : null];
}

async function photograph(app, blob) {
  if (blob) (await import('./photograph.js')).photograph(app, blob);
}

/** Takes photographs dropped or pasted anywhere: else the browser would leave the page for them. */
function takePhotographs(app) {
  document.onpaste = (event) => photograph(app, event.clipboardData.files[0]);
  const isText = ({ target, dataTransfer }) => target.tagName === 'INPUT' && !dataTransfer.types.includes('Files'); // for a field
  document.ondragover = (event) => isText(event) || event.preventDefault();
  document.ondrop = (event) => { if (isText(event)) return; event.preventDefault(); photograph(app, event.dataTransfer.files[0]); };
}

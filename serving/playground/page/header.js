/** The page's head: which model is looked at, and how it is shown. */

import { el } from './dom.js';

const THEMES = ['system', 'light', 'dark'];

export function mount(root, app) {
  const { t, state } = app;
  document.title = t('title');
  const flat = toggle(t('flat'), () => app.set({ view: app.state.view === 'flat' ? '3d' : 'flat' }));
  const minus = toggle(t('minus'), () => app.set({ minus: !app.state.minus }));
  minus.title = t('minus_why');
  const theme = el('button', { on: { click: () => app.set({ theme: THEMES[(THEMES.indexOf(app.state.theme) + 1) % 3] }) } });
  const lang = el('button', { lang: state.lang === 'zh' ? 'en' : 'zh-CN', on: { click: () => app.set({ lang: app.state.lang === 'zh' ? 'en' : 'zh' }) } }, t('other_language'));
  const tour = el('button', { id: 'tour-button', on: { click: () => openTour(app) } }, t('tour'));
  const served = el('p', { id: 'served', class: 'soft' });
  root.append(el('h1', {}, t('title')), served, el('nav', { 'aria-label': t('display') }, flat, minus, theme, lang, tour));
  const show = () => {
    const { view, canTurn, minus: isMinus, theme: chosen } = app.state;
    flat.setAttribute('aria-pressed', view === 'flat' || !canTurn);
    flat.disabled = !canTurn;
    flat.title = canTurn ? '' : t('no_webgl');
    minus.setAttribute('aria-pressed', isMinus);
    theme.textContent = t(`theme_${chosen}`);
    served.replaceChildren(...servedParts(app));
  };
  app.subscribe(['view', 'canTurn', 'minus', 'theme', 'network', 'version', 'epoch', 'off'], show);
  show();
  if (state.tour !== null) openTour(app, true);
}

function toggle(text, click) {
  return el('button', { on: { click } }, text);
}

/** Says which model answers; in orange, what on the page is the reader's own experiment. */
function servedParts({ state, t }) {
  const { model, probe } = state.network;
  const parts = [`${model.name} ${t('version', { version: model.version })} · ${model.architecture} · ${model.precision} · `];
  const maps = { runtime: probe.runtime, on: probe.device };
  parts.push(model.backend && !probe.is_served_runtime ? t('two_runtimes', { ...model, ...maps }) : t('runs_on', maps));
  parts.push(` · sha ${model.model_sha256.slice(0, 8)}`);
  if (state.off.length || state.epoch !== null || state.version !== null) parts.push(el('strong', { class: 'experiment' }, t('experiment')));
  return parts;
}

/** Opens the tour; `isNew` builds it again, in another language. */
async function openTour(app, isNew = false) {
  const root = document.getElementById('tour');
  const { mount: mountTour } = await import('./tour.js');
  if (root.hidden || isNew) mountTour(root, app);
  root.hidden = false;
}

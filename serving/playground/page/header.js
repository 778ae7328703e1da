/** The page's head: which model is looked at, and how it is shown. */

import { button, el } from './dom.js';

const THEMES = ['system', 'light', 'dark'];

export function mount(root, app) {
  const { t, state: { lang, tour, network } } = app, other = lang === 'zh' ? 'en' : 'zh';
  const flat = button(t('flat'), () => app.set({ view: app.state.view === 'flat' ? '3d' : 'flat' }));
  const minus = button(t('minus'), () => app.set({ minus: !app.state.minus }), { title: t('minus_why') });
  const theme = button('', () => app.set({ theme: THEMES[(THEMES.indexOf(app.state.theme) + 1) % 3] }));
  const language = button(t('other_language'), () => app.set({ lang: other }), { lang: other === 'zh' ? 'zh-CN' : 'en' });
  const guide = button(t('tour'), () => openTour(app), { id: 'tour-button' });
  const served = el('p', { id: 'served', className: 'soft' }), told = el('span');
  document.title = t('title');
  root.append(el('h1', {}, t('title')), served, el('nav', { 'aria-label': t('display') }, flat, minus, theme, language, guide));
  app.follow(['view', 'canTurn', 'minus', 'theme', 'version', 'epoch', 'off'], (state) => {
    flat.setAttribute('aria-pressed', state.view === 'flat' || !state.canTurn);
    flat.disabled = !state.canTurn;
    flat.title = state.canTurn ? '' : t('no_webgl');
    minus.setAttribute('aria-pressed', state.minus);
    theme.textContent = t(`theme_${state.theme}`);
    served.replaceChildren(...servedParts(app, told));
  });
  if (network.model.precision === 'fp16' || isOtherRuntime(network)) import('./differences.js').then(({ tell }) => tell(told, app));
  if (tour !== null) openTour(app, true);
  app.subscribe(['tour'], (state) => state.tour !== null && openTour(app)); // by a link
}

/** Whether the answers come from another runtime than the maps. */
export function isOtherRuntime({ model, probe }) {
  return model.backend && !probe.is_served_runtime;
}

/** Whether what is shown is the served network, and not the reader's experiment. */
export function isServed({ off, epoch, version }) {
  return !off.length && epoch === null && version === null;
}

/** Says which model answers; in orange, that it is the reader's experiment. */
function servedParts({ state, t }, told) {
  const { model, probe } = state.network, runtime = isOtherRuntime(state.network) ? [] : [t('runs_on', { runtime: probe.runtime, on: probe.device })];
  const served = [`${model.name} ${t('version', model)}`, model.architecture, model.precision, ...runtime, `sha ${model.model_sha256.slice(0, 8)}`].join(' · ');
  return isServed(state) ? [served, told] : [served, told, el('strong', { className: 'experiment' }, t('experiment'))];
}

/** Opens the tour; `isNew` builds it again, in another language. */
async function openTour(app, isNew = false) {
  const root = document.getElementById('tour'), [{ mount: mountTour }] = await Promise.all([import('./tour.js'), app.loadMore()]);
  if (root.hidden || isNew) mountTour(root, app);
  root.hidden = false;
}

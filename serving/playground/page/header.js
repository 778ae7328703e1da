/** The page's head: which model is looked at, and how it is shown. */

import { button, el } from './dom.js';

const THEMES = ['system', 'light', 'dark'];

export function mount(root, app) {
  const { t, state: { lang, tour } } = app, other = lang === 'zh' ? 'en' : 'zh';
  const flat = button(t('flat'), () => app.set({ view: app.state.view === 'flat' ? '3d' : 'flat' }));
  const minus = button(t('minus'), () => app.set({ minus: !app.state.minus }), { title: t('minus_why') });
  const theme = button('', () => app.set({ theme: THEMES[(THEMES.indexOf(app.state.theme) + 1) % 3] }));
  const language = button(t('other_language'), () => app.set({ lang: other }), { lang: other === 'zh' ? 'zh-CN' : 'en' });
  const guide = button(t('tour'), () => openTour(app), { id: 'tour-button' });
  const served = el('p', { id: 'served', className: 'soft' });
  document.title = t('title');
  root.append(el('h1', {}, t('title')), served, el('nav', { 'aria-label': t('display') }, flat, minus, theme, language, guide));
  app.follow(['view', 'canTurn', 'minus', 'theme', 'version', 'epoch', 'off'], (state) => {
    flat.setAttribute('aria-pressed', state.view === 'flat' || !state.canTurn);
    flat.disabled = !state.canTurn;
    flat.title = state.canTurn ? '' : t('no_webgl');
    minus.setAttribute('aria-pressed', state.minus);
    theme.textContent = t(`theme_${state.theme}`);
    served.replaceChildren(...servedParts(app));
  });
  if (tour !== null) openTour(app, true);
}

/** Says which model answers; in orange, what on the page is the reader's own experiment. */
function servedParts({ state: { network: { model, probe }, off, epoch, version }, t }) {
  const maps = { runtime: probe.runtime, on: probe.device };
  const runtime = model.backend && !probe.is_served_runtime ? t('two_runtimes', { ...model, ...maps }) : t('runs_on', maps);
  const isServed = !off.length && epoch === null && version === null;
  const served = [`${model.name} ${t('version', model)}`, model.architecture, model.precision, runtime, `sha ${model.model_sha256.slice(0, 8)}`].join(' · ');
  return isServed ? [served] : [served, el('strong', { className: 'experiment' }, t('experiment'))];
}

/** Opens the tour; `isNew` builds it again, in another language. */
async function openTour(app, isNew = false) {
  const root = document.getElementById('tour'), [{ mount: mountTour }] = await Promise.all([import('./tour.js'), app.loadMore()]);
  if (root.hidden || isNew) mountTour(root, app);
  root.hidden = false;
}

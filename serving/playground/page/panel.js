/** The right column: tabs, each a module that is loaded when it is first opened. On phones it is a sheet from below. */

import { el } from './dom.js';

/** Tab, and its module; a module has `mount(root, app)`. */
const PANELS = [
  ['arithmetic', () => import('./arithmetic.js')],
  ['connections', () => import('./connections.js')],
  ['calculator', () => import('./calculator.js')],
  ['training', () => import('./training.js')],
  ['compare', () => import('./compare.js')],
];

export function mount(root, app) {
  const { t } = app, known = PANELS.map(([id]) => id);
  root.setAttribute('aria-label', t('panel'));
  const handle = makeHandle(root, app);
  const tabs = PANELS.map(([id]) => el('button', { id: `tab-${id}`, role: 'tab', 'aria-controls': `panel-${id}`, on: { click: () => app.set({ tab: id, sheet: true }) } }, t(`tab_${id}`)));
  const bodies = PANELS.map(([id]) => el('div', { id: `panel-${id}`, class: 'body', role: 'tabpanel', tabIndex: 0, hidden: true, 'aria-labelledby': `tab-${id}` }));
  const list = el('div', { role: 'tablist', class: 'tabs', 'aria-label': t('panel'), on: { keydown: (event) => press(event, tabs) } }, ...tabs);
  root.append(handle, list, ...bodies);
  const mounted = new Set();
  const show = async () => {
    const chosen = known.includes(app.state.tab) ? app.state.tab : known[0];
    PANELS.forEach(([id], i) => {
      tabs[i].setAttribute('aria-selected', id === chosen);
      tabs[i].tabIndex = id === chosen ? 0 : -1;
      bodies[i].hidden = id !== chosen;
    });
    if (mounted.has(chosen)) return;
    mounted.add(chosen);
    const index = known.indexOf(chosen);
    (await PANELS[index][1]()).mount(bodies[index], app);
  };
  app.subscribe(['tab'], show);
  show();
}

/** Arrow keys go from tab to tab. */
function press(event, tabs) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const to = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  to.focus();
  to.click();
}

/** The sheet's handle: a press opens or closes it, dragging too. */
function makeHandle(root, app) {
  const handle = el('button', { class: 'handle', 'aria-controls': 'panel' }, app.t('sheet'));
  let from = null, moved = 0;
  handle.addEventListener('pointerdown', (event) => {
    [from, moved] = [event.clientY, 0];
    handle.setPointerCapture(event.pointerId);
  });
  handle.addEventListener('pointermove', (event) => { if (from !== null) moved = event.clientY - from; });
  handle.addEventListener('pointerup', () => {
    from = null;
    if (Math.abs(moved) > 20) app.set({ sheet: moved < 0 });
  });
  handle.addEventListener('click', () => { if (Math.abs(moved) <= 20) app.set({ sheet: !app.state.sheet }); moved = 0; });
  const show = () => {
    root.classList.toggle('open', app.state.sheet);
    handle.setAttribute('aria-expanded', app.state.sheet);
  };
  app.subscribe(['sheet'], show);
  show();
  return handle;
}

/** The right column, on phones a sheet from below: tabs, each a module that is loaded when it is first opened. */

import { button, el } from './dom.js';

const TABS = ['arithmetic', 'connections', 'calculator', 'training', 'compare'];
const DRAGGED = 20; // pixels: a press that moved less is a click

export function mount(root, app) {
  const { t } = app;
  const choose = (tab) => {
    if (tab === app.state.tab) show(app.state); // again, if it could not be loaded
    app.set({ tab, sheet: true });
  };
  const tabs = TABS.map((id) => button(t(`tab_${id}`), () => choose(id), { id: `tab-${id}`, role: 'tab', 'aria-controls': `panel-${id}` }));
  const bodies = TABS.map((id) => el('div', { id: `panel-${id}`, className: 'body', role: 'tabpanel', tabIndex: 0, hidden: true, 'aria-labelledby': `tab-${id}` }));
  root.setAttribute('aria-label', t('panel'));
  root.append(makeHandle(root, app), el('div', { role: 'tablist', className: 'tabs', 'aria-label': t('panel'), onkeydown: (event) => press(event, tabs) }, tabs), ...bodies);
  const show = async ({ tab }) => {
    const chosen = Math.max(0, TABS.indexOf(tab));
    tabs.forEach((node, i) => {
      node.setAttribute('aria-selected', i === chosen);
      node.tabIndex = i === chosen ? 0 : -1;
      bodies[i].hidden = i !== chosen;
    });
    if (bodies[chosen].firstChild) return;
    const [{ mount: mountTab }] = await Promise.all([import(`./${TABS[chosen]}.js`), chosen && app.loadMore()]); // the first has its words
    if (!bodies[chosen].firstChild) mountTab(bodies[chosen], app);
  };
  app.follow(['tab'], show);
}

/** Arrow keys go from tab to tab. */
function press(event, tabs) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const to = tabs.at((tabs.indexOf(document.activeElement) + step) % tabs.length);
  event.preventDefault();
  to.focus();
  to.click();
}

/** The sheet's handle: a press opens or closes it, dragging too. */
function makeHandle(root, app) {
  const handle = button(app.t('panel'), null, { className: 'handle', 'aria-controls': 'panel' });
  let from = 0, moved = 0;
  Object.assign(handle, {
    onpointerdown(event) {
      [from, moved] = [event.clientY, 0];
      handle.setPointerCapture(event.pointerId);
    },
    onpointerup(event) {
      moved = event.clientY - from;
      if (Math.abs(moved) > DRAGGED) app.set({ sheet: moved < 0 });
    },
    onclick() {
      if (Math.abs(moved) <= DRAGGED) app.set({ sheet: !app.state.sheet });
      moved = 0;
    },
  });
  app.follow(['sheet'], ({ sheet }) => {
    root.classList.toggle('open', sheet);
    handle.setAttribute('aria-expanded', sheet);
  });
  return handle;
}

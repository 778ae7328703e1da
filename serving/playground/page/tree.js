/** The stage as a tree for readers and keys: shelves, and under each its maps. It is seen while it has the focus. */

import { el, number } from './dom.js';
import { shelvesOf, size, strongestOf, titleOf } from './layout.js';

export function makeTree(app) {
  const items = shelvesOf(app.state.network).map((shelf) => shelfItem(app, shelf));
  items[0].tabIndex = 0;
  const tree = el('ul', { className: 'tree card', role: 'tree', 'aria-label': app.t('tree') }, items);
  tree.onkeydown = (event) => press(app, event);
  tree.onclick = ({ target }) => choose(app, target.closest('[role=treeitem]'));
  tree.addEventListener('focusin', () => items.forEach((item) => describe(app, item))); // there is no `onfocusin`
  return tree;
}

function treeItem(shelf, map, ...children) {
  return Object.assign(el('li', { role: 'treeitem', tabIndex: -1 }, ...children), { place: [shelf, map] });
}

function shelfItem(app, shelf) {
  const maps = Array.from({ length: shelf.maps }, (_, map) => treeItem(shelf, map, mapName(app, shelf, map)));
  const item = treeItem(shelf, null, el('span', {}, titleOf(app.t, shelf)), el('ul', { role: 'group', hidden: true }, maps));
  item.setAttribute('aria-expanded', false);
  return item;
}

function mapName(app, { isLast }, map) {
  return isLast ? app.className(map) : app.t('map_number', { n: map });
}

/** Keeps a text that says of all shelves what the tree says of each. */
export function summarise(app, node) {
  const shelves = shelvesOf(app.state.network);
  app.follow(['values', 'drawing'], ({ values, drawing }) => {
    if (values && !drawing) node.textContent = shelves.map((shelf) => summaryOf(app, shelf)).join('. ');
  });
}

function describe(app, item) {
  if (app.state.values) item.setAttribute('aria-label', summaryOf(app, item.place[0]));
}

/** Says of a shelf how large it is, what its values reach from and to, and which map is strongest. */
function summaryOf(app, shelf) {
  const { values } = app.state, { layer, maps, height, width } = shelf;
  const own = values.subarray(layer.start, layer.start + size(layer.shape)), strongest = mapName(app, shelf, strongestOf(shelf, values).map);
  const words = { title: titleOf(app.t, shelf), maps, height, width, low: number(Math.min(...own)), high: number(Math.max(...own)), strongest };
  return app.t('shelf_summary', words);
}

function choose(app, item) {
  const { values } = app.state;
  if (item && values) app.set({ cell: strongestOf(item.place[0], values, item.place[1]) });
}

function press(app, event) {
  const { key, target: item, currentTarget: tree } = event, list = item.querySelector('ul');
  const seen = [...tree.querySelectorAll('[role=treeitem]')].filter((node) => !node.parentElement.hidden), i = seen.indexOf(item);
  const next = { ArrowDown: seen[i + 1], ArrowUp: seen[i - 1], Home: seen[0], End: seen.at(-1) };
  if (key in next) focus(item, next[key]);
  else if (key === 'ArrowRight' && list) list.hidden ? expand(item, list, true) : focus(item, list.firstChild);
  else if (key === 'ArrowLeft' && list && !list.hidden) expand(item, list, false);
  else if (key === 'ArrowLeft') focus(item, item.parentElement.closest('[role=treeitem]'));
  else if (key === 'Enter' || key === ' ') choose(app, item);
  else return;
  event.preventDefault();
}

function expand(item, list, isOpen) {
  list.hidden = !isOpen;
  item.setAttribute('aria-expanded', isOpen);
}

function focus(from, to) {
  if (!to) return;
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

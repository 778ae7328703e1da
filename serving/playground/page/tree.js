/** The stage as a tree for screen readers and keys: shelves, and under each its maps. It is seen while it has the focus. */

import { el, number } from './dom.js';
import { shape3 } from './explain.js';
import { shelvesWithoutPlace, wordsOf } from './labels.js';
import { strongestOf } from './pointer.js';

export function makeTree(app) {
  const { t, state: { network } } = app, shelves = shelvesWithoutPlace(network);
  const tree = el('ul', { class: 'tree card', role: 'tree', 'aria-label': t('tree') });
  const items = shelves.map((shelf) => shelfItem(app, shelf));
  tree.append(...items);
  items[0].tabIndex = 0;
  tree.addEventListener('keydown', (event) => press(app, tree, event));
  tree.addEventListener('focusin', () => shelves.forEach((shelf, i) => describe(app, shelf, items[i])));
  tree.addEventListener('click', ({ target }) => choose(app, target.closest('[role=treeitem]')));
  return tree;
}

function shelfItem(app, shelf) {
  const [maps] = shape3(app.state.network.layers[shelf.shown]), { kind, name } = wordsOf(app, shelf);
  const children = Array.from({ length: maps }, (_, map) =>
    Object.assign(el('li', { role: 'treeitem', tabIndex: -1 }, mapName(app, shelf, map)), { place: { shelf, map } }));
  const list = el('ul', { role: 'group', hidden: true }, ...children);
  const item = el('li', { role: 'treeitem', tabIndex: -1, 'aria-expanded': 'false' }, el('span', {}, `${kind} ${name}`), list);
  return Object.assign(item, { place: { shelf, map: null } });
}

function mapName(app, shelf, map) {
  return shelf.isLast ? app.className(map) : app.t('map_number', { n: map });
}

/** Says of a shelf how large it is, what its values reach from and to, and which map is strongest. */
function describe(app, shelf, item) {
  const { network, values } = app.state;
  if (!values) return;
  const layer = network.layers[shelf.shown], { kind, name } = wordsOf(app, shelf), [maps, height, width] = shape3(layer);
  const own = values.subarray(layer.start, layer.start + maps * height * width), strongest = strongestOf(app.state, shelf).map;
  const words = { kind, name, maps, height, width, low: number(Math.min(...own)), high: number(Math.max(...own)), strongest: mapName(app, shelf, strongest) };
  item.setAttribute('aria-label', app.t('shelf_summary', words));
}

function choose(app, item) {
  if (!item || !app.state.values) return;
  app.set({ cell: strongestOf(app.state, item.place.shelf, item.place.map) });
}

function press(app, tree, event) {
  const item = event.target, list = item.querySelector('ul'), { key } = event;
  const seen = [...tree.querySelectorAll('[role=treeitem]')].filter((node) => !node.parentElement.hidden), i = seen.indexOf(item);
  if (key === 'ArrowDown') focus(item, seen[i + 1]);
  else if (key === 'ArrowUp') focus(item, seen[i - 1]);
  else if (key === 'Home') focus(item, seen[0]);
  else if (key === 'End') focus(item, seen.at(-1));
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

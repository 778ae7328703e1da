/** A tab: which value is looked at, and how it comes about: formulas.js has the numbers. */

import { button, el, optionsOf } from './dom.js';
import { shelfOf, shelvesOf, titleOf } from './layout.js';

const FIELDS = { map: 'maps', y: 'height', x: 'width' }; // of a cell, and of its shelf

export function mount(root, app) {
  const body = el('div');
  root.append(makeChooser(app), body, makeCheck(app));
  app.follow(['tab', 'cell', 'values', 'weights', 'theme', 'drawing'], async ({ tab, cell, drawing }) => {
    if (tab !== 'arithmetic' || drawing) return;
    if (!cell) return body.replaceChildren(el('p', { className: 'soft' }, app.t('choose_a_cell')));
    const [{ partsOf }] = await Promise.all([import('./formulas.js'), app.loadMore()]);
    if (cell === app.state.cell) body.replaceChildren(...partsOf(app, cell));
  });
}

function makeCheck(app) {
  const result = el('div', { 'aria-live': 'polite' });
  const check = async () => {
    const [module] = await Promise.all([import('./verify.js'), app.loadMore()]);
    result.replaceChildren(...(await module.check(app)));
  };
  app.subscribe(['values'], () => result.replaceChildren());
  return el('section', { className: 'check' }, button(app.t('check_all'), check, { id: 'check' }), result);
}

/** Layer, map, row and column of the cell; and a switch for its map. */
function makeChooser(app) {
  const { t, state: { network } } = app, shelves = shelvesOf(network);
  const titles = shelves.map((shelf) => [shelf.first, titleOf(t, shelf)]);
  const layer = el('select', { onchange: () => app.set({ cell: { layer: layer.value, map: 0, y: 0, x: 0 } }) }, optionsOf([['', '…'], ...titles]));
  const fields = Object.entries(FIELDS).map(([key, count]) => {
    const put = () => {
      if (app.state.cell && field.value && field.checkValidity()) app.set({ cell: { ...app.state.cell, [key]: Number(field.value) } });
    };
    const field = el('input', { type: 'number', min: 0, step: 1, oninput: put });
    return { key, count, field, label: el('label', {}, t(`field_${key}`), ' ', field) };
  });
  const off = button('', () => toggleMap(app, app.state.cell), { className: 'small' });
  app.follow(['cell', 'off'], ({ cell }) => {
    const shelf = cell && shelfOf(shelves, cell);
    layer.value = cell?.layer ?? '';
    for (const { key, count, field, label } of fields) {
      field.max = shelf ? shelf[count] - 1 : -1;
      label.hidden = !shelf || shelf[count] <= 1;
      if (document.activeElement !== field || !cell) field.value = cell?.[key] ?? '';
    }
    off.hidden = shelf?.kind !== 'conv';
    if (!off.hidden) off.textContent = t(isOff(app, cell) ? 'switch_on' : 'switch_off', { n: cell.map });
  });
  return el('div', {}, el('div', { className: 'row chooser' }, el('label', {}, t('field_layer'), ' ', layer), fields.map(({ label }) => label), off));
}

/** Whether a map {layer, map} is switched off. */
export function isOff({ state: { off } }, { layer, map }) {
  return off.some((place) => place.layer === layer && place.map === map);
}

/** Switches a map off, or on again. */
export function toggleMap(app, { layer, map }) {
  const { off } = app.state;
  app.set({ off: isOff(app, { layer, map }) ? off.filter((place) => place.layer !== layer || place.map !== map) : [...off, { layer, map }] });
}

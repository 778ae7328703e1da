/** The cell of the arithmetic, as fields: layer, map, row, column. Arrow keys in a field go to the next one. */

import { el } from './dom.js';
import { shape3 } from './explain.js';
import { nameOf } from './labels.js';
import { groupsOf } from './layout.js';

/** Fills `root`, once; afterwards brings the fields up to date. */
export function makeChooser(root, app) {
  root.fields ??= build(root, app);
  root.fields.show();
}

function build(root, app) {
  const { t, state: { network } } = app, groups = groupsOf(network);
  const layer = el('select', { on: { change: () => app.set({ cell: { layer: layer.value, map: 0, y: 0, x: 0 } }) } });
  layer.append(el('option', { value: '' }, '…'), ...groups.map((group, i) => el('option', { value: group.first }, titleOf(t, group, i === groups.length - 1))));
  const fields = ['map', 'y', 'x'].map((key) => el('input', { type: 'number', min: 0, step: 1, on: { input: (event) => put(key, event.target) } }));
  const off = el('button', { class: 'small', on: { click: () => switchMap(app) } });
  function put(key, field) {
    const value = Number(field.value);
    if (app.state.cell && field.value !== '' && Number.isInteger(value) && value >= 0 && value <= Number(field.max)) app.set({ cell: { ...app.state.cell, [key]: value } });
  }
  const labels = fields.map((field, i) => el('label', {}, t(['field_map', 'field_row', 'field_column'][i]), ' ', field));
  root.append(el('div', { class: 'row chooser' }, el('label', {}, t('field_layer'), ' ', layer), ...labels, off));
  return { show: () => show(app, groups, layer, fields, labels, off) };
}

function titleOf(t, { kind, first }, isLast) {
  if (kind === 'input') return t('kind_input');
  return `${t(isLast ? 'kind_output' : `kind_${kind}`)} ${nameOf(first)}`;
}

function show(app, groups, layer, fields, labels, off) {
  const { cell, network, off: switchedOff } = app.state, group = cell && groups.find(({ first }) => first === cell.layer);
  layer.value = cell?.layer ?? '';
  const shape = group ? shape3(network.layers[group.layers.at(-1)]) : [0, 0, 0];
  fields.forEach((field, i) => {
    field.max = shape[i] - 1;
    if (document.activeElement !== field || !cell) field.value = cell ? [cell.map, cell.y, cell.x][i] : '';
    labels[i].hidden = shape[i] <= 1;
  });
  off.hidden = group?.kind !== 'conv';
  if (!off.hidden) off.textContent = app.t(switchedOff.some((place) => isMap(place, cell)) ? 'switch_on' : 'switch_off', { n: cell.map });
}

function switchMap(app) {
  const { cell, off } = app.state, others = off.filter((place) => !isMap(place, cell));
  app.set({ off: others.length < off.length ? others : [...off, { layer: cell.layer, map: cell.map }] });
}

function isMap({ layer, map }, cell) {
  return layer === cell.layer && map === cell.map;
}

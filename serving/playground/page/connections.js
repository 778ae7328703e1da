/** A tab: which input maps each output map of a convolution sees, and how many weights the layers have. */

import { el } from './dom.js';
import { shape3, size } from './explain.js';
import { nameOf } from './labels.js';
import { groupsOf } from './layout.js';

const WITH_WEIGHTS = ['conv', 'scale', 'linear'];

export function mount(root, app) {
  const { network } = app.state, groups = groupsOf(network);
  groups.forEach((group, i) => {
    const index = group.layers[0], [inputs] = shape3(network.layers[index - 1] ?? network.layers[0]);
    if (group.kind === 'conv' && inputs > 1) root.append(...connectionsOf(app, network.layers[index], inputs, groups[i - 1]));
  });
  root.append(weightsTable(app));
  app.subscribe(['tab'], ({ tab, marks }) => tab !== 'connections' && marks.length && app.set({ marks: [] }));
}

/** One convolution: a table where only some maps are connected, else a sentence. */
function connectionsOf({ t, ...app }, layer, inputs, below) {
  const outputs = layer.shape[0], heading = el('h2', {}, t('table_heading', { name: nameOf(layer.name), source: nameOf(below.first) }));
  if (!layer.table) return [heading, el('p', {}, t('table_full', { inputs, outputs }))];
  const [, , height, width] = app.state.network.weights[layer.weight].shape, numConnections = layer.table.flat().length;
  const counted = numConnections * height * width + (layer.bias ? outputs : 0);
  const zeros = (inputs * outputs - numConnections) * height * width;
  const words = { connections: numConnections, each: height * width, bias: outputs, counted, zeros };
  return [heading, el('p', {}, t('table_partial', { outputs, inputs })), connectionTable({ t, ...app }, layer, inputs, below), el('p', {}, t('table_counted', words))];
}

/** Rows are input maps, columns output maps; pointing at a column frames its maps in the picture. */
function connectionTable(app, layer, inputs, below) {
  const { t } = app, columns = layer.table.map((connected, output) => {
    const marks = [{ layer: layer.name, map: output }, ...connected.map((map) => ({ layer: below.first, map }))];
    return { connected, on: { pointerenter: () => app.set({ marks }), focus: () => app.set({ marks }) } };
  });
  const heads = columns.map(({ connected, on }, output) => el('th', { scope: 'col' }, el('button', { on, 'aria-label': t('table_column', { output, inputs: connected.join(', ') }) }, output)));
  const rows = Array.from({ length: inputs }, (_, input) => el('tr', {}, el('th', { scope: 'row' }, input),
    ...columns.map(({ connected, on }) => el('td', { class: connected.includes(input) ? 'on' : '', on }, connected.includes(input) ? '×' : ''))));
  const table = el('table', { class: 'grid connections', on: { pointerleave: () => app.set({ marks: [] }) } });
  table.append(el('caption', {}, t('table_caption')), el('thead', {}, el('tr', {}, el('td'), ...heads)), el('tbody', {}, ...rows));
  return el('div', { class: 'row tables' }, table);
}

/** All weights: shapes spelled out, and how many are counted. */
function weightsTable({ t, state: { network, lang } }) {
  let total = 0;
  const rows = network.layers.filter(({ kind }) => WITH_WEIGHTS.includes(kind)).map((layer) => {
    const { shape } = network.weights[layer.weight], isSparse = layer.kind === 'conv' && layer.table;
    const perOutput = shape.slice(2).reduce((a, b) => a * b, 1);
    const counted = (isSparse ? layer.table.flat().length * perOutput : size(shape)) + (layer.bias ? size(network.weights[layer.bias].shape) : 0);
    total += counted;
    return el('tr', {}, el('th', { scope: 'row' }, layer.name), el('td', {}, `(${shape.join(', ')})`), el('td', {}, counted.toLocaleString(lang)));
  });
  const head = el('tr', {}, ...['check_layer', 'table_shape', 'table_parameters'].map((key) => el('th', { scope: 'col' }, t(key))));
  const sum = el('tr', {}, el('th', { scope: 'row' }, 'Σ'), el('td'), el('td', {}, el('b', {}, total.toLocaleString(lang))));
  const table = el('table', { class: 'grid list' }, el('caption', {}, t('table_weights')), el('thead', {}, head), el('tbody', {}, ...rows, sum));
  return el('section', { class: 'check' }, table, el('p', { class: 'soft small' }, t('table_order')));
}

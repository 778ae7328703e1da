/** A tab: which maps each output map sees, and how many weights the layers have. */

import { el, note, range } from './dom.js';
import { shelvesOf, size } from './layout.js';
import { row, table } from './tables.js';

export function mount(root, app) {
  const shelves = shelvesOf(app.state.network);
  shelves.forEach((shelf, i) => {
    if (shelf.kind === 'conv' && shelves[i - 1].maps > 1) root.append(...connectionsOf(app, shelf, shelves[i - 1]));
  });
  root.append(weightsTable(app));
  app.subscribe(['tab'], ({ tab, marks }) => tab !== 'connections' && marks.length && app.set({ marks: [] }));
}

/** One convolution: a table where only some maps are connected, else a sentence. */
function connectionsOf(app, { name, base, maps: outputs }, below) {
  const { t, state: { network } } = app, inputs = below.maps, { table: connected } = base;
  const heading = el('h2', {}, t('table_heading', { name, source: below.name }));
  if (!connected) return [heading, el('p', {}, t('table_full', { inputs, outputs }))];
  const each = size(network.weights[base.weight].shape.slice(2)), connections = connected.flat().length, bias = base.bias ? outputs : 0;
  const words = { connections, each, bias, counted: connections * each + bias, zeros: (inputs * outputs - connections) * each };
  return [heading, el('p', {}, t('table_partial', { outputs, inputs })), connectionTable(app, base, below), el('p', {}, t('table_counted', words))];
}

/** Rows are input maps, columns output maps; pointing at a column frames its maps. */
function connectionTable({ t, set }, base, below) {
  const listeners = base.table.map((inputs, output) => {
    const marks = [{ layer: base.name, map: output }, ...inputs.map((map) => ({ layer: below.first, map }))], mark = () => set({ marks });
    return { onpointerenter: mark, onfocus: mark };
  });
  const heads = base.table.map((inputs, output) => el('button', { ...listeners[output], 'aria-label': t('table_column', { output, inputs: inputs.join(', ') }) }, output));
  const rows = range(below.maps).map((input) => row(input, base.table.map((inputs, output) => {
    const isOn = inputs.includes(input);
    return el('td', { className: isOn ? 'on' : '', ...listeners[output] }, isOn ? '×' : '');
  })));
  const node = table('connections', t('table_caption'), [null, ...heads], rows);
  node.onpointerleave = () => set({ marks: [] });
  return el('div', { className: 'row tables' }, node);
}

/** All weights: shapes spelled out, and how many are counted. */
function weightsTable({ t, state: { network, lang } }) {
  let total = 0;
  const rows = network.layers.filter(({ weight }) => weight).map((layer) => {
    const { shape } = network.weights[layer.weight], pairs = layer.table?.flat().length ?? shape[0] * (shape[1] ?? 1);
    const counted = pairs * size(shape.slice(2)) + (layer.bias ? size(network.weights[layer.bias].shape) : 0);
    total += counted;
    return row(layer.name, [`(${shape.join(', ')})`, counted.toLocaleString(lang)]);
  });
  rows.push(row('Σ', ['', el('b', {}, total.toLocaleString(lang))]));
  const head = ['check_layer', 'table_shape', 'table_parameters'].map((key) => t(key));
  return el('section', { className: 'check' }, table('list', t('table_weights'), head, rows), note(t('table_order')));
}

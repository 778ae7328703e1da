/** How one value comes about, with all its numbers, beside the one that is served. */

import { softmax } from './answer.js';
import { el, note, number, percent, precise, scientific } from './dom.js';
import { explain, FUNCTIONS, originOf, weightsOfValues, written } from './explain.js';
import { cellOf, shelfOf, shelvesOf, valueOf, whereOf } from './layout.js';
import { baseOf } from './links.js';
import { PALETTES } from './palette.js';
import { heatTable, row, table } from './tables.js';

const OPEN = 3; // input maps whose tables are open at first
const STRONGEST = 8; // products of a dense unit that are listed

/** All about a cell: what each layer of its shelf makes of what comes in, and whether the server says the same. */
export function partsOf(app, cell) {
  const { state, t } = app, { network, values } = state, weights = weightsOfValues(state);
  if (!values) return [];
  if (!weights) return [el('p', { className: 'soft' }, t('loading_weights'))];
  const shelves = shelvesOf(network), shelf = shelfOf(shelves, cell), at = baseOf(network, shelf, cell), parts = [];
  if (!at) return [el('p', {}, t('in_padding'))];
  const context = { t, state, at, below: shelves[shelves.indexOf(shelf) - 1], palette: PALETTES[app.dark() ? 'dark' : 'light'] };
  let z;
  for (const index of shelf.layers) {
    const layer = network.layers[index], explained = index && explain(network, values, weights, index, at);
    const told = KINDS[layer.kind](context, layer, explained, z);
    parts.push(...told.parts);
    z = told.z;
  }
  const served = valueOf(shelf, values, cell), words = { served: precise(served), here: precise(z), difference: scientific(Math.abs(z - served)) };
  return [...parts, el('p', { className: 'soft small compare' }, t('comparison', words)), ...(shelf.isLast ? [outputTable(app, cell)] : [])];
}

/** For each kind of layer, {parts, z}: what is shown, and the value, from the `z` of the layer before on the shelf. */
const KINDS = {
  input({ t, state, at }, { shape }) {
    const byte = state.looked[at.y * shape[2] + at.x], z = byte / 255;
    return { parts: [sum(t('pixel', { byte, value: number(z, 4) }))], z };
  },
  pad({ t }, { factor, offset }, _, share) { // in `classic` it also rescales
    if (factor === undefined) return { parts: [], z: share };
    const z = share * factor + offset;
    return { parts: [sum(t('rescaled', { share: number(share, 4), factor: number(factor, 3), offset: number(offset, 3), value: number(z, 4) }))], z };
  },
  conv({ t, at, below, palette }, layer, { terms, bias, z }) {
    const sizes = { size: below.height, padding: layer.padding[0], kernel: layer.kernel[0], stride: layer.stride[0], result: layer.shape[1] };
    const tables = terms.map((term, i) => windowTables(t, term, layer, originOf(layer, at), palette, i < OPEN));
    const products = terms.map((term) => `F${term.map} ${number(term.sum)}`).join(' + ');
    const beyond = layer.padding_mode === 'replicate' ? ` · ${t('replicate')}` : '';
    return { parts: [note(t('output_size', sizes), beyond), ...tables, sum(`${products} + ${t('bias')} ${number(bias)} = `, number(z))], z };
  },
  pool({ t, at, palette }, layer, { terms: [{ patch }], z }) {
    const [top, left] = originOf(layer, at), window = heatTable(patch, layer.kernel[1], { palette, caption: t('patch_of', { n: '' }), top, left });
    const result = el('span', { className: 'sum' }, `${t(layer.mode === 'max' ? 'maximum' : 'mean')} = `, el('b', {}, number(z, 4)));
    return { parts: [el('div', { className: 'row tables' }, window, result)], z };
  },
  linear({ t, below }, _, { terms, bias, z }) {
    const sorted = [...terms].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)), others = sorted.splice(STRONGEST);
    const rows = sorted.map((term) => row(whereOf(below, cellOf(below, term.map)), [term.patch[0], term.kernel[0], term.sum].map((value) => number(value))));
    const rest = others.reduce((total, term) => total + term.sum, 0);
    rows.push(row(t('other_inputs', { n: others.length }), ['', '', number(rest)]), row(t('bias'), ['', '', number(bias)]), row('Σ', ['', '', el('b', {}, number(z))]));
    const head = ['input_unit', 'value', 'weight', 'product'].map((key) => t(key));
    return { parts: [el('p', {}, t('dense_sum', { n: terms.length })), table('list', null, head, rows)], z };
  },
  scale({ t }, _, { coefficient, bias }, before) {
    const z = coefficient * before + bias;
    return { parts: [sum(`${t('coefficient')} ${number(coefficient, 3)} · ${number(before)} + ${t('bias')} ${number(bias, 3)} = `, number(z, 4))], z };
  },
  activation(context, layer, _, before) {
    const z = FUNCTIONS[layer.function](before);
    return { parts: [sum(`${written(layer.function, number(before))} = `, number(z, 4))], z };
  },
};

/** A line of arithmetic, with its result in bold. */
function sum(text, result = null) {
  return el('p', { className: 'sum' }, text, result && el('b', {}, result));
}

/** One input map's part of a sum: patch and kernel, side by side. */
function windowTables(t, { map, patch, kernel, sum: total }, layer, [top, left], palette, open) {
  const words = { n: map, sum: number(total) }, columns = layer.kernel[1];
  const tables = [
    heatTable(patch, columns, { palette, caption: t('patch_of', words), top, left }),
    el('span', { 'aria-hidden': 'true' }, '⊙'),
    heatTable(kernel, columns, { palette, caption: t('kernel_of', words), isBare: true }),
  ];
  return el('details', { open }, el('summary', {}, t('window_sum', words)), el('div', { className: 'row tables' }, tables));
}

/** The last step: from ten logits to ten probabilities, and those that Classify gave. */
function outputTable({ t, className, state: { values, network, head } }, { map }) {
  const logits = Array.from(values.subarray(network.layers.at(-1).start)), shares = softmax(logits), powers = logits.map(Math.exp);
  const served = head.answer?.probabilities, large = (value) => (value >= 1e4 ? value.toExponential(1) : number(value));
  const rows = logits.map((logit, i) =>
    row(className(i), [number(logit), large(powers[i]), percent(shares[i]), served ? percent(served[i]) : '–'], i === map ? 'chosen' : ''));
  const total = row('Σ', ['', large(powers.reduce((a, b) => a + b)), percent(1), '']);
  return table('list', t('softmax'), [t('class'), 'logit z', 'exp(z)', 'softmax', 'Classify'], [...rows, total]);
}

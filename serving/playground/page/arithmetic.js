/** A tab: how the chosen value comes about, with all its numbers, and whether the browser gets the same. */

import { makeChooser } from './chooser.js';
import { el, heatTable, number, precise, scientific } from './dom.js';
import { explain, FUNCTIONS, indexOf, shape3, size } from './explain.js';
import { groupsOf } from './layout.js';
import { baseOf } from './links.js';
import { outputTable } from './output.js';
import { PALETTES } from './palette.js';
import { makeCheck } from './check.js';

const OPEN = 3; // input maps whose tables are open at first
const STRONGEST = 8; // products of a dense unit that are listed

export function mount(root, app) {
  const body = el('div'), chooser = el('div');
  root.append(chooser, body, makeCheck(app));
  const show = () => {
    const { tab, cell, drawing } = app.state;
    if (tab !== 'arithmetic' || drawing) return;
    makeChooser(chooser, app);
    body.replaceChildren(...(cell ? partsOf(app, cell) : [el('p', { class: 'soft' }, app.t('choose_a_cell'))]));
  };
  app.subscribe(['tab', 'cell', 'values', 'weights', 'theme', 'drawing', 'off'], show);
  show();
}

/** All that is to be said of a cell. */
function partsOf(app, cell) {
  const { state, t } = app, { network, values } = state;
  if (!values) return [];
  if (!state.weights || state.weightsKey !== state.valuesKey) return [el('p', { class: 'soft' }, t('loading_weights'))];
  const group = groupsOf(network).find(({ first }) => first === cell.layer), base = baseOf(network, group, cell);
  const context = { app, t, state, network, values, cell, group, palette: PALETTES[app.dark() ? 'dark' : 'light'] };
  if (!base) return [el('p', {}, t('in_padding'))];
  const { parts, z } = group.kind === 'input' ? pixel(context, base) : firstLayer(context, base);
  const rest = restOf(context, z, base);
  const served = values[indexOf(network.layers[group.layers.at(-1)], cell.map, cell.y, cell.x)];
  const isOutput = group.layers.at(-1) === network.layers.length - 1;
  return [...parts, ...rest.parts, comparison(t, served, rest.z), ...(isOutput ? [outputTable(app, cell)] : [])];
}

/** A pixel: its byte, over 255; rescaled where the padding does that. */
function pixel({ t, state, network }, base) {
  const [layer, border] = network.layers, byte = state.looked[base.y * shape3(layer)[2] + base.x], share = byte / 255;
  const parts = [el('p', { class: 'sum' }, t('pixel', { byte, value: number(share, 4) }))];
  if (border.kind !== 'pad' || border.factor === undefined) return { parts, z: share };
  const z = share * border.factor + border.offset;
  parts.push(el('p', { class: 'sum' }, t('rescaled', { share: number(share, 4), factor: number(border.factor, 3), offset: number(border.offset, 3), value: number(z, 4) })));
  return { parts, z };
}

function firstLayer(context, base) {
  const { network, values, state, cell, group } = context, index = group.layers[0];
  const explained = explain(network, values, state.weights, index, cell.map, base.y, base.x);
  return { parts: KINDS[group.kind](context, explained, network.layers[index], network.layers[index - 1]), z: explained.z };
}

const KINDS = { conv: convolution, pool: pooling, linear: dense };

function convolution(context, { terms, bias, z, origin, kernel }, layer, source) {
  const { t } = context, [, height] = shape3(source);
  const sizes = { size: height, padding: layer.padding[0], kernel: kernel[0], stride: layer.stride[0], result: shape3(layer)[1] };
  const tables = terms.map((term, i) => windowTables(context, term, origin, kernel[1], terms.length <= OPEN || i < OPEN));
  const sum = el('p', { class: 'sum' });
  sum.append(terms.map((term) => `F${term.map} ${number(term.sum)}`).join(' + '), ` + ${t('bias')} ${number(bias)} = `, el('b', {}, number(z)));
  return [el('p', { class: 'soft small' }, t('output_size', sizes), layer.padding_mode === 'replicate' ? ` · ${t('replicate')}` : ''), ...tables, sum];
}

/** One input map's part of a sum: patch and kernel, side by side; folded unless it is among the first. */
function windowTables({ t, palette }, { map, patch, kernel, sum }, [top, left], columns, open) {
  const words = { n: map, sum: number(sum) };
  const patchTable = heatTable(patch, columns, { palette, caption: t('patch_of', words), top, left });
  const kernelTable = heatTable(kernel, columns, { palette, caption: t('kernel_of', words), isBare: true });
  return el('details', { open }, el('summary', {}, t('window_sum', words)), el('div', { class: 'row tables' }, patchTable, el('span', { 'aria-hidden': 'true' }, '⊙'), kernelTable));
}

function pooling({ t, palette }, { terms: [{ patch }], z, origin, kernel }, layer) {
  const table = heatTable(patch, kernel[1], { palette, caption: t('patch_of', { n: '' }), top: origin[0], left: origin[1] });
  return [el('div', { class: 'row tables' }, table, el('span', { class: 'sum' }, `${t(layer.mode === 'max' ? 'maximum' : 'mean')} = `, el('b', {}, number(z, 4))))];
}

function dense({ t }, { terms, bias, z }, layer, source) {
  const sorted = [...terms].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum)), rest = sorted.slice(STRONGEST).reduce((sum, term) => sum + term.sum, 0);
  const [, height, width] = shape3(source);
  const where = (i) => (height * width === 1 ? `${i}` : `${Math.floor(i / (height * width))}, ${Math.floor((i % (height * width)) / width)}, ${i % width}`);
  const rows = sorted.slice(0, STRONGEST).map(({ map, patch, kernel, sum }) => row(`[${where(map)}]`, number(patch[0]), number(kernel[0]), number(sum)));
  rows.push(row(t('other_inputs', { n: Math.max(0, terms.length - STRONGEST) }), '', '', number(rest)), row(t('bias'), '', '', number(bias)), row('Σ', '', '', el('b', {}, number(z))));
  const head = el('tr', {}, ...['input_unit', 'value', 'weight', 'product'].map((key) => el('th', { scope: 'col' }, t(key))));
  return [el('p', {}, t('dense_sum', { n: size(source.shape) })), el('table', { class: 'grid list' }, el('thead', {}, head), el('tbody', {}, ...rows))];
}

function row(name, ...cells) {
  return el('tr', {}, el('th', { scope: 'row' }, name), ...cells.map((cell) => el('td', {}, cell)));
}

/** What happens to the value on the same shelf: coefficient and bias, activation. */
function restOf({ t, network, values, state, cell, group }, z, base) {
  const parts = [];
  for (const index of group.layers.slice(1)) {
    const layer = network.layers[index];
    if (layer.kind === 'scale') {
      const { terms: [{ kernel }], bias } = explain(network, values, state.weights, index, cell.map, base.y, base.x);
      const next = kernel[0] * z + bias;
      parts.push(el('p', { class: 'sum' }, `${t('coefficient')} ${number(kernel[0], 3)} · ${number(z)} + ${t('bias')} ${number(bias, 3)} = `, el('b', {}, number(next, 4))));
      z = next;
    } else if (layer.kind === 'activation') {
      parts.push(el('p', { class: 'sum' }, `${t(`function_${layer.function}`, { z: number(z) })} = `, el('b', {}, number(FUNCTIONS[layer.function](z), 4))));
      z = FUNCTIONS[layer.function](z);
    }
  }
  return { parts, z };
}

function comparison(t, served, here) {
  return el('p', { class: 'soft small compare' }, t('comparison', { served: precise(served), here: precise(here), difference: scientific(Math.abs(here - served)) }));
}

/** A tab: how large a layer's result is. A window slides over a small square of numbers, step by step. */

import { el, number } from './dom.js';
import { LIMITS, numberAt, problemOf, sizesOf, stepOf, weightAt } from './sliding.js';

const SHOWN_TERMS = 9;
let settings = { size: 5, kernel: 3, padding: 0, mode: 'zeros', stride: 1, operation: 'conv' }; // kept when the language changes
let step = 0;

export function mount(root, app) {
  const { t } = app, result = el('div', { class: 'slide' }), words = el('div', { 'aria-live': 'polite' });
  const slider = el('input', { type: 'range', min: 0, on: { input: () => { step = Number(slider.value); show(); } } });
  const label = el('label', { class: 'range' }, el('span'), slider);
  const change = (patch) => {
    settings = { ...settings, ...patch };
    step = 0;
    show();
  };
  function show() {
    const problem = problemOf(settings);
    label.hidden = Boolean(problem);
    words.replaceChildren(...(problem ? [el('p', { class: 'problem' }, t(...problem))] : sentences(app)));
    result.replaceChildren(...(problem ? [] : [inputTable(app), outputTable(app)]));
    if (problem) return;
    const last = sizesOf(settings).result ** 2;
    Object.assign(slider, { max: last - 1, value: step });
    label.firstChild.textContent = t('calc_step', { step: step + 1, last });
  }
  root.append(el('p', { class: 'soft small' }, t('calc_about')), makeFields(app, change), words, label, result);
  show();
}

function makeFields({ t }, change) {
  const numbers = Object.entries(LIMITS).map(([key, [min, max]]) => {
    const field = el('input', { type: 'number', min, max, value: settings[key], on: { input: () => field.checkValidity() && field.value && change({ [key]: Number(field.value) }) } });
    return el('label', {}, t(`calc_${key}`), ' ', field);
  });
  const choice = (key, values) => {
    const options = values.map((value) => el('option', { value, selected: settings[key] === value }, t(`calc_${value}`)));
    return el('label', {}, t(`calc_${key}`), ' ', el('select', { on: { change: ({ target }) => change({ [key]: target.value }) } }, ...options));
  };
  return el('div', { class: 'row chooser' }, choice('operation', ['conv', 'avg', 'max']), ...numbers, choice('mode', ['zeros', 'replicate']));
}

/** The formula, what is lost, and the arithmetic of this step. */
function sentences({ t }) {
  const { result, rest } = sizesOf(settings), { pairs, value } = stepOf(settings, step);
  const parts = [el('p', { class: 'sum' }, t('output_size', { ...settings, result }))];
  if (rest) parts.push(el('p', { class: 'soft small' }, t('calc_lost', { n: rest })));
  const written = pairs.slice(0, SHOWN_TERMS).map(([a, w]) => (settings.operation === 'conv' ? `${short(a)}·${short(w)}` : short(a)));
  if (pairs.length > SHOWN_TERMS) written.push('…');
  const line = { conv: () => written.join(' + '), avg: () => `(${written.join(' + ')}) / ${pairs.length}`, max: () => `max(${written.join(', ')})` };
  parts.push(el('p', { class: 'sum' }, `${line[settings.operation]()} = `, el('b', {}, short(value))));
  return parts;
}

function short(value) {
  return value === -Infinity ? '−∞' : Number.isInteger(value) ? String(value) : number(value);
}

/** The square with its padding: the window is framed, each of its numbers with its weight. */
function inputTable({ t }) {
  const { size, padding, kernel, operation } = settings, { rest } = sizesOf(settings), { top, left } = stepOf(settings, step);
  const indices = Array.from({ length: size + 2 * padding }, (_, i) => i - padding), last = size + padding - rest;
  const cell = (y, x) => {
    const isIn = y >= top && y < top + kernel && x >= left && x < left + kernel;
    const isPadding = y < 0 || x < 0 || y >= size || x >= size;
    const classes = [isIn && 'window', isPadding && 'padding', (y >= last || x >= last) && 'lost'].filter(Boolean).join(' ');
    return el('td', { class: classes }, short(numberAt(settings, y, x)), ...(isIn && operation === 'conv' ? [el('sub', {}, `×${weightAt(y - top, x - left)}`)] : []));
  };
  return squareTable(t('calc_input'), indices, cell);
}

/** What has come out up to this step. */
function outputTable({ t }) {
  const { result } = sizesOf(settings), indices = Array.from({ length: result }, (_, i) => i);
  const cell = (y, x) => {
    const at = y * result + x;
    return el('td', { class: at === step ? 'window' : '' }, at <= step ? short(stepOf(settings, at).value) : '');
  };
  return squareTable(t('calc_output'), indices, cell);
}

function squareTable(caption, indices, cell) {
  const head = el('tr', {}, el('td'), ...indices.map((x) => el('th', { scope: 'col' }, number(x, 0))));
  const rows = indices.map((y) => el('tr', {}, el('th', { scope: 'row' }, number(y, 0)), ...indices.map((x) => cell(y, x))));
  return el('table', { class: 'grid square' }, el('caption', {}, caption), el('thead', {}, head), el('tbody', {}, ...rows));
}

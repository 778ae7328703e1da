/** A tab: how large a layer's result is. A window slides over a small square. */

import { el, note, number, optionsOf, range } from './dom.js';
import { LIMITS, numberAt, problemOf, sizesOf, stepOf, weightAt } from './sliding.js';
import { row, table } from './tables.js';

const SHOWN_TERMS = 9;
let settings = { size: 5, kernel: 3, padding: 0, mode: 'zeros', stride: 1, operation: 'conv' }; // kept when the language changes
let step = 0;

export function mount(root, { t }) {
  const result = el('div', { className: 'slide' }), words = el('div', { 'aria-live': 'polite' });
  const slider = el('input', { type: 'range', min: 0, oninput: () => { step = Number(slider.value); show(); } });
  const label = el('label', { className: 'range' }, el('span'), slider);
  const change = (patch) => {
    settings = { ...settings, ...patch };
    step = 0;
    show();
  };
  function show() {
    const problem = problemOf(settings);
    label.hidden = Boolean(problem);
    words.replaceChildren(...(problem ? [el('p', { className: 'problem' }, t(...problem))] : sentences(t)));
    result.replaceChildren(...(problem ? [] : [inputTable(t), outputTable(t)]));
    if (problem) return;
    const last = sizesOf(settings).result ** 2;
    Object.assign(slider, { max: last - 1, value: step });
    label.firstChild.textContent = t('calc_step', { step: step + 1, last });
  }
  root.append(note(t('calc_about')), makeFields(t, change), words, label, result);
  show();
}

function makeFields(t, change) {
  const labelled = (key, field) => el('label', {}, t(`calc_${key}`), ' ', field);
  const numbers = Object.entries(LIMITS).map(([key, [min, max]]) => {
    const put = () => field.checkValidity() && field.value && change({ [key]: Number(field.value) });
    const field = el('input', { type: 'number', min, max, value: settings[key], oninput: put });
    return labelled(key, field);
  });
  const choice = (key, values) =>
    labelled(key, el('select', { onchange: ({ target }) => change({ [key]: target.value }) }, optionsOf(values.map((value) => [value, t(`calc_${value}`)]), settings[key])));
  return el('div', { className: 'row chooser' }, choice('operation', ['conv', 'avg', 'max']), numbers, choice('mode', ['zeros', 'replicate']));
}

/** The formula, what is lost, and the arithmetic of this step. */
function sentences(t) {
  const { result, rest } = sizesOf(settings), { pairs, value } = stepOf(settings, step), { operation } = settings;
  const written = pairs.slice(0, SHOWN_TERMS).map(([a, w]) => (operation === 'conv' ? `${short(a)}·${short(w)}` : short(a)));
  if (pairs.length > SHOWN_TERMS) written.push('…');
  const sum = written.join(' + '), line = { conv: sum, avg: `(${sum}) / ${pairs.length}`, max: `max(${written.join(', ')})` };
  return [
    el('p', { className: 'sum' }, t('output_size', { ...settings, result })),
    ...(rest ? [note(t('calc_lost', { n: rest }))] : []),
    el('p', { className: 'sum' }, `${line[operation]} = `, el('b', {}, short(value))),
  ];
}

function short(value) {
  return value === -Infinity ? '−∞' : Number.isInteger(value) ? String(value) : number(value);
}

/** The square with its padding: the window is framed, each of its numbers with its weight. */
function inputTable(t) {
  const { size, padding, kernel, operation } = settings, { top, left } = stepOf(settings, step), last = size + padding - sizesOf(settings).rest;
  return squareTable(t('input'), range(size + 2 * padding).map((i) => i - padding), (y, x) => {
    const isIn = y >= top && y < top + kernel && x >= left && x < left + kernel;
    const isPadding = y < 0 || x < 0 || y >= size || x >= size;
    const className = [isIn && 'window', isPadding && 'padding', (y >= last || x >= last) && 'lost'].filter(Boolean).join(' ');
    return el('td', { className }, short(numberAt(settings, y, x)), isIn && operation === 'conv' ? el('sub', {}, `×${weightAt(y - top, x - left)}`) : null);
  });
}

/** What has come out up to this step. */
function outputTable(t) {
  const { result } = sizesOf(settings);
  return squareTable(t('calc_output'), range(result), (y, x) => {
    const at = y * result + x;
    return el('td', { className: at === step ? 'window' : '' }, at <= step ? short(stepOf(settings, at).value) : '');
  });
}

function squareTable(caption, indices, cell) {
  const names = indices.map((i) => number(i, 0));
  return table('square', caption, [null, ...names], indices.map((y, i) => row(names[i], indices.map((x) => cell(y, x)))));
}

/** The last step: from ten logits to ten probabilities, and those that Classify gave. */

import { softmax } from './answer.js';
import { el, number } from './dom.js';

export function outputTable(app, cell) {
  const { t, state: { network, values, head } } = app, { start } = network.layers.at(-1);
  const logits = Array.from(values.subarray(start, start + 10)), powers = logits.map(Math.exp), shares = softmax(logits);
  const served = head.answer?.probabilities;
  const rows = logits.map((logit, i) => el('tr', { class: i === cell.map ? 'chosen' : '' }, el('th', { scope: 'row' }, app.className(i)),
    ...[number(logit), large(powers[i]), percent(shares[i]), served ? percent(served[i]) : '–'].map((text) => el('td', {}, text))));
  const sum = el('tr', {}, el('th', { scope: 'row' }, 'Σ'), el('td'), el('td', {}, large(powers.reduce((a, b) => a + b))), el('td', {}, percent(1)), el('td'));
  const head1 = el('tr', {}, el('th', { scope: 'col' }, t('class')), ...['logit z', 'exp(z)', 'softmax', 'Classify'].map((text) => el('th', { scope: 'col' }, text)));
  return el('table', { class: 'grid list' }, el('caption', {}, t('softmax')), el('thead', {}, head1), el('tbody', {}, ...rows, sum));
}

function large(value) {
  return value >= 1e4 ? value.toExponential(1) : number(value);
}

function percent(share) {
  return `${(100 * share).toFixed(2)} %`;
}

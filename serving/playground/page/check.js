/** "Check all values": the browser computes everything again; a table says how far off the worst is, layer by layer. */

import { el, scientific } from './dom.js';
import { verify } from './verify.js';

export function makeCheck(app) {
  const { t } = app, result = el('div', { 'aria-live': 'polite' });
  const button = el('button', { id: 'check', on: { click: async () => result.replaceChildren(...(await check(app))) } }, t('check_all'));
  app.subscribe(['values'], () => result.replaceChildren());
  return el('section', { class: 'check' }, button, result);
}

async function check(app) {
  await app.loadWeights();
  const { t, state } = app, { network, values, weights, looked, off } = state;
  if (state.weightsKey !== state.valuesKey) return [el('p', {}, t('loading_weights'))];
  const began = performance.now(), rows = verify(network, values, switchedOff(network, weights, off), looked);
  const isRight = rows.every(({ share }) => share <= 1), ms = Math.round(performance.now() - began);
  const verdict = el('p', { class: isRight ? 'good' : 'bad' }, t(isRight ? 'check_right' : 'check_wrong', { n: network.num_values.toLocaleString(state.lang), ms }));
  return [verdict, tableOf(app, rows)];
}

/** The weights as the server used them: those of a map that is switched off are 0. */
function switchedOff(network, weights, off) {
  if (!off.length) return weights;
  const changed = weights.slice();
  for (const { layer, map } of off) {
    const { weight, bias } = network.layers.find(({ name }) => name === layer);
    for (const name of [weight, bias]) {
      if (!name) continue;
      const { start, shape } = network.weights[name], each = shape.slice(1).reduce((a, b) => a * b, 1);
      changed.fill(0, start + map * each, start + (map + 1) * each);
    }
  }
  return changed;
}

function tableOf({ t }, rows) {
  const head = el('tr', {}, ...['layer', 'values', 'worst', 'of_tolerance'].map((key) => el('th', { scope: 'col' }, t(`check_${key}`))));
  const body = rows.map(({ name, count, worst, share }) => el('tr', { class: share <= 1 ? '' : 'bad' }, el('th', { scope: 'row' }, name),
    el('td', {}, count), el('td', {}, scientific(worst)), el('td', {}, `${share <= 1 ? '✓' : '✗'} ${(100 * share).toFixed(0)} %`)));
  return el('table', { class: 'grid list' }, el('thead', {}, head), el('tbody', {}, ...body));
}

/** "Check all values": computes every one again, and holds it against the server's by the export gate's tolerances. */

import { el, scientific } from './dom.js';
import { explain, weightsOfValues } from './explain.js';
import { cellOf, shape3, size } from './layout.js';
import { row, table } from './tables.js';

/** [rtol, atol] of the export gate (atelier/contract.py): |difference| <= atol + rtol * |value|. */
export const TOLERANCES = { fp32: [1e-5, 1e-5], tf32: [2e-3, 1.5e-2], fp16: [2e-3, 1.5e-2], bf16: [2e-2, 2e-1], int8: [5e-2, 4e-1] };

/**
 * Computes all values in float64, each layer from what the server says of the one before it. Returns for each layer {name,
 * count, worst, share}: the largest difference, and the largest share of the tolerance.
 */
export function verify(net, values, weights, image) {
  const [rtol, atol] = TOLERANCES[net.model.precision];
  return net.layers.map((layer, index) => {
    const [, height, width] = shape3(layer), count = size(layer.shape);
    let worst = 0, share = 0;
    for (let i = 0; i < count; i++) {
      const here = index ? explain(net, values, weights, index, cellOf({ height, width }, i), false).z : image[i] / 255;
      const difference = Math.abs(here - values[layer.start + i]), used = difference / (atol + rtol * Math.abs(here));
      worst = Math.max(worst, difference);
      if (!(used <= share)) share = used; // NaN is too far off
    }
    return { name: layer.name, count, worst, share };
  });
}

/** What is shown of it. */
export async function check(app) {
  await app.loadWeights();
  const { t, state } = app, { network, values, looked } = state, weights = weightsOfValues(state);
  if (!weights) return [el('p', {}, t('loading_weights'))];
  const began = performance.now(), results = verify(network, values, weights, looked);
  const isRight = results.every(({ share }) => share <= 1), result = t(isRight ? 'check_right' : 'check_wrong');
  const words = { n: network.num_values.toLocaleString(state.lang), ms: Math.round(performance.now() - began), result };
  const rows = results.map(({ name, count, worst, share }) => {
    const isClose = share <= 1;
    return row(name, [count, scientific(worst), `${isClose ? '✓' : '✗'} ${(100 * share).toFixed(0)} %`], isClose ? '' : 'bad');
  });
  const head = ['layer', 'values', 'worst', 'of_tolerance'].map((key) => t(`check_${key}`));
  return [el('p', { className: isRight ? 'good' : 'bad' }, t('check_done', words)), table('list', null, head, rows)];
}

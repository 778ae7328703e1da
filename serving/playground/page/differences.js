/** Says in the head why the maps are not exactly those of the answer: in fp16, or if another runtime answers. */

import { scientific } from './dom.js';
import { isOtherRuntime } from './header.js';

export async function tell(node, app) {
  const { t, state: { network } } = app, { model, probe } = network;
  await app.loadMore();
  app.follow(['head'], ({ head }) => {
    const difference = head?.max_abs_diff_probability ?? null, isOther = isOtherRuntime(network), told = [
      isOther && t('two_runtimes', { ...model, runtime: probe.runtime, on: probe.device }),
      isOther && difference !== null && t('largest_of_probability', { difference: scientific(difference) }),
      model.precision === 'fp16' && t('rounded'),
    ];
    node.textContent = ` · ${told.filter(Boolean).join('; ')}`;
  });
}

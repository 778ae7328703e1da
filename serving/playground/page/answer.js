/** The answer: ten bars in a fixed order, what it cost, and why there is none if there is none. */

import { button, el, note, percent, scientific } from './dom.js';

export function mount(root, app) {
  const { t } = app, times = note(), problem = el('p', { className: 'problem', role: 'alert', hidden: true });
  const bars = app.state.network.classes.map((_, i) => {
    const fill = el('span', { className: 'fill' }), share = el('span', { className: 'share' });
    return { item: el('li', {}, el('span', { className: 'name' }, app.className(i)), el('span', { className: 'bar' }, fill), share), fill, share };
  });
  const list = el('ol', { className: 'bars' }, bars.map(({ item }) => item));
  root.setAttribute('aria-label', t('answer'));
  const why = () => app.state.values && app.set({ cell: { layer: app.state.network.layers.at(-1).name, map: topOf(probabilitiesOf(app.state)), y: 0, x: 0 }, tab: 'arithmetic', sheet: true });
  root.append(list, button(t('why'), why), times, problem);
  app.follow(['head', 'values', 'problem'], ({ head, values }) => {
    if (values) showBars(app, list, bars);
    times.textContent = head ? timesOf(t, head) : '';
    showProblem(app, problem);
  });
}

/** Classify's probabilities, or the maps' where it was not asked or refused. */
export function probabilitiesOf({ head, values, network }) {
  return head?.answer?.probabilities ?? softmax(Array.from(values.subarray(network.layers.at(-1).start)));
}

export function softmax(logits) {
  const largest = Math.max(...logits), powers = logits.map((z) => Math.exp(z - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** The class with the largest probability. */
export function topOf(probabilities) {
  return probabilities.indexOf(Math.max(...probabilities));
}

function showBars(app, list, bars) {
  const { state } = app, probabilities = probabilitiesOf(state), top = topOf(probabilities);
  list.classList.toggle('unserved', !state.head.answer);
  bars.forEach(({ item, fill, share }, i) => {
    item.classList.toggle('top', i === top);
    fill.style.width = `${100 * probabilities[i]}%`;
    share.textContent = percent(probabilities[i], 1);
  });
  if (!state.drawing) app.announce(app.t('answer_is', { name: app.className(top), share: (100 * probabilities[top]).toFixed(1) }));
}

/** What the answer cost; and how far the maps' probabilities are from it. */
function timesOf(t, { answer, refusal, probe_us: us, max_abs_diff_probability: difference }) {
  if (!answer) return [t(refusal ? 'no_answer' : 'not_asked'), t('maps_took', { us })].join(' · ');
  const took = { ms: (answer.round_trip_us / 1000).toFixed(1), queue: answer.queue_us, inference: answer.inference_us, batch: answer.batch_size };
  return [t('classify_took', took), t('maps_took', { us }), t('largest_difference', { difference: scientific(difference) })].join(' · ');
}

function showProblem({ state: { problem }, t, look }, node) {
  node.hidden = !problem;
  if (!problem) return node.replaceChildren();
  const { reason, name, message, cure } = problem;
  const told = reason === 'NO_ANSWER' ? t('server_gone') : [message, cure].filter(Boolean).join('; ');
  node.replaceChildren(el('strong', {}, reason ?? name), ` ${told} `, button(t('again'), look, { className: 'small' }));
}

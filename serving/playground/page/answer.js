/** The answer: ten bars in a fixed order, what it cost, and why there is none if there is none. */

import { el, scientific } from './dom.js';

export function mount(root, app) {
  const { t } = app;
  root.setAttribute('aria-label', t('answer'));
  const bars = app.state.network.classes.map((_, i) => barOf(app.className(i)));
  const times = el('p', { class: 'soft small' }), problem = el('p', { class: 'problem', role: 'alert', hidden: true });
  const list = el('ol', { class: 'bars' }, ...bars.map(({ item }) => item));
  root.append(list, times, problem);
  const show = () => {
    showBars(app, list, bars);
    times.textContent = timesOf(app);
    showProblem(app, problem);
  };
  app.subscribe(['head', 'values', 'problem'], show);
  show();
}

function barOf(name) {
  const fill = el('span', { class: 'fill' }), share = el('span', { class: 'share' });
  return { item: el('li', {}, el('span', { class: 'name' }, name), el('span', { class: 'bar' }, fill), share), fill, share };
}

/** The probabilities: Classify's, or if it was not asked or refused, those of the maps. */
export function probabilitiesOf({ head, values, network }) {
  return head?.answer?.probabilities ?? softmax(Array.from(values.subarray(network.layers.at(-1).start)));
}

export function softmax(logits) {
  const largest = Math.max(...logits), powers = logits.map((z) => Math.exp(z - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

function showBars(app, list, bars) {
  if (!app.state.values) return;
  const probabilities = probabilitiesOf(app.state), top = probabilities.indexOf(Math.max(...probabilities));
  list.classList.toggle('unserved', !app.state.head.answer);
  probabilities.forEach((probability, i) => {
    bars[i].item.classList.toggle('top', i === top);
    bars[i].fill.style.width = `${100 * probability}%`;
    bars[i].share.textContent = `${(100 * probability).toFixed(1)} %`;
  });
  if (!app.state.drawing) app.announce(app.t('answer_is', { name: app.className(top), share: (100 * probabilities[top]).toFixed(1) }));
}

/** What the answer cost; and how far the maps' probabilities are from it. */
function timesOf({ state: { head }, t }) {
  if (!head) return '';
  const { answer, probe_us: probe, max_abs_diff_probability: difference } = head;
  const maps = t('maps_took', { us: probe });
  if (!answer) return `${t(head.refusal ? 'no_answer' : 'not_asked')} · ${maps}`;
  const took = t('classify_took', { ms: (answer.round_trip_us / 1000).toFixed(1), queue: answer.queue_us, inference: answer.inference_us, batch: answer.batch_size });
  return `${took} · ${maps} · ${t('largest_difference', { difference: scientific(difference) })}`;
}

function showProblem({ state: { problem }, t, look }, node) {
  node.hidden = !problem;
  if (!problem) return node.replaceChildren();
  const { reason, message, cure } = problem;
  const what = message?.replace(`${reason}: `, '').replace(` (${cure})`, ''); // the server's is the whole sentence
  const told = reason === 'NO_ANSWER' ? t('server_gone') : [what, cure].filter(Boolean).join('; ');
  node.replaceChildren(el('strong', {}, reason), ` ${told} `, el('button', { class: 'small', on: { click: look } }, t('again')));
}

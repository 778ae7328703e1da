/** A tab: the network after each epoch of its training; nobody serves those. */

import { el, note } from './dom.js';

const WIDTH = 300, HEIGHT = 110, MARGIN = 24; // of a chart, in its own units
const NS = 'http://www.w3.org/2000/svg';

export function mount(root, app) {
  const { t, state: { network } } = app, last = network.epochs.at(-1);
  if (!network.epochs.length) return root.append(el('p', {}, t('training_absent')), el('pre', {}, 'make train ARGS="--keep-epochs"\nmake export'));
  const history = (network.history ?? []).filter((each) => each.train_loss !== null);
  const choose = ({ target: { value } }) => app.set({ epoch: Number(value) === last ? null : Number(value) }); // the last is what is served
  const slider = el('input', { type: 'range', min: network.epochs[0], max: last, oninput: choose });
  const label = el('label', { className: 'range' }, el('span'), slider), words = el('p', { 'aria-live': 'polite' });
  const charts = history.length ? [chart(t, history, last, ['train_loss']), chart(t, history, last, ['train_acc', 'test_acc'])] : [];
  root.append(note(t('training_about')), label, words, ...charts.map(({ figure }) => figure));
  app.follow(['epoch'], ({ epoch: chosen }) => {
    const epoch = chosen ?? last, at = history.find((each) => each.epoch === epoch), text = t('training_epoch', { epoch, last });
    const sentence = epoch === last ? 'training_served' : epoch === 0 ? 'training_random' : 'training_unserved';
    slider.value = epoch;
    slider.setAttribute('aria-valuetext', text);
    label.firstChild.textContent = text;
    words.replaceChildren(...(at ? [t('training_figures', figuresOf(at)), el('br')] : []), el('strong', { className: epoch === last ? '' : 'experiment' }, t(sentence)));
    for (const { cursor, x } of charts) cursor.setAttribute('d', `M${x(epoch)} 4V${HEIGHT - 16}`);
  });
}

function figuresOf({ train_loss: loss, train_acc: train, test_acc: test }) {
  return { loss: loss.toFixed(3), train: (100 * train).toFixed(1), test: (100 * test).toFixed(1) };
}

/** A chart of some series over the epochs: {figure, cursor, x}. */
function chart(t, history, last, series) {
  const values = history.flatMap((each) => series.map((key) => each[key]));
  const low = series[0] === 'train_loss' ? 0 : Math.min(...values), high = Math.max(...values);
  const x = (epoch) => MARGIN + (epoch / last) * (WIDTH - MARGIN - 8);
  const y = (value) => 6 + ((high - value) / (high - low || 1)) * (HEIGHT - 26);
  const lines = series.map((key, i) => svg('polyline', { points: history.map((each) => `${x(each.epoch).toFixed(1)},${y(each[key]).toFixed(1)}`).join(' '), class: `line line${i}` }));
  const cursor = svg('path', { class: 'cursor' });
  const texts = [[0, 10, high.toFixed(2)], [0, HEIGHT - 18, low.toFixed(2)], [x(0), HEIGHT - 3, 0], [x(last) - 8, HEIGHT - 3, last]];
  const labels = texts.map(([left, top, text]) => Object.assign(svg('text', { x: left, y: top }), { textContent: text }));
  const picture = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', class: 'chart', 'aria-label': series.map((key) => t(`training_${key}`)).join(', ') });
  picture.append(...labels, cursor, ...lines);
  const names = series.map((key, i) => el('span', { className: `series series${i}` }, t(`training_${key}`)));
  return { figure: el('figure', {}, el('figcaption', { className: 'row small' }, names), picture), cursor, x };
}

function svg(tag, attributes) {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

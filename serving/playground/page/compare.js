/** A tab: this network beside another version of it, which pixels matter, and what happens with maps switched off. */

import { softmax } from './answer.js';
import { el, number, scientific } from './dom.js';
import { shape3, size } from './explain.js';
import { nameOf } from './labels.js';
import { groupsOf } from './layout.js';
import { makeOcclusion, problemOf } from './occlusion.js';
import { makeSwitches } from './switches.js';

const SERVED = 'served'; // without the experiment that the page shows
let shown = null; // the difference that this tab shows
let chosen = ''; // a version, or SERVED; kept when the language changes

export function mount(root, app) {
  const { t } = app, result = el('div', { 'aria-live': 'polite' });
  const select = el('select', { on: { change: () => { chosen = select.value; compare(); } } });
  const compare = latest(() => compareOnce(app, result));
  const show = () => {
    const options = [['', t('compare_nothing')], ...choicesOf(app)];
    if (!options.some(([value]) => value === chosen)) chosen = '';
    select.replaceChildren(...options.map(([value, text]) => el('option', { value, selected: value === chosen }, text)));
    compare();
  };
  root.append(el('h2', {}, t('compare_heading')), el('label', { class: 'row' }, t('compare_with'), ' ', select), result, ...makeOcclusion(app), ...makeSwitches(app));
  app.subscribe(['values', 'tab'], show);
  show();
}

/** Versions with the same layers, by their numbers; and the served network, if something else is shown. */
function choicesOf({ state: { network, off, epoch }, t }) {
  const { version, architecture } = network.model;
  const others = network.versions.filter((each) => each.architecture === architecture && each.version !== version);
  const choices = others.map((each) => [String(each.version), `${t('version', each)} · ${each.precision}`]);
  return off.length || epoch !== null ? [[SERVED, t('compare_served')], ...choices] : choices;
}

/** One call at a time, the last always. */
function latest(work) {
  let isBusy = false, isDue = false;
  return async () => {
    isDue = true;
    if (isBusy) return;
    isBusy = true;
    while (isDue) {
      isDue = false;
      await work();
    }
    isBusy = false;
  };
}

async function compareOnce(app, result) {
  const { tab, values, looked } = app.state;
  if (tab !== 'compare' || !chosen || !values) {
    result.replaceChildren();
    return hide(app);
  }
  try {
    const version = chosen === SERVED ? app.state.version : Number(chosen);
    const other = await app.api.look(looked, { answer: 0, version });
    if (app.state.values !== values) return; // a newer comparison is due
    const difference = values.map((value, i) => value - other.values[i]);
    shown = { values: difference, title: app.t('compare_heading') };
    app.set({ difference: shown });
    result.replaceChildren(...described(app, values, other.values, difference));
  } catch (error) {
    hide(app);
    result.replaceChildren(problemOf(error));
  }
}

/** Takes its own difference away, but not another's. */
function hide(app) {
  if (shown && app.state.difference === shown) app.set({ difference: null });
}

/** Both answers, and for each shelf the cell that differs most. */
function described(app, values, others, difference) {
  const { t, state: { network } } = app, [here, there] = [values, others].map((each) => answerOf(app, each));
  const rows = groupsOf(network).slice(1).map((group) => worstRow(app, group, difference));
  const head = el('tr', {}, ...['check_layer', 'check_worst', 'compare_where'].map((key) => el('th', { scope: 'col' }, t(key))));
  const table = el('table', { class: 'grid list' }, el('caption', {}, t('compare_worst')), el('thead', {}, head), el('tbody', {}, ...rows));
  return [el('p', {}, t('compare_answers', { here, there })), table];
}

function answerOf(app, values) {
  const shares = softmax(Array.from(values.subarray(app.state.network.layers.at(-1).start))), top = shares.indexOf(Math.max(...shares));
  return `${app.className(top)} ${(100 * shares[top]).toFixed(2)} %`;
}

function worstRow(app, { first, layers }, difference) {
  const layer = app.state.network.layers[layers.at(-1)], [, height, width] = shape3(layer);
  let worst = 0;
  for (let i = 0; i < size(layer.shape); i++) if (Math.abs(difference[layer.start + i]) > Math.abs(difference[layer.start + worst])) worst = i;
  const cell = { layer: first, map: Math.floor(worst / (height * width)), y: Math.floor((worst % (height * width)) / width), x: worst % width };
  const where = height * width > 1 ? `[${cell.map}, ${cell.y}, ${cell.x}]` : `[${cell.map}]`;
  const largest = Math.abs(difference[layer.start + worst]);
  const button = el('button', { class: 'small', 'aria-label': `${nameOf(first)}${where}`, on: { click: () => app.set({ cell }) } }, where);
  return el('tr', {}, el('th', { scope: 'row' }, nameOf(first)), el('td', {}, largest < 0.1 ? scientific(largest) : number(largest)), el('td', {}, largest ? button : '–'));
}

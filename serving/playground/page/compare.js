/** A tab: this network beside another, which pixels matter, and maps switched off. */

import { probabilitiesOf, topOf } from './answer.js';
import { button, el, optionsOf, percent, scientific } from './dom.js';
import { shelvesOf, strongestOf, valueOf, whereOf } from './layout.js';
import { latest } from './look.js';
import { makeOcclusion, problemOf } from './occlusion.js';
import { makeSwitches } from './switches.js';
import { row, table } from './tables.js';

const SERVED = 'served'; // without the experiment that the page shows
let shown = null; // the difference that this tab shows

export function mount(root, app) {
  const { t } = app, result = el('div', { 'aria-live': 'polite' });
  const select = el('select', { onchange: () => app.set({ compare: select.value || null }) });
  const compare = latest(() => compareOnce(app, result));
  root.append(el('h2', {}, t('compare_heading')), el('label', { className: 'row' }, t('compare_with'), ' ', select), result, makeOcclusion(app), makeSwitches(app));
  app.follow(['values', 'tab', 'compare'], ({ compare: chosen }) => {
    const choices = choicesOf(app);
    if (chosen && !choices.some(([value]) => value === chosen)) return app.set({ compare: null });
    select.replaceChildren(...optionsOf(choices, chosen ?? ''));
    compare();
  });
}

/** Nothing; the served network, if something else is shown; versions with the same layers. */
function choicesOf({ state: { network, off, epoch }, t }) {
  const { version, architecture } = network.model, served = off.length || epoch !== null ? [[SERVED, t('compare_served')]] : [];
  const others = network.versions.filter((each) => each.architecture === architecture && each.version !== version);
  return [['', t('compare_nothing')], ...served, ...others.map((each) => [String(each.version), `${t('version', each)} · ${each.precision}`])];
}

async function compareOnce(app, result) {
  const { tab, values, looked, version, compare: chosen } = app.state;
  const hide = () => shown && app.state.difference === shown && app.set({ difference: null }); // its own, not another's
  if (tab !== 'compare' || !chosen || !values) {
    result.replaceChildren();
    return hide();
  }
  try {
    const other = await app.api.look(looked, { answer: 0, version: chosen === SERVED ? version : Number(chosen) });
    if (app.state.values !== values) return; // a newer comparison is due
    shown = { values: values.map((value, i) => value - other.values[i]), title: app.t('compare_heading') };
    app.set({ difference: shown });
    result.replaceChildren(...described(app, values, other.values));
  } catch (error) {
    hide();
    result.replaceChildren(problemOf(error));
  }
}

/** Both answers, and for each shelf the cell that differs most. */
function described(app, values, others) {
  const { t, state: { network } } = app, [here, there] = [values, others].map((each) => answerOf(app, each));
  const rows = shelvesOf(network).slice(1).map((shelf) => {
    const cell = strongestOf(shelf, shown.values), where = whereOf(shelf, cell), largest = Math.abs(valueOf(shelf, shown.values, cell));
    const goThere = button(where, () => app.set({ cell }), { className: 'small', 'aria-label': shelf.name + where });
    return row(shelf.name, [scientific(largest), largest ? goThere : '–']);
  });
  const head = ['check_layer', 'check_worst', 'compare_where'].map((key) => t(key));
  return [el('p', {}, t('compare_answers', { here, there })), table('list', t('compare_worst'), head, rows)];
}

function answerOf({ className, state: { network } }, values) {
  const shares = probabilitiesOf({ values, network }), top = topOf(shares);
  return `${className(top)} ${percent(shares[top])}`;
}

/** Switches for the maps of each convolution: what is off is 0 in the graph, and the answer is nobody's but the reader's. */

import { el } from './dom.js';

export function makeSwitches(app) {
  const { t, state: { network } } = app, convolutions = network.layers.filter(({ kind, shape }) => kind === 'conv' && shape[1] * shape[2] > 1);
  const buttons = convolutions.flatMap(({ name, shape }) => Array.from({ length: shape[0] }, (_, map) => ({
    name, map,
    node: el('button', { class: 'small', 'aria-label': t('switch_name', { name, map }), on: { click: () => toggle(app, name, map) } }, map),
  })));
  const groups = convolutions.map(({ name }) => el('div', { class: 'row switches', role: 'group', 'aria-label': name },
    el('span', { class: 'soft' }, name), ...buttons.filter((button) => button.name === name).map(({ node }) => node)));
  const all = el('button', { class: 'small', on: { click: () => app.set({ off: [] }) } }, t('switch_all_on'));
  const show = () => {
    for (const { name, map, node } of buttons) node.setAttribute('aria-pressed', app.state.off.some((each) => each.layer === name && each.map === map));
    all.disabled = !app.state.off.length;
  };
  app.subscribe(['off'], show);
  show();
  return [el('section', { class: 'check' }, el('h2', {}, t('switch_heading')), el('p', { class: 'soft small' }, t('switch_about')), ...groups, all)];
}

function toggle(app, layer, map) {
  const { off } = app.state, others = off.filter((each) => each.layer !== layer || each.map !== map);
  app.set({ off: others.length < off.length ? others : [...off, { layer, map }] });
}

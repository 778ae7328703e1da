/** Switches for the maps of each convolution: what is off is 0 in the graph. */

import { isOff, toggleMap } from './arithmetic.js';
import { button, el, note, range } from './dom.js';
import { shelvesOf } from './layout.js';

export function makeSwitches(app) {
  const { t, state: { network } } = app, switches = [];
  const groups = shelvesOf(network).filter(({ kind, isVector }) => kind === 'conv' && !isVector).map(({ first: layer, maps }) => {
    const own = range(maps).map((map) => {
      const node = button(map, () => toggleMap(app, { layer, map }), { className: 'small', 'aria-label': t('switch_name', { name: layer, map }) });
      return { layer, map, node };
    });
    switches.push(...own);
    return el('div', { className: 'row switches', role: 'group', 'aria-label': layer }, el('span', { className: 'soft' }, layer), own.map(({ node }) => node));
  });
  const all = button(t('switch_all_on'), () => app.set({ off: [] }), { className: 'small' });
  app.follow(['off'], ({ off }) => {
    for (const { node, ...place } of switches) node.setAttribute('aria-pressed', isOff(app, place));
    all.disabled = !off.length;
  });
  return el('section', { className: 'check' }, el('h2', {}, t('switch_heading')), note(t('switch_about')), groups, all);
}

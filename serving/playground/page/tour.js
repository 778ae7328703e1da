/** The tour: nine steps, each with an image, a cell and a view; then two tasks. */

import { probabilitiesOf, topOf } from './answer.js';
import { HOME } from './camera.js';
import { button, el } from './dom.js';
import { written } from './explain.js';
import { garment } from './garments.js';
import { shelvesOf, size, strongestOf } from './layout.js';

const BOOT = 29, PULLOVER = 2, COAT = 4; // test images: row * 10 + class
const SNEAKER = 7;

/** What each step shows, of the shelves that `placesOf` finds; or on which shelf the strongest cell. */
const STEPS = [
  { show: ({ input }) => ({ cell: middleOf(input) }) },
  { show: ({ conv }) => ({ cell: middleOf(conv) }), camera: { azimuth: -0.5, elevation: 0.2 } },
  { show: ({ conv }) => ({ cell: { layer: conv.first, map: 0, y: 0, x: 0 } }), camera: { azimuth: -0.5, elevation: 0.2 } },
  { strongest: 'conv' },
  { show: ({ pool }) => ({ cell: middleOf(pool) }) },
  { show: ({ sum }) => ({ cell: middleOf(sum, 2) }), camera: { azimuth: -0.3, elevation: 0.35 } },
  { show: ({ flat }) => ({ cell: exampleOf(flat) }) },
  { strongest: 'dense', camera: { azimuth: -0.25, elevation: 0.45 } },
  { strongest: 'output' },
  { image: PULLOVER, show: ({ conv }) => ({ cell: null, view: 'flat', marks: [{ layer: conv.first, map: 0 }] }), tools: compareTwo },
  { image: null, show: () => ({ cell: null }), tools: drawSneaker },
];
const LAST = STEPS.length - 1;

export function mount(root, app) {
  const { t } = app, places = placesOf(app.state.network);
  let found = null; // the strongest cell, until the reader chooses another
  const heading = el('h2', { tabIndex: -1 }), count = el('span', { className: 'soft small' }), words = el('p'), tools = el('div', { className: 'row' });
  const back = button(t('tour_back'), () => go(Math.min(app.state.tour, LAST) - 1)), next = button('', () => go(app.state.tour + 1));
  root.replaceChildren(el('div', { className: 'row tour-head' }, heading, count, back, next, button('×', end, { 'aria-label': t('tour_close') })), words, tools);
  root.setAttribute('aria-label', t('tour'));
  root.onkeydown = ({ key }) => { if (key === 'Escape') end(); };

  function go(step) {
    if (step > LAST) return end();
    app.set({ tour: step, difference: null, marks: [], ...settingsOf(app.state, places, STEPS[step]) });
    found = STEPS[step].strongest && app.state.cell;
    heading.focus();
    if (matchMedia('(max-width: 700px)').matches) document.getElementById('stage').scrollIntoView();
  }
  function end() {
    app.set({ tour: null });
    document.getElementById('tour-button')?.focus();
  }
  app.subscribe(['values'], ({ tour, cell, values }) => { // the image may have come only now
    if (found && found === cell && values) app.set({ cell: (found = strongestOf(places[STEPS[tour].strongest], values)) });
  });
  app.follow(['tour'], ({ tour }) => {
    const ends = tour === null && !root.hidden;
    root.hidden = tour === null;
    if (ends) found = null;
    if (ends) app.set({ marks: [], ...(app.state.difference?.isLinear && { difference: null }) }); // its own
    if (root.hidden) return;
    const step = Math.min(tour, LAST);
    heading.textContent = t(`tour_${step}_title`);
    count.textContent = t('tour_count', { n: step + 1, last: LAST + 1 });
    words.textContent = t(variantOf(places, step), wordsOf(t, places));
    tools.replaceChildren(...(STEPS[step].tools?.(app) ?? []));
    back.disabled = step === 0;
    next.textContent = t(step === LAST ? 'tour_end' : 'tour_next');
  });
  if (app.state.tour === null) queueMicrotask(() => go(0)); // once the tour is no longer hidden
}

function settingsOf({ source, values }, places, { image = BOOT, show, strongest, camera = {} }) {
  const isThere = image === null || (source.kind === 'garment' && source.index === image);
  const chosen = isThere ? {} : { source: { kind: 'garment', index: image } };
  return { tab: 'arithmetic', off: [], epoch: null, minus: false, camera: { ...HOME, ...camera }, ...chosen, ...(strongest ? { cell: values && strongestOf(places[strongest], values) } : show(places)) };
}

/** The shelves that the tour stops at. */
function placesOf(network) {
  const shelves = shelvesOf(network), find = (wanted) => shelves.find(({ kind }) => kind === wanted), dense = find('linear');
  const [conv, sum] = shelves.filter(({ kind }) => kind === 'conv');
  return { network, input: shelves[0], conv, sum, pool: find('pool'), flat: shelves[shelves.indexOf(dense) - 1], dense, output: shelves.at(-1) };
}

function middleOf({ first, height, width }, map = 0) {
  return { layer: first, map, y: height >> 1, x: width >> 1 };
}

/** The cell whose place in the flattened vector is told. */
function exampleOf({ first, height, width }) {
  return { layer: first, map: 1, y: Math.min(2, height - 1), x: Math.min(3, width - 1) };
}

/** One step is told in another way where a layer of its own pads. */
function variantOf({ network }, step) {
  return step === 2 && network.layers.some(({ kind }) => kind === 'pad') ? 'tour_2_pad' : `tour_${step}`;
}

/** What the sentences name: this network's own numbers. */
function wordsOf(t, { network, input, conv, sum, pool, flat, dense, output }) {
  const activation = conv.layers.map((i) => network.layers[i]).find(({ kind }) => kind === 'activation'), { y, x } = exampleOf(flat);
  return {
    conv: conv.name, maps: conv.maps, kernel: conv.base.kernel[0], side: conv.height, padded: input.height,
    function: activation ? written(activation.function, 'z') : '–',
    pool: pool.name, mode: t(pool.base.mode === 'max' ? 'maximum' : 'mean'), pooled: pool.height, before: conv.height,
    sum: sum.name, which: t(sum.base.table ? 'tour_connected' : 'tour_all', { inputs: network.weights[sum.base.weight].shape[1] }),
    flat: flat.name, flat_maps: flat.maps, flat_height: flat.height, flat_width: flat.width, flat_y: y, flat_x: x, flat_index: (flat.height + y) * flat.width + x,
    dense: dense.name, units: dense.maps, dense_inputs: size(flat.layer.shape), output: output.name,
  };
}

/** A pullover and a coat, and the difference of all their maps. */
function compareTwo({ t, set, api, className }) {
  const garmentButton = (index) => button(className(index), () => set({ difference: null, source: { kind: 'garment', index } }));
  const subtract = async () => {
    const [coat, pullover] = await Promise.all([COAT, PULLOVER].map(async (index) => (await api.look(await garment(index), { answer: 0 })).values));
    set({ difference: { values: coat.map((value, i) => value - pullover[i]), title: t('tour_difference'), isLinear: true } });
  };
  return [garmentButton(PULLOVER), garmentButton(COAT), button(t('tour_difference'), subtract)];
}

/** Says so once a drawing is taken for a sneaker. */
function drawSneaker(app) {
  const verdict = el('p', { className: 'good', role: 'status' });
  app.subscribe(['head'], ({ source, values, drawing }) => {
    if (source.kind !== 'drawing' || drawing || !values || !verdict.isConnected) return;
    const shares = probabilitiesOf(app.state), isSneaker = topOf(shares) === SNEAKER;
    verdict.textContent = isSneaker ? app.t('tour_done', { share: (100 * shares[SNEAKER]).toFixed(0) }) : '';
  });
  return [verdict];
}

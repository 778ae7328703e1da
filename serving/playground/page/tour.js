/** The tour: nine steps from pixels to probabilities, each with an image, a cell and a view; then two tasks. */

import { probabilitiesOf } from './answer.js';
import { HOME } from './camera.js';
import { el } from './dom.js';
import { shape3, size } from './explain.js';
import { garment } from './garments.js';
import { nameOf } from './labels.js';
import { groupsOf } from './layout.js';
import { strongestOf } from './pointer.js';

const BOOT = 29, PULLOVER = 2, COAT = 4; // test images: row * 10 + class
const SNEAKER = 7;

/** What each step shows, of the shelves that `placesOf` finds. */
const STEPS = [
  { show: ({ input }) => ({ cell: middleOf(input) }) },
  { show: ({ conv }) => ({ cell: middleOf(conv) }), camera: { azimuth: -0.5, elevation: 0.2 } },
  { show: ({ conv }) => ({ cell: { layer: conv.first, map: 0, y: 0, x: 0 } }), camera: { azimuth: -0.5, elevation: 0.2 } },
  { show: ({ conv }, state) => ({ cell: strongestOf(state, conv) }) },
  { show: ({ pool }) => ({ cell: middleOf(pool) }) },
  { show: ({ sum }) => ({ cell: middleOf(sum, 2) }), camera: { azimuth: -0.3, elevation: 0.35 } },
  { show: ({ flat }) => ({ cell: { layer: flat.first, map: 1, y: Math.min(2, flat.height - 1), x: Math.min(3, flat.width - 1) } }) },
  { show: ({ dense }, state) => ({ cell: strongestOf(state, dense) }), camera: { azimuth: -0.25, elevation: 0.45 } },
  { show: ({ output }, state) => ({ cell: strongestOf(state, output) }) },
  { image: PULLOVER, show: ({ conv }) => ({ cell: null, view: 'flat', marks: [{ layer: conv.first, map: 0 }] }), tools: compareTwo },
  { image: null, show: () => ({ cell: null }), tools: drawSneaker },
];

export function mount(root, app) {
  const { t } = app, places = placesOf(app.state.network);
  const heading = el('h2', { tabIndex: -1 }), count = el('span', { class: 'soft small' }), words = el('p'), tools = el('div', { class: 'row' });
  const back = el('button', { on: { click: () => go(app.state.tour - 1) } }, t('tour_back'));
  const next = el('button', { on: { click: () => go(app.state.tour + 1) } }, t('tour_next'));
  const close = el('button', { 'aria-label': t('tour_close'), on: { click: () => end() } }, '×');
  root.replaceChildren(el('div', { class: 'row tour-head' }, heading, count, back, next, close), words, tools);
  root.setAttribute('aria-label', t('tour'));
  root.onkeydown = ({ key }) => key === 'Escape' && end();

  function go(step) {
    if (step >= STEPS.length) return end();
    app.set({ tour: step, difference: null, marks: [], ...settingsOf(app.state, places, STEPS[step]) });
    heading.focus();
    if (matchMedia('(max-width: 700px)').matches) document.getElementById('stage').scrollIntoView();
  }
  function end() {
    app.set({ tour: null, difference: null, marks: [] });
    root.hidden = true;
    document.getElementById('tour-button')?.focus();
  }
  function show() {
    const { tour } = app.state;
    if (tour === null) return;
    const step = Math.min(tour, STEPS.length - 1);
    heading.textContent = t(`tour_${step}_title`);
    count.textContent = t('tour_count', { n: step + 1, last: STEPS.length });
    words.textContent = t(variantOf(places, step), wordsOf(app, places));
    tools.replaceChildren(...(STEPS[step].tools?.(app) ?? []));
    back.disabled = step === 0;
    next.textContent = t(step === STEPS.length - 1 ? 'tour_end' : 'tour_next');
  }
  app.subscribe(['tour'], show);
  if (app.state.tour === null) queueMicrotask(() => go(0)); // once the tour is no longer hidden
  show();
}

function settingsOf(state, places, { image = BOOT, show, camera = {} }) {
  const source = image === null || (state.source.kind === 'garment' && state.source.index === image) ? {} : { source: { kind: 'garment', index: image } };
  return { tab: 'arithmetic', off: [], epoch: null, minus: false, camera: { ...HOME, ...camera }, ...source, ...show(places, state) };
}

/** The shelves that the tour stops at. */
function placesOf(network) {
  const shelves = groupsOf(network).map((group) => {
    const shown = group.layers.at(-1), [maps, height, width] = shape3(network.layers[shown]);
    return { ...group, shown, maps, height, width, layer: network.layers[group.layers[0]] };
  });
  const dense = shelves.findIndex(({ kind }) => kind === 'linear'), convolutions = shelves.filter(({ kind }) => kind === 'conv');
  const pool = shelves.find(({ kind }) => kind === 'pool'), [conv, sum] = convolutions;
  return { network, shelves, input: shelves[0], conv, sum, pool, flat: shelves[dense - 1], dense: shelves[dense], output: shelves.at(-1) };
}

function middleOf({ first, height, width }, map = 0) {
  return { layer: first, map, y: height >> 1, x: width >> 1 };
}

/** Two steps are told in another way where a layer of its own pads, and where not all maps are connected. */
function variantOf({ network, sum }, step) {
  const hasPad = network.layers.some(({ kind }) => kind === 'pad');
  return `tour_${step}${step === 2 && hasPad ? '_pad' : step === 5 && sum.layer.table ? '_partial' : ''}`;
}

/** What the sentences name: this network's own numbers. */
function wordsOf({ t }, { network, input, conv, sum, pool, flat, dense, output }) {
  const activation = conv.layers.map((i) => network.layers[i]).find(({ kind }) => kind === 'activation');
  const inputs = size(network.layers[dense.layers[0] - 1].shape), [, y, x] = [1, Math.min(2, flat.height - 1), Math.min(3, flat.width - 1)];
  return {
    conv: nameOf(conv.first), maps: conv.maps, kernel: conv.layer.kernel[0], side: conv.height, padded: input.height,
    function: activation ? t(`function_${activation.function}`, { z: 'z' }) : '–',
    pool: nameOf(pool.first), mode: t(pool.layer.mode === 'max' ? 'maximum' : 'mean'), pooled: pool.height, before: conv.height,
    sum: nameOf(sum.first), inputs: network.weights[sum.layer.weight].shape[1], outputs: sum.maps,
    flat: nameOf(flat.first), flat_maps: flat.maps, flat_height: flat.height, flat_width: flat.width, flat_y: y, flat_x: x, flat_index: (flat.height + y) * flat.width + x,
    dense: nameOf(dense.first), units: dense.maps, dense_inputs: inputs, output: nameOf(output.first),
  };
}

/** A pullover and a coat, and the difference of all their maps. */
function compareTwo(app) {
  const choose = (index) => () => app.set({ difference: null, source: { kind: 'garment', index } });
  const subtract = async () => {
    const [coat, pullover] = await Promise.all([COAT, PULLOVER].map(async (index) => (await app.api.look(await garment(index), { answer: 0 })).values));
    app.set({ difference: { values: coat.map((value, i) => value - pullover[i]), title: app.t('tour_difference'), isLinear: true } });
  };
  return [[app.className(PULLOVER), choose(PULLOVER)], [app.className(COAT), choose(COAT)], [app.t('tour_difference'), subtract]]
    .map(([text, click]) => el('button', { on: { click } }, text));
}

/** Says so once a drawing is taken for a sneaker. */
function drawSneaker(app) {
  const verdict = el('p', { class: 'good', role: 'status' });
  app.subscribe(['head'], ({ source, values, drawing }) => {
    if (source.kind !== 'drawing' || drawing || !values || !verdict.isConnected) return;
    const shares = probabilitiesOf(app.state), isSneaker = shares.indexOf(Math.max(...shares)) === SNEAKER;
    verdict.textContent = isSneaker ? app.t('tour_done', { share: (100 * shares[SNEAKER]).toFixed(0) }) : '';
  });
  return [verdict];
}

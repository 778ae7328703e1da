/** Starts the page, and holds its state: all else reads `app.state` and calls `app.set`. */

import * as api from './api.js';
import { HOME } from './camera.js';
import { el } from './dom.js';
import { keepLooking, loadNetwork } from './look.js';

/** What can be chosen, as it is at first; the URL's hash changes it. */
const CHOICES = {
  lang: navigator.language.startsWith('zh') ? 'zh' : 'en',
  theme: 'system', // or 'light', 'dark'
  view: matchMedia('(max-width: 700px), (prefers-reduced-motion: reduce)').matches ? 'flat' : '3d',
  minus: false, // the empty image's values are subtracted
  tab: 'arithmetic',
  image: null, // what the network gets: 784 bytes
  source: { kind: 'garment', index: 29 }, // or {kind: 'drawing'}, {kind: 'photograph', inverted, box, paint}
  cell: null, // {layer, map, y, x}: `layer` is the first of its shelf
  camera: HOME,
  version: null, // null is the served one
  epoch: null, // null is the last
  off: [], // [{layer, map}]: maps that are switched off
  compare: null, // with what: a version, as text, or 'served'
  tour: null, // step
};

/** What changes by itself, or is nobody's to send. */
const REST = {
  sheet: false, // the phone's sheet is open
  drawing: false, // the pen is down
  ink: new Uint8Array(112 * 112), // what is drawn
  fill: true, // drawings are filled and centred
  gap: null, // {x, y}: where the outline of a drawing is open
  hover: null, // a cell, as `cell`
  marks: [], // [{layer, map}]: framed
  canTurn: true, // the browser has WebGL2
  network: null,
  weights: null, weightsKey: null,
  values: null, valuesKey: null, looked: null, lookedOff: [], head: null, // of the last look
  empty: null, // values of the empty image
  difference: null, // {values, title}: drawn instead of the values
  problem: null, // {reason, message, cure}
};

function createApp() {
  const subscriptions = new Set(), changed = new Set();
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const app = {
    api,
    state: { ...CHOICES, ...REST },
    set(patch) {
      if (!changed.size) queueMicrotask(flush);
      for (const [key, value] of Object.entries(patch)) {
        if (!(key in app.state)) throw new Error(`no state ${key}`);
        if (!Object.is(app.state[key], value)) changed.add(key);
        app.state[key] = value;
      }
    },
    subscribe(keys, listener) {
      const subscription = { keys, listener };
      subscriptions.add(subscription);
      return () => subscriptions.delete(subscription);
    },
    follow(keys, listener) { // at once, too
      this.subscribe(keys, listener);
      listener(app.state);
    },
    className: (index) => app.t(`class_${index}`),
    dark: () => (app.state.theme === 'system' ? dark.matches : app.state.theme === 'dark'),
    announce: announcer(),
  };
  function flush() {
    const keys = new Set(changed);
    changed.clear();
    for (const { keys: wanted, listener } of [...subscriptions]) if (wanted.some((key) => keys.has(key))) listener(app.state);
  }
  addEventListener('unhandledrejection', ({ reason: problem }) => app.set({ problem }));
  dark.addEventListener('change', () => {
    changed.add('theme');
    flush();
  });
  return app;
}

/** Speaks to screen readers, at most once a second, the last always. */
function announcer() {
  const region = document.getElementById('live');
  let next = null;
  return (text) => {
    if (next === null) setTimeout(() => { region.textContent = next; next = null; }, 1000);
    next = text;
  };
}

/** Loads the words; `loadMore` loads those that are needed later, and the styles that go with them. */
async function loadLanguage(app) {
  const { lang } = app.state, words = { ...(await import(`./text.${lang}.js`)).default };
  let more = null;
  const t = (key, values = {}) => {
    if (!(key in words)) throw new Error(`no text ${key}`);
    return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  };
  const load = async () => {
    try {
      const [later] = await Promise.all([import(`./more.${lang}.js`), (style ??= loadStyle())]);
      Object.assign(words, later.default);
    } catch {
      style = more = null; // to be tried again
      throw new api.ApiError(0, { reason: 'NO_ANSWER', message: '' });
    }
  };
  const loadMore = () => (more ??= load());
  if (style) await loadMore();
  if (lang !== app.state.lang) return;
  Object.assign(app, { t, loadMore });
  document.documentElement.lang = lang === 'zh' ? 'zh-CN' : 'en';
}

/** Changes the language; if its words cannot be loaded, it is again what it was. */
async function changeLanguage(app) {
  const { lang } = app.state;
  try {
    await loadLanguage(app);
    if (lang === app.state.lang) await mountAll(app);
  } catch (problem) {
    if (lang === app.state.lang) app.set({ problem, lang: document.documentElement.lang.slice(0, 2) });
  }
}

let style = null; // is there, or on its way

function loadStyle() {
  return new Promise((onload, onerror) => document.head.append(el('link', { rel: 'stylesheet', href: 'more.css', onload, onerror })));
}

function keepHash(app) {
  let timer = null;
  app.subscribe(Object.keys(CHOICES), () => {
    clearTimeout(timer); // browsers refuse to change the address often
    timer = setTimeout(async () => history.replaceState(null, '', (await import('./hash.js')).writeHash(app.state, CHOICES)), 300);
  });
  addEventListener('hashchange', ({ newURL }) => { // the address itself may have changed again
    const { image, source } = app.state;
    takeHash(app, new URL(newURL).hash, { ...CHOICES, image, source });
  });
}

/** Takes what a hash says; `rest` is what it does not say. */
async function takeHash(app, hash, rest) {
  if (hash) app.set({ ...rest, ...(await import('./hash.js')).readHash(hash, app.state.network) });
}

const PARTS = ['header', 'input', 'answer', 'stage', 'panel'];
const loading = Promise.all(PARTS.map((part) => import(`./${part}.js`))); // while the network is asked for

/** Fills the page, again when the language or the network changes: old listeners are dropped. */
async function mountAll(app) {
  const modules = await loading;
  let ends = []; // null once these parts have gone: what they still load then listens to nothing
  const scoped = { ...app, cleanUp: (end) => ends?.push(end), subscribe: (...wanted) => ends?.push(app.subscribe(...wanted)) };
  app.unmount?.();
  app.unmount = () => {
    ends.forEach((end) => end());
    ends = null;
  };
  await Promise.all(modules.map((module, i) => {
    const root = document.getElementById(PARTS[i]);
    root.replaceChildren();
    return module.mount(root, scoped);
  }));
}

async function start() {
  const app = createApp();
  await takeHash(app, location.hash);
  globalThis.atelier = app; // for the console
  await loadLanguage(app);
  app.follow(['theme'], () => { document.documentElement.dataset.theme = app.dark() ? 'dark' : 'light'; });
  keepLooking(app);
  await loadNetwork(app);
  await mountAll(app);
  app.subscribe(['lang'], () => changeLanguage(app));
  app.subscribe(['network'], () => mountAll(app));
  keepHash(app);
  document.documentElement.dataset.ready = 'yes';
}

start().catch((error) => {
  document.documentElement.dataset.ready = 'failed';
  document.querySelector('main').textContent = `${error.reason ?? error.name}: ${error.message}${error.cure ? `; ${error.cure}` : ''}`;
  throw error;
});

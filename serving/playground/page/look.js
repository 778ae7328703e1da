/** Has the server look at the image whenever it changes: one look at a time, at most 30 a second, the last always. */

import { isInside } from './layout.js';

const INTERVAL_MS = 1000 / 30;
const RETRIES = 3; // of a look that was refused because there were too many

/** Returns a function that has work done: one call at a time, the last always. `work` is given isOutdated(). */
export function latest(work) {
  let isBusy = false, isDue = false;
  return async () => {
    isDue = true;
    if (isBusy) return;
    isBusy = true;
    while (isDue) {
      isDue = false;
      await work(() => isDue);
    }
    isBusy = false;
  };
}

export function keepLooking(app) {
  app.look = latest(async (isOutdated) => {
    const next = performance.now() + INTERVAL_MS;
    await lookOnce(app, isOutdated);
    await pause(next - performance.now());
  });
  app.loadWeights = () => loadWeights(app);
  app.subscribe(['image', 'network', 'epoch', 'off'], () => app.state.image && app.look());
  app.subscribe(['minus', 'network', 'epoch', 'off'], () => lookAtNothing(app));
  app.subscribe(['network', 'epoch'], () => app.state.weights && loadWeights(app));
  app.subscribe(['version'], () => loadNetwork(app));
}

/** Loads the chosen version's network; what was chosen and is not in it is dropped. */
export async function loadNetwork(app) {
  const network = await app.api.network({ version: app.state.version });
  const { cell, off } = app.state, exists = (place) => isInside(network, place);
  app.set({ network, values: null, cell: cell && exists(cell) ? cell : null, off: off.filter(exists), hover: null, marks: [], difference: null });
}

function pause(ms) {
  return ms > 0 ? new Promise((done) => setTimeout(done, ms)) : undefined;
}

/** Which values and weights belong together. */
function keyOf({ network, epoch }) {
  return `${network.model.version}/${epoch ?? ''}`;
}

/** One look; one that came too soon is tried again, unless something newer is due. */
async function lookOnce(app, isOutdated) {
  const { image, version, epoch, off } = app.state, valuesKey = keyOf(app.state);
  for (let retry = 0; retry <= RETRIES; retry++) {
    try {
      const { head, values } = await app.api.look(image, { version, epoch, off }), { network } = app.state;
      const isOther = app.state.version === null && head.version !== network.model.version; // is served by now
      if (isOther || values.length !== network.num_values) return await loadNetwork(app);
      return app.set({ head, values, valuesKey, looked: image, lookedOff: off, problem: head.refusal && new app.api.ApiError(0, head.refusal) });
    } catch (problem) {
      app.set({ problem });
      if (problem.status !== 429 || isOutdated()) return;
      await pause(problem.retry_after_ms || 1000);
    }
  }
}

/** The values of the empty image, which `minus` subtracts: with the same weights. */
async function lookAtNothing(app) {
  const { minus, version, epoch, off } = app.state;
  const empty = minus ? (await app.api.look(new Uint8Array(784), { answer: 0, version, epoch, off })).values : null;
  app.set({ empty });
}

async function loadWeights(app) {
  const weightsKey = keyOf(app.state), { version, epoch } = app.state;
  if (app.state.weightsKey === weightsKey) return;
  const weights = await app.api.weights({ version, epoch });
  if (weightsKey === keyOf(app.state)) app.set({ weights, weightsKey });
}

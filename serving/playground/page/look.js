/** Has the server look at the image whenever it changes: one look at a time, at most 30 a second, the last always. */

import { isInside } from './links.js';

const INTERVAL_MS = 1000 / 30;
const RETRIES = 3; // of a look that was refused because there were too many

export function keepLooking(app) {
  let isBusy = false, isDue = false, last = -Infinity;

  app.look = async () => {
    isDue = true;
    if (isBusy) return;
    isBusy = true;
    while (isDue) {
      await pause(last + INTERVAL_MS - performance.now());
      isDue = false;
      last = performance.now();
      await lookOnce(app, () => isDue);
    }
    isBusy = false;
  };
  app.loadWeights = () => loadWeights(app);
  app.subscribe(['image', 'network', 'epoch', 'off'], () => app.state.image && app.look());
  app.subscribe(['minus', 'network', 'epoch', 'off'], () => lookAtNothing(app));
  app.subscribe(['network', 'epoch'], () => app.state.weights && loadWeights(app));
  app.subscribe(['version'], () => loadNetwork(app));
}

/** Loads the chosen version's network; what was chosen of the last one and is not in it is dropped. */
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
    const began = performance.now();
    try {
      const { head, values } = await app.api.look(image, { version, epoch, off });
      head.http_us = Math.round((performance.now() - began) * 1000);
      if (values.length !== app.state.network.num_values || isOther(app, head)) return await loadNetwork(app);
      return app.set({ head, values, valuesKey, looked: image, problem: head.refusal });
    } catch (error) {
      app.set({ problem: { reason: error.reason ?? error.name, message: error.message, cure: error.cure } });
      if (error.status !== 429 || isOutdated()) return;
      await pause(error.retryAfterMs || 1000);
    }
  }
}

/** Whether the server serves another version by now than the page shows. */
function isOther({ state: { version, network } }, head) {
  return version === null && head.version !== network.model.version;
}

/** The values of the empty image, which `minus` subtracts: with the same weights. */
async function lookAtNothing(app) {
  const { minus, version, epoch, off } = app.state;
  if (!minus) return app.set({ empty: null });
  const { values } = await app.api.look(new Uint8Array(784), { answer: 0, version, epoch, off });
  app.set({ empty: values });
}

async function loadWeights(app) {
  const weightsKey = keyOf(app.state), { version, epoch } = app.state;
  if (app.state.weightsKey === weightsKey) return;
  const weights = await app.api.weights({ version, epoch });
  if (weightsKey === keyOf(app.state)) app.set({ weights, weightsKey });
}

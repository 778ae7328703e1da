/**
 * Computes any value again, term by term, in float64, from what came in and the served weights.
 *
 * `values` is one float32 array with all layers, `layer.start` where one begins; weights are (outputs, inputs, height, width).
 */

import { clamp, range } from './dom.js';
import { indexOf, shape3, size } from './layout.js';

let last = []; // weights, maps that are switched off, and what is left: each frame asks

/** The weights that made the values, null if they are not there yet; those of maps that were switched off are 0. */
export function weightsOfValues({ network, values, weights, weightsKey, valuesKey, lookedOff: off }) {
  if (!values || !weights || weightsKey !== valuesKey) return null;
  if (last[0] !== weights || last[1] !== off) last = [weights, off, weights.slice()];
  for (const { layer, map } of off) {
    const { weight, bias } = network.layers.find(({ name }) => name === layer);
    for (const name of [weight, bias].filter(Boolean)) {
      const { start, shape } = network.weights[name], each = size(shape.slice(1));
      last[2].fill(0, start + map * each, start + (map + 1) * each);
    }
  }
  return last[2];
}

export const FUNCTIONS = {
  sigmoid: (z) => 1 / (1 + Math.exp(-z)),
  tanh: Math.tanh,
  scaled_tanh: (z) => 1.7159 * Math.tanh((z * 2) / 3),
  relu: (z) => Math.max(0, z),
  gelu: (z) => 0.5 * z * (1 + erf(z / Math.SQRT2)),
};

/** Writes a function of z: "sigmoid(0.3)". */
export function written(name, z) {
  return name === 'scaled_tanh' ? `1.7159 · tanh(⅔ · ${z})` : `${{ relu: 'ReLU', gelu: 'GELU' }[name] ?? name}(${z})`;
}

/** The error function, by a series without cancellation. Right to about 1e-15. */
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** Where the window of a cell begins on the layer below: [y, x]. */
export function originOf({ stride, padding }, { y, x }) {
  return [y * stride[0] - padding[0], x * stride[1] - padding[1]];
}

/**
 * Explains one cell {map, y, x} of one layer: {z}, its value. Of a convolution, dense layer or pooling also `terms`, for each
 * input map {map, patch, kernel, sum}, and `bias`; of a scale `coefficient` and `bias`; without terms if not `isDetailed`: faster.
 */
export function explain(net, values, weights, index, cell, isDetailed = true) {
  const layer = net.layers[index];
  return EXPLAINERS[layer.kind]({ net, weights, layer, source: net.layers[index - 1], values, cell, isDetailed });
}

const EXPLAINERS = {
  conv: explainSum,
  linear({ layer, source, ...rest }) { // a convolution of maps of one cell
    const units = { ...layer, kernel: [1, 1], stride: [1, 1], padding: [0, 0] };
    return explainSum({ layer: units, source: { ...source, shape: [size(source.shape), 1, 1] }, ...rest });
  },
  pool({ layer, source, values, cell }) {
    const [top, left] = originOf(layer, cell), patch = [];
    for (let r = 0; r < layer.kernel[0]; r++) {
      for (let c = 0; c < layer.kernel[1]; c++) patch.push(paddedAt(source, values, cell.map, top + r, left + c));
    }
    const z = layer.mode === 'max' ? Math.max(...patch) : patch.reduce((a, b) => a + b) / patch.length;
    return { terms: [{ map: cell.map, patch }], z };
  },
  scale({ layer, source, values, cell, ...rest }) {
    const coefficient = weightsOf(rest, layer.weight)[cell.map], bias = weightsOf(rest, layer.bias)?.[cell.map] ?? 0;
    return { coefficient, bias, z: values[indexOf(source, cell)] * coefficient + bias };
  },
  activation: ({ layer, source, values, cell }) => ({ z: FUNCTIONS[layer.function](values[indexOf(source, cell)]) }),
  pad({ layer: { padding, padding_mode: mode, factor = 1, offset = 0 }, source, values, cell: { map, y, x } }) { // rescales, in `classic`
    return { z: paddedAt(source, values, map, y - padding[0], x - padding[1], mode) * factor + offset };
  },
};

function explainSum({ layer, source, values, cell, isDetailed, ...rest }) {
  const all = weightsOf(rest, layer.weight), [, inputs] = rest.net.weights[layer.weight].shape, [height, width] = layer.kernel;
  const bias = weightsOf(rest, layer.bias)?.[cell.map] ?? 0, [top, left] = originOf(layer, cell), terms = [];
  let z = bias;
  for (const map of layer.table?.[cell.map] ?? range(inputs)) {
    const patch = [], kernel = [];
    let sum = 0, i = (cell.map * inputs + map) * height * width;
    for (let r = 0; r < height; r++) {
      for (let c = 0; c < width; c++, i++) {
        const value = paddedAt(source, values, map, top + r, left + c, layer.padding_mode);
        sum += value * all[i];
        if (isDetailed) patch.push(value), kernel.push(all[i]);
      }
    }
    z += sum;
    if (isDetailed) terms.push({ map, patch, kernel, sum });
  }
  return { terms, bias, z };
}

/** Reads a cell that may lie beyond the border: 0 there, or with `replicate` the nearest cell. */
function paddedAt(source, values, map, y, x, mode) {
  const [, height, width] = shape3(source), row = clamp(y, 0, height - 1), column = clamp(x, 0, width - 1);
  if (mode !== 'replicate' && (row !== y || column !== x)) return 0;
  return values[source.start + (map * height + row) * width + column];
}

/** The part of all weights that has this name; undefined if there is none. */
function weightsOf({ net, weights }, name) {
  if (!name) return undefined;
  const { start, shape } = net.weights[name];
  return weights.subarray(start, start + size(shape));
}

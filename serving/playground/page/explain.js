/**
 * Computes any value of the network again, term by term, in float64, from the values that came in and the served weights.
 *
 * `values` is one float32 array with all layers, `layer.start` where one begins; weights are (outputs, inputs, height, width).
 */

export const FUNCTIONS = {
  sigmoid: (z) => 1 / (1 + Math.exp(-z)),
  tanh: Math.tanh,
  scaled_tanh: (z) => 1.7159 * Math.tanh((z * 2) / 3),
  relu: (z) => Math.max(0, z),
  gelu: (z) => 0.5 * z * (1 + erf(z / Math.SQRT2)),
};

/** The error function: a power series, and far out a continued fraction. Right to about 1e-12. */
function erf(x) {
  const a = Math.abs(x);
  if (a < 2.5) {
    let term = a, sum = a;
    for (let n = 1; n < 80; n++) {
      term *= (-a * a) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 80; n > 0; n--) fraction = n / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + fraction));
}

/** Number of elements of a shape. */
export function size(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

/** Shape of a layer as [maps, height, width]; a vector's units are maps of one cell. */
export function shape3({ shape }) {
  return shape.length === 3 ? shape : [shape[0], 1, 1];
}

/** Index in `values` of a cell. */
export function indexOf(layer, map, y, x) {
  const [, height, width] = shape3(layer);
  return layer.start + (map * height + y) * width + x;
}

/** The part of all weights that has this name; null for none. */
export function weightOf(net, weights, name) {
  if (!name) return null;
  const { start, shape } = net.weights[name];
  return weights.subarray(start, start + size(shape));
}

/**
 * Explains one value of one layer.
 * @returns {{terms: Array<{map: number, patch: number[], kernel: number[], sum: number}>, bias: number, z: number,
 *   origin: number[], kernel: number[]}} `z` is the value; `origin` and `kernel` are the window (y, x) and (height, width)
 *   on the layer below. `terms` is empty unless `isDetailed`.
 */
export function explain(net, values, weights, index, map, y, x, isDetailed = true) {
  const layer = net.layers[index];
  const context = { layer, source: net.layers[index - 1], net, values, weights, map, y, x, isDetailed };
  return EXPLAINERS[layer.kind](context);
}

const EXPLAINERS = { conv: explainWindow, scale: explainScale, pool: explainPool, linear: explainLinear, activation: explainActivation, pad: explainPad };

function explainWindow({ layer, source, net, values, weights, map, y, x, isDetailed }) {
  const { kernel, origin } = windowOf(layer, y, x);
  const kernels = weightOf(net, weights, layer.weight);
  const perOutput = net.weights[layer.weight].shape[1];
  const bias = layer.bias ? weightOf(net, weights, layer.bias)[map] : 0;
  let z = bias;
  const terms = [];
  for (const input of layer.table ? layer.table[map] : range(perOutput)) {
    const term = windowTerm(source, values, kernels, (map * perOutput + input) * kernel[0] * kernel[1], input, layer, origin, isDetailed);
    z += term.sum;
    if (isDetailed) terms.push(term);
  }
  return { terms, bias, z, origin, kernel };
}

function windowTerm(source, values, kernels, start, input, layer, [top, left], isDetailed) {
  const [height, width] = layer.kernel, patch = [], kernel = [];
  let sum = 0;
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) {
      const value = paddedAt(source, values, input, top + r, left + c, layer.padding_mode);
      const weight = kernels[start + r * width + c];
      sum += value * weight;
      if (isDetailed) patch.push(value), kernel.push(weight);
    }
  }
  return { map: input, patch, kernel, sum };
}

/** Reads a cell that may lie beyond the border: 0 there, or with `replicate` the nearest cell. */
function paddedAt(source, values, map, y, x, mode) {
  const [, height, width] = shape3(source);
  if (y >= 0 && x >= 0 && y < height && x < width) return values[indexOf(source, map, y, x)];
  if (mode !== 'replicate') return 0;
  return values[indexOf(source, map, clamp(y, height), clamp(x, width))];
}

/** A coefficient and a bias for each map. */
function explainScale({ layer, source, net, values, weights, map, y, x }) {
  const value = values[indexOf(source, map, y, x)];
  const coefficient = weightOf(net, weights, layer.weight)[map], bias = layer.bias ? weightOf(net, weights, layer.bias)[map] : 0;
  const terms = [{ map, patch: [value], kernel: [coefficient], sum: value * coefficient }];
  return { terms, bias, z: value * coefficient + bias, origin: [y, x], kernel: [1, 1] };
}

function explainPool({ layer, source, values, map, y, x }) {
  const { kernel, origin } = windowOf(layer, y, x), patch = [];
  for (let r = 0; r < kernel[0]; r++) {
    for (let c = 0; c < kernel[1]; c++) patch.push(values[indexOf(source, map, origin[0] + r, origin[1] + c)]);
  }
  const z = layer.mode === 'max' ? Math.max(...patch) : patch.reduce((a, b) => a + b, 0) / patch.length;
  return { terms: [{ map, patch, kernel: [], sum: z }], bias: 0, z, origin, kernel };
}

function explainLinear({ layer, source, net, values, weights, map, isDetailed }) {
  const matrix = weightOf(net, weights, layer.weight), count = size(source.shape), terms = [];
  const bias = layer.bias ? weightOf(net, weights, layer.bias)[map] : 0;
  let z = bias;
  for (let i = 0; i < count; i++) {
    const value = values[source.start + i], weight = matrix[map * count + i];
    z += value * weight;
    if (isDetailed) terms.push({ map: i, patch: [value], kernel: [weight], sum: value * weight });
  }
  return { terms, bias, z, origin: [0, 0], kernel: shape3(source).slice(1) };
}

function explainActivation({ layer, source, values, map, y, x }) {
  const value = values[indexOf(source, map, y, x)];
  return { terms: [{ map, patch: [value], kernel: [], sum: value }], bias: 0, z: FUNCTIONS[layer.function](value), origin: [y, x], kernel: [1, 1] };
}

function explainPad({ layer, source, values, map, y, x }) {
  const origin = [y - layer.padding[0], x - layer.padding[1]];
  const value = paddedAt(source, values, map, ...origin, layer.padding_mode), { factor = 1, offset = 0 } = layer; // rescaled, in `classic`
  return { terms: [{ map, patch: [value], kernel: [factor], sum: value * factor }], bias: offset, z: value * factor + offset, origin, kernel: [1, 1] };
}

/** The window on the layer below that a cell was computed from. */
export function windowOf({ kernel, stride, padding }, y, x) {
  return { kernel, origin: [y * stride[0] - padding[0], x * stride[1] - padding[1]] };
}

function clamp(i, length) {
  return Math.max(0, Math.min(length - 1, i));
}

function range(length) {
  return Array.from({ length }, (_, i) => i);
}

/** Scales and colours: orange above a shelf's centre, blue below, for colour-blind eyes too; the input is grey. */

import { size } from './layout.js';

/** Red, green, blue, 0 to 1: the centre, above, below, the brightest input, marks, the background. */
export const PALETTES = {
  dark: { zero: [0.07, 0.08, 0.1], warm: [1, 0.72, 0.38], cool: [0.36, 0.66, 0.95], paper: [1, 1, 1], mark: [1, 1, 1], clear: [0.063, 0.071, 0.086], gamma: 0.8 },
  light: { zero: [0.97, 0.97, 0.96], warm: [0.62, 0.27, 0.02], cool: [0.07, 0.33, 0.62], paper: [0.05, 0.05, 0.06], mark: [0.05, 0.05, 0.08], clear: [0.965, 0.965, 0.957], gamma: 0.7 },
};

/** Decades that the logarithmic scale of differences shows. */
export const DECADES = 6;

/** One scale for each shelf, by its own numbers: {center, reach, low, high, isInput, isLog}. */
export function rangesOf(net, shelves, values, { minus, difference }) {
  return shelves.map(({ layer, shown }, i) => {
    const own = values.subarray(layer.start, layer.start + size(layer.shape));
    const low = Math.min(...own), high = Math.max(...own), largest = Math.max(-low, high) || 1;
    if (difference) return { center: 0, reach: largest, low, high, isLog: !difference.isLinear };
    if (i === 0) return { center: Math.min(0, low), reach: Math.max(1, high) - Math.min(0, low), low, high, isInput: true };
    const isSigmoid = !minus && comesFromSigmoid(net, shown);
    return { center: isSigmoid ? 0.5 : 0, reach: isSigmoid ? 0.5 : largest, low, high };
  });
}

/** Values of a sigmoid, and means of them, lie between 0 and 1: 0.5 is what it gives for 0. */
function comesFromSigmoid(net, index) {
  while (['pool', 'pad'].includes(net.layers[index].kind)) index--;
  return net.layers[index].function === 'sigmoid';
}

/** Returns the colour of a value as [red, green, blue], each 0 to 255; the shader of scene.js computes the same. */
export function colorOf(value, { center, reach, isInput, isLog }, palette) {
  let t = (value - center) / reach;
  if (isLog && t !== 0) t = Math.sign(t) * Math.max(0, 1 + Math.log10(Math.abs(t)) / DECADES);
  t = Math.max(-1, Math.min(1, t));
  const end = isInput ? palette.paper : t < 0 ? palette.cool : palette.warm;
  const share = isInput ? Math.max(0, t) : Math.abs(t) ** palette.gamma;
  return palette.zero.map((zero, i) => Math.round(255 * (zero + (end[i] - zero) * share)));
}

/** What a line is drawn in, by the sign of what it stands for; 0 to 1. */
export function inkOf({ warm, cool, mark }, sign) {
  return sign > 0 ? warm : sign < 0 ? cool : mark;
}

/** Writes a colour, each part 0 to 255, for CSS. */
export function css(color) {
  return `rgb(${color.join()})`;
}

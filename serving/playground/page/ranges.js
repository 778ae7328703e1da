/** Decides what the shelves show, and on which scale: each by its own numbers, round what stands for nothing. */

import { size } from './explain.js';

/** The values to be drawn: the layers', those less the empty image's, or a difference that a panel asks for. */
export function shownValues({ values, empty, minus, difference }) {
  if (!values || difference) return difference?.values ?? null;
  return minus && empty ? values.map((value, i) => value - empty[i]) : values;
}

/** One scale for each shelf: {center, reach, low, high, isInput, isLog}. */
export function rangesOf(net, shelves, values, { minus, difference }) {
  return shelves.map((shelf, i) => {
    const { start, shape } = net.layers[shelf.shown];
    let low = Infinity, high = -Infinity;
    for (const value of values.subarray(start, start + size(shape))) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const largest = Math.max(Math.abs(low), Math.abs(high)) || 1;
    if (difference) return { center: 0, reach: largest, low, high, isLog: !difference.isLinear };
    if (i === 0) return { center: Math.min(0, low), reach: Math.max(1, high) - Math.min(0, low), low, high, isInput: true };
    if (minus) return { center: 0, reach: largest, low, high };
    const isSigmoid = comesFromSigmoid(net, shelf.shown);
    return { center: isSigmoid ? 0.5 : 0, reach: isSigmoid ? 0.5 : largest, low, high };
  });
}

/** Values of a sigmoid, and means or maxima of them, lie between 0 and 1: 0.5 is what it gives for 0. */
function comesFromSigmoid(net, index) {
  while (['pool', 'pad'].includes(net.layers[index].kind)) index--;
  return net.layers[index].function === 'sigmoid';
}

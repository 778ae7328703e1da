/** Computes every value of every layer again and holds it against what the server computed, by the export gate's tolerances. */

import { explain, indexOf, shape3, size } from './explain.js';

/** [rtol, atol] of the export gate (atelier/tolerances.py): |difference| <= atol + rtol * |value|. */
export const TOLERANCES = { fp32: [1e-5, 1e-5], tf32: [2e-3, 1.5e-2], fp16: [2e-3, 1.5e-2], bf16: [2e-2, 2e-1], int8: [5e-2, 4e-1] };

/**
 * Computes all values in float64, each layer from what the server says of the one before it.
 * @returns {Array<{name: string, count: number, worst: number, share: number, cell: number[]}>} for each layer the largest
 *   difference, the largest share of the tolerance that one uses (above 1: too far off), and where
 */
export function verify(net, values, weights, image) {
  const [rtol, atol] = TOLERANCES[net.model.precision];
  return net.layers.map((layer, index) => {
    const result = { name: layer.name, count: size(layer.shape), worst: 0, share: 0, cell: [0, 0, 0] };
    forEachCell(layer, (map, y, x) => {
      const served = values[indexOf(layer, map, y, x)];
      const here = index ? explain(net, values, weights, index, map, y, x, false).z : image[y * shape3(layer)[2] + x] / 255;
      const difference = Math.abs(here - served);
      result.worst = Math.max(result.worst, difference);
      const share = difference / (atol + rtol * Math.abs(here));
      if (!(share <= result.share)) Object.assign(result, { share, cell: [map, y, x] });
    });
    return result;
  });
}

function forEachCell(layer, visit) {
  const [maps, height, width] = shape3(layer);
  for (let map = 0; map < maps; map++) {
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) visit(map, y, x);
  }
}

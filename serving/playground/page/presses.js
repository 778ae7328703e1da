/** What some presses on the stage do. */

import { toggleMap } from './arithmetic.js';
import { range } from './dom.js';
import { shelfOf } from './layout.js';

/** Beside the maps: close to one of a convolution it switches that, elsewhere it chooses nothing. */
export function pressBeside(stage, x, y) {
  const { app, layout: { shelves } } = stage, round = range(8).map((k) => (k * Math.PI) / 4);
  const near = [1, 2, 3, 4].flatMap((r) => round.map((angle) => stage.cellAt(x + r * Math.cos(angle), y + r * Math.sin(angle))));
  const isMap = ({ kind, isVector }) => kind === 'conv' && !isVector;
  const found = near.find((cell) => cell && isMap(shelfOf(shelves, cell)));
  if (found) toggleMap(app, found);
  else app.set({ cell: null });
}

/** The camera that has one shelf fill the room. */
export function closeTo(view, shelf, camera) {
  const { left, right, top, bottom } = view.box(shelf.quads), depth = 1 - view.flatness;
  const share = Math.max((right - left) / view.screen.width, (bottom - top) / view.screen.height) / 0.8;
  const azimuth = camera.azimuth * depth, elevation = camera.elevation * depth, z = shelf.z * depth;
  const panY = Math.sin(elevation) * Math.cos(azimuth) * z - Math.cos(elevation) * shelf.y;
  return { ...camera, distance: Math.max(0.1, camera.distance * share), panX: -Math.sin(azimuth) * z, panY };
}

/** Photographs: the server prepares them as it does for `Classify`; the pad shows what it took the garment to be. */

import { SIZE } from './pad.js';

/** Has the server prepare a photograph, and shows it on the pad with its box. */
export async function photograph(app, blob) {
  try {
    const [{ head, values: image }] = await Promise.all([app.api.photograph(blob), app.loadMore()]);
    app.set({ image, gap: null, source: { kind: 'photograph', ...head }, ink: new Uint8Array(SIZE * SIZE), problem: null });
    drawPhotograph(await createImageBitmap(blob), head.box);
  } catch (problem) {
    app.set({ problem });
  }
}

function drawPhotograph(bitmap, [top, left, bottom, right]) {
  const context = document.getElementById('pad').getContext('2d'), scale = SIZE / Math.max(bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0, bitmap.width * scale, bitmap.height * scale);
  Object.assign(context, { strokeStyle: '#fdb863', lineWidth: 2 });
  context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
}

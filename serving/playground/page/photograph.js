/** Photographs: the server prepares them as for `Classify`; the pad shows what it took the garment to be. */

import { SIZE } from './pad.js';

/** Has the server prepare a photograph, and shows it on the pad with its box. */
export async function photograph(app, blob) {
  try {
    const [{ head, values: image }] = await Promise.all([app.api.photograph(blob), app.loadMore()]), bitmap = await createImageBitmap(blob);
    const paint = (context) => paintPhotograph(context, bitmap, head.box);
    app.set({ image, source: { kind: 'photograph', ...head, paint }, ink: new Uint8Array(SIZE * SIZE), problem: null });
  } catch (problem) {
    app.set({ problem });
  }
}

function paintPhotograph(context, bitmap, [top, left, bottom, right]) {
  const scale = SIZE / Math.max(bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0, bitmap.width * scale, bitmap.height * scale);
  Object.assign(context, { strokeStyle: '#fdb863', lineWidth: 2 });
  context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
}

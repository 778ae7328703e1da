/** Slides a window over a small square of numbers: what comes out, and why some settings are impossible. */

export const LIMITS = { size: [1, 10], kernel: [1, 7], padding: [0, 3], stride: [1, 4] };

/** The example at first: 5 x 5 and 3 x 3, nine steps. Larger squares repeat it. */
const NUMBERS = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]];
const WEIGHTS = [[1, 0, 1], [0, 1, 0], [1, 0, 1]];

/** Returns why these settings are impossible, as [text key, values]; null if they are possible. */
export function problemOf({ size, kernel, padding, mode, operation }) {
  const isPooling = operation !== 'conv';
  if (kernel > size + 2 * padding) return ['calc_too_large', { kernel, size, padding }];
  if (isPooling && padding > kernel / 2) return ['calc_all_padding', { padding, kernel, half: Math.floor(kernel / 2) }];
  if (isPooling && padding && mode === 'replicate') return ['calc_no_replicate', {}];
  return null;
}

/** Returns {result, rest}: the side of what comes out, and how many last rows no window reaches. */
export function sizesOf({ size, kernel, padding, stride }) {
  const room = size + 2 * padding - kernel;
  return { result: Math.floor(room / stride) + 1, rest: room % stride };
}

/** The number at a place; beyond the border what the padding says: a maximum ignores it. */
export function numberAt({ size, mode, operation }, y, x) {
  const inside = (v) => Math.max(0, Math.min(size - 1, v));
  const isOutside = y !== inside(y) || x !== inside(x);
  if (isOutside && mode !== 'replicate') return operation === 'max' ? -Infinity : 0;
  return NUMBERS[inside(y) % 5][inside(x) % 5];
}

/** The kernel's weight at a place. */
export function weightAt(y, x) {
  return WEIGHTS[y % 3][x % 3];
}

/** Returns one step, of result * result: {top, left, pairs: [[number, weight]], value}. */
export function stepOf(settings, step) {
  const { kernel, stride, padding, operation } = settings, { result } = sizesOf(settings);
  const top = Math.floor(step / result) * stride - padding, left = (step % result) * stride - padding, pairs = [];
  for (let r = 0; r < kernel; r++) for (let c = 0; c < kernel; c++) pairs.push([numberAt(settings, top + r, left + c), weightAt(r, c)]);
  return { top, left, pairs, value: OPERATIONS[operation](pairs) };
}

const OPERATIONS = {
  conv: (pairs) => pairs.reduce((sum, [number, weight]) => sum + number * weight, 0),
  avg: (pairs) => pairs.reduce((sum, [number]) => sum + number, 0) / pairs.length,
  max: (pairs) => Math.max(...pairs.map(([number]) => number)),
};

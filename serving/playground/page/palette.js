/** Colours of values: orange above the centre, blue below, which colour-blind eyes tell apart; the input is grey. */

/** Red, green, blue from 0 to 1: the centre, above, below, the brightest input, frames and marks, the background. */
export const PALETTES = {
  dark: { zero: [0.07, 0.08, 0.1], warm: [1, 0.72, 0.38], cool: [0.36, 0.66, 0.95], paper: [1, 1, 1], mark: [1, 1, 1], clear: [0.063, 0.071, 0.086], gamma: 0.8 },
  light: { zero: [0.97, 0.97, 0.96], warm: [0.62, 0.27, 0.02], cool: [0.07, 0.33, 0.62], paper: [0.05, 0.05, 0.06], mark: [0.05, 0.05, 0.08], clear: [0.965, 0.965, 0.957], gamma: 0.7 },
};

/** Decades that the logarithmic scale of differences shows. */
export const DECADES = 6;

/**
 * Returns where a value lies on its scale, from -1 to 1.
 * @param {number} value
 * @param {{center: number, reach: number, isLog?: boolean}} range
 */
export function positionOf(value, { center, reach, isLog }) {
  const t = (value - center) / reach;
  if (!isLog) return Math.max(-1, Math.min(1, t));
  return t === 0 ? 0 : Math.sign(t) * Math.max(0, Math.min(1, 1 + Math.log10(Math.abs(t)) / DECADES));
}

/**
 * Returns the colour of a value as [red, green, blue], each 0 to 255; the shader of scene.js computes the same.
 * @param {number} value
 * @param {{center: number, reach: number, isInput?: boolean, isLog?: boolean}} range
 */
export function colorOf(value, range, palette) {
  const t = positionOf(value, range);
  const end = range.isInput ? palette.paper : t < 0 ? palette.cool : palette.warm;
  const share = range.isInput ? Math.max(0, t) : Math.abs(t) ** palette.gamma;
  return palette.zero.map((zero, i) => Math.round(255 * (zero + (end[i] - zero) * share)));
}

/** Writes a colour for CSS. */
export function css(color) {
  return `rgb(${color.join()})`;
}

/** Returns black or white, whichever has more contrast on a colour: at least 4.58 to 1, by WCAG's luminance. */
export function textOn(color) {
  const [r, g, b] = color.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? '#000' : '#fff';
}

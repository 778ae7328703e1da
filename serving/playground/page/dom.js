/** Makes elements, writes numbers, and draws tables of numbers as heat. */

import { colorOf, css, textOn } from './palette.js';

/**
 * Makes an element. Properties that the element has are set, others become attributes; `on` holds listeners.
 * @param {string} tag
 * @param {Object<string, any>} [properties]
 * @param {...(Node|string|number)} children
 */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'on') for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === 'class') node.className = value;
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Writes a number with a true minus; two decimals unless it is large. */
export function number(value, digits = 2) {
  return value.toFixed(Math.abs(value) >= 100 ? 0 : digits).replace('-', '−');
}

/** Writes a number so that it can be compared digit by digit: seven significant ones. */
export function precise(value) {
  return value.toPrecision(7).replace('-', '−').replace('e−', 'e-');
}

/** Writes a small difference: 4.6e-8, and 0 if it is 0. */
export function scientific(value) {
  return value === 0 ? '0' : value.toExponential(1);
}

/** Returns the largest absolute value. */
export function reachOf(values) {
  let reach = 0;
  for (const value of values) reach = Math.max(reach, Math.abs(value));
  return reach;
}

/**
 * Makes a table of numbers, row by row, each cell coloured by its value.
 * @param {ArrayLike<number>} values
 * @param {number} columns
 * @param {{palette: object, caption: string, reach?: number, top?: number, left?: number, isBare?: boolean}} options row and column of the
 *   first cell; a bare table's headers are for screen readers only
 */
export function heatTable(values, columns, { palette, caption, reach = reachOf(values), top = 0, left = 0, isBare = false }) {
  const range = { center: 0, reach: reach || 1 };
  const head = el('tr', {}, el('td'), ...Array.from({ length: columns }, (_, c) => el('th', { scope: 'col' }, left + c)));
  const rows = [];
  for (let r = 0; r * columns < values.length; r++) {
    const cells = Array.from(values.slice(r * columns, (r + 1) * columns), (value) => heatCell(value, range, palette));
    rows.push(el('tr', {}, el('th', { scope: 'row' }, top + r), ...cells));
  }
  return el('table', { class: `grid heat ${isBare ? 'bare' : ''}` }, el('caption', { class: 'hidden' }, caption), el('thead', {}, head), el('tbody', {}, ...rows));
}

/** Makes one coloured cell; its text is black or white, whichever is easier to read. */
export function heatCell(value, range, palette) {
  const color = colorOf(value, range, palette);
  const cell = el('td', {}, number(value).replace(/^(−?)0\./, '$1.')); // .47, as there is little room
  cell.style.background = css(color);
  cell.style.color = textOn(color);
  return cell;
}

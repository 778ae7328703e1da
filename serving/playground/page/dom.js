/** Makes elements, writes numbers, and draws tables. */

import { colorOf, css, textOn } from './palette.js';

/** Makes an element. Properties that the element has are set, others become attributes; children may be lists, and null is none. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

export function button(text, onclick, properties = {}) {
  return el('button', { onclick, ...properties }, text);
}

/** A smaller paragraph in a soft colour. */
export function note(...children) {
  return el('p', { className: 'soft small' }, ...children);
}

/** Options of a select, from pairs of value and text. */
export function optionsOf(pairs, chosen) {
  return pairs.map(([value, text]) => el('option', { value, selected: value === chosen }, text));
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

export function percent(share, digits = 2) {
  return `${(100 * share).toFixed(digits)} %`;
}

/** Makes a table; `head` are the columns' headers, null leaves a corner empty. */
export function table(className, caption, head, rows) {
  const heads = head.map((text) => (text === null ? el('td') : el('th', { scope: 'col' }, text)));
  return el('table', { className: `grid ${className}` }, caption && el('caption', {}, caption), el('thead', {}, el('tr', {}, heads)), el('tbody', {}, rows));
}

/** Makes a row: a header, and cells, which may be <td> already. */
export function row(header, cells, className = '') {
  return el('tr', { className }, el('th', { scope: 'row' }, header), cells.map((cell) => (cell.tagName === 'TD' ? cell : el('td', {}, cell))));
}

/**
 * Makes a table of numbers, each cell coloured by its value. `top` and `left` are row and column of the first cell; a bare
 * table's headers are for screen readers only.
 */
export function heatTable(values, columns, { palette, caption, top = 0, left = 0, isBare = false }) {
  const range = { center: 0, reach: Math.max(...values.map(Math.abs)) || 1 }, rows = [];
  const cells = Array.from(values, (value) => heatCell(value, range, palette));
  for (let r = 0; r * columns < cells.length; r++) rows.push(row(top + r, cells.slice(r * columns, (r + 1) * columns)));
  return table(`heat ${isBare ? 'bare' : ''}`, caption, [null, ...Array.from({ length: columns }, (_, c) => left + c)], rows);
}

function heatCell(value, range, palette) {
  const color = colorOf(value, range, palette);
  const cell = el('td', {}, number(value).replace(/^(−?)0\./, '$1.')); // .47, as there is little room
  Object.assign(cell.style, { background: css(color), color: textOn(color) });
  return cell;
}

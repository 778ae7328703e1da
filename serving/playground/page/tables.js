/** Draws tables: of words, and of numbers as coloured cells. */

import { el, number, range } from './dom.js';
import { colorOf, css } from './palette.js';

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
  const scale = { center: 0, reach: Math.max(...values.map(Math.abs)) || 1 }, rows = [];
  const cells = Array.from(values, (value) => heatCell(value, scale, palette));
  for (let r = 0; r * columns < cells.length; r++) rows.push(row(top + r, cells.slice(r * columns, (r + 1) * columns)));
  return table(`heat ${isBare ? 'bare' : ''}`, caption, [null, ...range(columns).map((c) => left + c)], rows);
}

function heatCell(value, scale, palette) {
  const color = colorOf(value, scale, palette);
  const cell = el('td', {}, number(value).replace(/^(−?)0\./, '$1.')); // .47, as there is little room
  Object.assign(cell.style, { background: css(color), color: textOn(color) });
  return cell;
}

/** Returns black or white, whichever has more contrast on a colour: at least 4.58 to 1. */
export function textOn(color) {
  const [r, g, b] = color.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? '#000' : '#fff';
}

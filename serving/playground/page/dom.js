/** Makes elements, and writes numbers. */

/** Makes an element. Properties that it has are set, others become attributes; children may be lists or null. */
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

/** Writes a difference, most are small: 4.6e-8, 0.52, and 0 if it is 0. */
export function scientific(value) {
  return Math.abs(value) < 0.1 ? (value ? value.toExponential(1).replace(/^-/, '−') : '0') : number(value);
}

export function percent(share, digits = 2) {
  return `${(100 * share).toFixed(digits)} %`;
}

export function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}

export function range(length) {
  return Array.from({ length }, (_, i) => i);
}

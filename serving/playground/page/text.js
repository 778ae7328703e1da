/** Looks words up: `{name}` in a sentence is replaced. */

/** Loads a language; returns `t(key, values)`. */
export async function loadText(lang) {
  const { default: words } = await import(`./text.${lang}.js`);
  return (key, values = {}) => {
    if (!(key in words)) throw new Error(`no text ${key}`);
    return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  };
}

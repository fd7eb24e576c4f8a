// Nodes and announcements. Text from books only ever becomes text nodes: nothing here, or elsewhere, parses HTML.

/** An element with attributes, listeners ("onclick") and children; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** An SVG element with attributes. */
export function draw(tag, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export const at = (id) => document.getElementById(id);

/** Tell those who listen, rather than look. */
export function say(text) {
  at("said").textContent = text;
}

let hiding;

/** Tell everyone that something failed, and what to do. */
export function complain(error) {
  const notice = at("notice");
  notice.textContent = error.message;
  notice.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (notice.hidden = true), 12000);
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Elements. Data becomes text nodes and attribute values only, so that markup in a row is never read as markup.

const SVG = "http:" + "//www.w3.org/2000/svg"; // a name, not an address: nothing is loaded

export const byId = (id) => document.getElementById(id);
export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// `on` holds listeners; true sets an empty attribute; false, null and undefined are left out, as are such children.
export function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") Object.entries(value).forEach(([event, act]) => node.addEventListener(event, act));
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

export const button = (text, act, attributes) => el("button", { type: "button", on: { click: act }, ...attributes }, text);

// Tabs: a list of [value, button] of which one is chosen; arrows move along them.
export function tabs(pairs, choose) {
  pairs.forEach(([value, node], i) => {
    node.addEventListener("click", () => choose(value));
    node.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: pairs.length - 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const [next, other] = pairs[(step + pairs.length) % pairs.length];
      choose(next);
      other.focus();
    });
  });
  return (chosen) => pairs.forEach(([value, node]) => {
    node.setAttribute("aria-selected", String(value === chosen));
    node.tabIndex = value === chosen ? 0 : -1;
  });
}

// Acts once it has been quiet for a while. The body says data-waiting meanwhile.
const waiting = new Set();

export function debounced(act, wait) {
  let timer = 0;
  const pending = (is) => {
    waiting[is ? "add" : "delete"](act);
    document.body.toggleAttribute("data-waiting", waiting.size > 0);
  };
  const later = (...values) => {
    clearTimeout(timer);
    pending(true);
    timer = setTimeout(() => { act(...values); pending(false); }, wait);
  };
  later.cancel = () => { clearTimeout(timer); pending(false); };
  return later;
}

// Permalinks: what is shown, in the address. Anything left at its default is left out.

const NAMES = ["answer", "target", "method", "against", "list", "search", "range", "weights", "facets", "offset", "marked", "groups"];

export function readLink() {
  const wanted = new URLSearchParams(location.hash.slice(1) || location.search.slice(1));
  const found = Object.fromEntries(NAMES.filter((name) => wanted.has(name)).map((name) => [name, wanted.get(name)]));
  const numbers = (text) => text.split(",").map(Number).filter(Number.isFinite);
  for (const name of ["range", "weights"]) if (found[name]) found[name] = numbers(found[name]);
  if (found.range && found.range.length !== 2) delete found.range;
  for (const name of ["target", "offset"]) if (found[name]) found[name] = Math.max(0, parseInt(found[name], 10) || 0);
  if (found.facets) found.facets = Object.fromEntries([...new URLSearchParams(found.facets)]);
  return found;
}

export function writeLink(view) {
  const parts = new URLSearchParams();
  for (const name of NAMES) {
    const value = view[name];
    if (value == null || value === "" || value === 0 || value === false || (name === "list" && value === "best")) continue;
    const text = Array.isArray(value) ? value.join(",") : name === "facets" ? String(new URLSearchParams(value)) : String(value);
    if (text) parts.set(name, text);
  }
  const hash = "#" + parts;
  if (hash !== (location.hash || "#")) history.replaceState(null, "", hash === "#" ? location.pathname : hash);
}

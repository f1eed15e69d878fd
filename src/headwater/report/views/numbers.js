// Numbers and names as they are shown.

export function formatter(values) {
  const largest = Math.max(0, ...values.map(Math.abs));
  const exponent = largest > 0 ? Math.floor(Math.log10(largest)) : 0;
  return (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = exponent < -4 || exponent > 6 ? size.toExponential(2) : size.toFixed(Math.min(8, Math.max(0, 3 - exponent)));
    return (value < 0 ? "−" : "") + text;
  };
}

export function signed(value, digits) {
  const size = Math.abs(value).toFixed(digits);
  return (Number(size) === 0 ? "" : value < 0 ? "−" : "+") + size;
}

export const minus = (text) => String(text).replace("-", "−");
export const grouped = (count) => count.toLocaleString("en-US");
export const plural = (count, one, many) => `${grouped(count)} ${count === 1 ? one : many || one + "s"}`;
export const isBase = (name) => name === "base" || name.endsWith(" x base");

// Names of checkpoints without what they all begin with, one alone without what is before its number: checkpoint-16,
// checkpoint-32 -> 16, 32.
export function shortNames(names) {
  const plain = names.filter((name) => !isBase(name));
  let length = plain.length > 1 ? Math.min(...plain.map((name) => name.length)) : 0;
  while (length && !plain.every((name) => name.slice(0, length) === plain[0].slice(0, length))) length--;
  const cut = plain.length === 1 ? (plain[0].match(/^.*[-_](?=\d+$)/) || [""])[0].length : plain.length ? plain[0].slice(0, length).replace(/[\p{L}\p{N}]+$/u, "").length : 0;
  return names.map((name) => (isBase(name) ? "base" : name.slice(cut).length > 12 ? "…" + name.slice(-11) : name.slice(cut)));
}

export function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((m) => m * power >= rough) || 10);
}

export const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : null);

export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${(seconds / 3600).toFixed(1)} hours`;
}

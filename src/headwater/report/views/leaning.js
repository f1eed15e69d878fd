// How likely each model along the training finds the output, against the corrected one where there is one.
import { el, svg } from "./dom.js";
import { isBase, mean, minus, niceStep, shortNames, signed } from "./numbers.js";

// names: of the checkpoints, in order; series: of each query, per checkpoint [log p(output), log p(corrected)] or null.
export function showLeaning(figure, names, series) {
  const places = names.map((_, k) => k).filter((k) => series.some((s) => s[k]));
  figure.parentElement.classList.toggle("single", !places.length);
  figure.hidden = !places.length;
  if (!places.length) return figure.replaceChildren();
  const shown = places.map((k) => names[k]);
  const contrast = series.some((s) => s.some((pair) => pair && pair[1] != null));
  const value = (pair) => (!pair ? null : !contrast ? pair[0] : pair[1] == null ? null : pair[0] - pair[1]);
  const lines = series.map((s) => places.map((k) => value(s[k])));
  const means = places.map((_, i) => mean(lines.map((line) => line[i]).filter((v) => v != null)));
  const many = series.length > 1;
  const what = contrast ? "How far each model prefers the output to the corrected one, in nats" : "Log-probability of the output under each model, in nats";
  const cell = (v, plus) => el("td", {}, v == null ? "" : plus ? signed(v, 2) : minus(v.toFixed(2)));
  const rows = places.map((k, i) => {
    const pairs = series.map((s) => s[k]).filter(Boolean);
    return el("tr", {}, el("th", { scope: "row" }, shown[i]), cell(mean(pairs.map((p) => p[0]))),
      ...(contrast ? [cell(mean(pairs.filter((p) => p[1] != null).map((p) => p[1]))), cell(means[i], true)] : []));
  });
  const heads = ["model", "output", ...(contrast ? ["corrected", "difference"] : [])];
  figure.replaceChildren(
    el("figcaption", {}, what + (many ? "; thin: each query, bold: their mean" : "")),
    leaningChart(Math.max(260, figure.clientWidth), shown, lines, means, contrast),
    el("details", {}, el("summary", {}, "The numbers" + (many ? ", as means over the queries" : "")),
      el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, ...rows))));
}

function leaningChart(width, names, lines, means, contrast) {
  const height = 190, left = 40, right = 52, top = 12, bottom = 26;
  const values = lines.flat().filter((v) => v != null).concat(contrast ? [0] : []);
  let low = Math.min(...values), high = Math.max(...values);
  if (high - low < 1e-6) { low -= 1; high += 1; }
  const step = niceStep((high - low) / 4), margin = (high - low) * 0.07;
  low -= margin;
  high += margin;
  const x = (i) => left + 10 + (names.length === 1 ? 0.5 : i / (names.length - 1)) * (width - left - right - 20);
  const y = (v) => top + ((high - v) / (high - low)) * (height - top - bottom);
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": names.map((name, i) => `${name}: ${means[i] == null ? "none" : signed(means[i], 1)}`).join(", ") });
  const digits = step < 1 ? (step < 0.1 ? 2 : 1) : 0;
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) {
    const zero = contrast && Math.abs(v) < step / 2;
    chart.append(svg("line", { class: zero ? "zero" : "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
      svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, zero ? "0" : contrast ? signed(v, digits) : minus(v.toFixed(digits))));
  }
  if (contrast) {
    const room = (18 / (height - top - bottom)) * (high - low);
    if (high > room) chart.append(svg("text", { class: "tone-support", x: left + 4, y: top + 10 }, "↑ prefers the output"));
    if (low < -room) chart.append(svg("text", { class: "tone-oppose", x: width - right, y: height - bottom - 5, "text-anchor": "end" }, "↓ prefers the corrected one"));
  }
  const path = (line) => line.map((v, i) => (v == null ? "" : `${i && line[i - 1] != null ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`)).join("");
  if (lines.length > 1) lines.forEach((line) => chart.append(svg("path", { class: "thin", d: path(line) })));
  chart.append(svg("path", { class: "line", d: path(means) }));
  const short = shortNames(names);
  const every = Math.max(1, Math.ceil(names.length / Math.max(2, Math.floor((width - left - right) / 64))));
  means.forEach((v, i) => {
    if (v != null) chart.append(svg("circle", { class: isBase(names[i]) ? "dot base" : "dot", cx: x(i), cy: y(v), r: 4 }, svg("title", {}, `${names[i]}: ${signed(v, 2)}`)));
    const last = i === names.length - 1;
    if (i === 0 || last || (i % every === 0 && names.length - 1 - i >= every))
      chart.append(svg("text", { x: x(i), y: height - 6, "text-anchor": "middle", class: isBase(names[i]) ? "strong" : "" }, short[i]));
    if (v != null && last) chart.append(svg("text", { class: "strong", x: x(i) + 9, y: y(v) + 4 }, contrast ? signed(v, 1) : minus(v.toFixed(1))));
  });
  return chart;
}

// A first sentence; those that warn against blaming the rows are set apart.
export const sentence = (text) => el("p", { class: /^(The base model already|No row stands out)/.test(text) ? "warns" : null }, text);

// The histogram of all scores, which can be brushed: drag over it, or move its two handles with the arrow keys.
import { button, el, svg } from "./dom.js";
import { formatter, grouped, plural } from "./numbers.js";

const HEIGHT = 150, TOP = 18, BASE = 104, SIDE = 6;

/* spread: { rows, bins, low, high, median, threshold, ticks: [scores listed], culprits: [scores], side, method, told }
   brush: { range: [low, high] or null, change(range) }. Drawn anew into the figure; a focused handle keeps the focus. */
export function showHistogram(figure, spread, brush) {
  const width = Math.max(280, figure.clientWidth);
  const flat = spread.bins.length === 1;
  const low = flat ? spread.low - 1 : spread.low, high = flat ? spread.high + 1 : spread.high;
  const x = (v) => SIDE + ((v - low) / (high - low)) * (width - 2 * SIDE);
  const chart = drawn(spread, width, flat, x);
  const focused = document.activeElement && figure.contains(document.activeElement) ? document.activeElement.dataset.end : null;
  const format = formatter([low, high, spread.median]);
  const parts = [el("figcaption", {}, spread.told, " ", range(spread, brush, format)), chart];
  if (!flat && brush) parts.push(...handles(figure, spread, brush, chart, x, width, format));
  figure.replaceChildren(...parts);
  if (focused) figure.querySelector(`[data-end="${focused}"]`)?.focus();
}

function range(spread, brush, format) {
  if (!brush || !brush.range) return null;
  const [from, to] = brush.range;
  return el("span", { class: "brushed" }, `Listed: scores from ${format(from)} to ${format(to)}. `,
    button("Show all", () => brush.change(null), { class: "link" }));
}

function drawn(spread, width, flat, x) {
  const tallest = Math.sqrt(Math.max(...spread.bins));
  const chart = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": `Histogram of the scores of ${plural(spread.rows, "row")}, from ${spread.low} to ${spread.high}, median ${spread.median}` });
  const part = (width - 2 * SIDE) / (flat ? 21 : spread.bins.length);
  spread.bins.forEach((count, i) => {
    if (!count) return;
    const tall = Math.max(1.5, (Math.sqrt(count) / tallest) * (BASE - TOP));
    chart.append(svg("rect", { class: "count", x: SIDE + (flat ? 10 : i) * part + 0.5, y: BASE - tall, width: Math.max(1, part - 1), height: tall },
      svg("title", {}, plural(count, "row"))));
  });
  chart.append(svg("line", { class: "zero", x1: 0, x2: width, y1: BASE + 0.5, y2: BASE + 0.5 }));
  const format = formatter([spread.low, spread.high, spread.median]);
  const label = (v, text, anchor) => svg("text", { x: x(v), y: HEIGHT - 6, "text-anchor": anchor }, text);
  if (flat) chart.append(label(spread.low, format(spread.low), "middle"));
  else chart.append(label(spread.low, format(spread.low), "start"), label(spread.high, format(spread.high), "end"));
  if (!flat && x(spread.median) > 90 && x(spread.median) < width - 110)
    chart.append(label(spread.median, `median ${format(spread.median)}`, "middle"));
  if (!flat && spread.threshold != null && spread.threshold <= spread.high) {
    const at = x(spread.threshold), end = at > width - 200;
    chart.append(svg("line", { class: "limit", x1: at, x2: at, y1: 2, y2: BASE }),
      svg("text", { x: at + (end ? -6 : 6), y: 12, "text-anchor": end ? "end" : "start" }, end ? "stands out →" : "stands out from here"));
  }
  for (const score of spread.ticks)
    chart.append(svg("line", { class: spread.side === "best" ? "tick-support" : "tick-oppose", x1: x(score), x2: x(score), y1: BASE + 4, y2: BASE + 16 }));
  for (const score of spread.culprits)
    chart.append(svg("path", { class: "culprit", d: `M${x(score).toFixed(1)} ${BASE + 17}l3.5 7h-7z` }));
  return chart;
}

// A handle is a slider in steps of one bin. The chart takes the pointer: a drag is a range, a click shows all again.
function handles(figure, spread, brush, chart, x, width, format) {
  const count = spread.bins.length, step = (spread.high - spread.low) / count;
  const edge = (i) => (i === count ? spread.high : spread.low + i * step);
  const bin = (v) => Math.round((v - spread.low) / step);
  const [from, to] = brush.range || [spread.low, spread.high];
  const shade = svg("rect", { class: "brush", x: x(from), y: TOP - 8, width: Math.max(1, x(to) - x(from)), height: BASE - TOP + 8 });
  if (brush.range) chart.prepend(shade);
  const set = (a, b) => brush.change(a <= 0 && b >= count ? null : [edge(Math.max(0, a)), edge(Math.min(count, b))]);
  const slider = (end, v, what) => {
    const key = (event) => {
      const now = bin(v), big = Math.max(1, Math.round(count / 10));
      const next = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - big, PageUp: now + big, Home: 0, End: count }[event.key];
      if (event.key === "Escape") { brush.change(null); event.preventDefault(); return; }
      if (next === undefined) return;
      event.preventDefault();
      if (end === "low") set(Math.min(Math.max(0, next), bin(to) - 1), bin(to));
      else set(bin(from), Math.max(Math.min(count, next), bin(from) + 1));
    };
    const grip = svg("g", { class: "handle", role: "slider", tabindex: 0, "data-end": end, "aria-label": what, "aria-valuemin": spread.low,
      "aria-valuemax": spread.high, "aria-valuenow": v, "aria-valuetext": format(v), on: { keydown: key } },
    svg("line", { x1: x(v), x2: x(v), y1: TOP - 8, y2: BASE }), svg("rect", { x: x(v) - 3, y: TOP + 22, width: 6, height: 22, rx: 3 }));
    chart.append(grip);
  };
  chart.removeAttribute("role");
  chart.setAttribute("role", "group");
  slider("low", from, "Lowest score listed");
  slider("high", to, "Highest score listed");
  const at = (event) => {
    const box = chart.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width) * width;
    return Math.min(count, Math.max(0, ((share - SIDE) / (width - 2 * SIDE)) * count));
  };
  chart.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const start = at(event);
    let last = start;
    chart.setPointerCapture(event.pointerId);
    const move = (next) => {
      last = at(next);
      if (!shade.parentNode) chart.prepend(shade);
      const [a, b] = [edge(Math.min(start, last)), edge(Math.max(start, last))];
      shade.setAttribute("x", x(a));
      shade.setAttribute("width", Math.max(1, x(b) - x(a)));
    };
    const done = () => {
      chart.removeEventListener("pointermove", move);
      if (Math.abs(last - start) < 0.4) { if (brush.range) brush.change(null); return; }
      set(Math.floor(Math.min(start, last)), Math.ceil(Math.max(start, last)));
    };
    chart.addEventListener("pointermove", move);
    chart.addEventListener("pointerup", done, { once: true });
    chart.addEventListener("pointercancel", done, { once: true });
  });
  return [];
}

export const heights = (rows, method) => `${plural(rows, "row")} under ${method}; heights on a square-root scale.`;
export const listedTicks = (shown, rows, side, culprits) =>
  shown ? ` Ticks: ${shown === rows ? "the rows" : `the ${grouped(shown)} ${side === "best" ? "highest" : "lowest"}`}${culprits ? "; triangles: culprits among them" : ""}.` : "";

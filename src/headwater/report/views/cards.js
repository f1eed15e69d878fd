/* One training row as a card.

A row is { n, rank, id, at, source, score, percentile, deviations, q, terms: [value per checkpoint],
ranks: [[method, rank or null]], facets: {name: value}, prompt, completion: [[text, mark]], cut: [characters left out in front, at the end], words,
twins: { count, ids } or null, culprit (known), picked (by the reader), opened (its words are to be open), shared (on both lists side by side) }.
A mark is "" or "word" (the query has the word too) or "run" (it stands in a run of words that the query has verbatim). */
import { button, el, svg } from "./dom.js";
import { formatter, grouped, isBase, minus, shortNames, signed } from "./numbers.js";

/* What all cards of a list share. act: { pick(row), words(row, say): a promise, toggled(row, open) }, or less of these. */
export function cardContext(rows, { terms, kind, act = {} }) {
  const values = rows.flatMap((row) => row.terms);
  return {
    terms, act, termNames: shortNames(terms), hasPrompts: ["completion", "chat"].includes(kind),
    format: formatter(rows.map((row) => row.score)),
    range: [Math.max(0, ...values), Math.max(0, ...values.map((v) => -v))],
  };
}

export function columnHeads(terms, others) {
  return el("div", { class: "columns", "aria-hidden": "true" }, el("span", {}, "rank"), el("span", {}, "row"),
    el("span", { class: "number" }, "score"), el("span", { class: "number" }, "percentile"), el("span", { class: "number" }, "deviations"),
    terms.length > 0 && el("span", {}, "per checkpoint"), others.length > 0 && el("span", {}, "rank by others"));
}

// twin: the next card is the same row again; again: the one before was.
export function card(row, context, { twin, again, open } = {}) {
  const number = (kind, what, text, under) => el("div", { class: "number " + kind }, el("span", { class: "what" }, what), text, under && el("span", { class: "under" }, under));
  const classes = ["row", row.culprit && "guilty", row.picked && "picked", twin && "twin"].filter(Boolean).join(" ");
  return el("li", { class: classes, "data-row": row.n, tabindex: -1 },
    el("span", { class: "rank" }, el("span", { class: "sr" }, "rank "), grouped(row.rank)),
    el("div", { class: "body" }, nameLine(row, context), rowText(row, context.hasPrompts), carrying(row, open, context.act),
      row.twins && !again && el("p", { class: "twins" }, "Identical rows: " + row.twins.ids.join(", ") +
        (row.twins.count > row.twins.ids.length ? `, and ${grouped(row.twins.count - row.twins.ids.length)} more` : ""))),
    number("score " + (row.score > 0 ? "positive" : row.score < 0 ? "negative" : ""), "score", context.format(row.score)),
    number("", "percentile", row.percentile),
    number("", "deviations", signed(row.deviations, 1), row.q != null ? `q ${row.q < 0.001 ? "< 0.001" : row.q.toFixed(3)}` : null),
    context.terms.length > 0 && bars(row, context),
    row.ranks.length > 0 && el("div", { class: "others" }, el("span", { class: "what" }, "rank under other methods"),
      el("dl", {}, ...row.ranks.map(([name, rank]) => el("div", {}, el("dt", { title: name }, name), el("dd", {}, rank == null ? "–" : grouped(rank)))))));
}

function nameLine(row, context) {
  const pick = context.act.pick && button(row.picked ? "Culprit" : "Mark", () => context.act.pick(row),
    { class: "pick", "aria-pressed": String(Boolean(row.picked)), "aria-label": `Mark ${row.id} as culprit` });
  return el("p", { class: "name" }, el("span", { class: "id", dir: "auto" }, row.id), row.at && el("span", { class: "at", dir: "auto" }, row.at),
    row.source && el("span", { class: "at from", dir: "auto" }, row.source),
    row.culprit && el("span", { class: "badge" }, "culprit"),
    row.shared && el("span", { class: "badge out" }, "in both"),
    row.twins && el("span", { class: "badge same" }, `×${grouped(row.twins.count)} identical`), pick);
}

// Which words of the row, and of what was asked, carry the score. Words come with the row, or are asked for.
function carrying(row, open, { words: ask, toggled }) {
  const box = el("details", { class: "carrying", open: Boolean(row.words && (row.opened ?? open)) }, el("summary", {}, "Words that carry the score"));
  if (!row.words && !ask) return null;
  if (toggled) box.addEventListener("toggle", () => toggled(row, box.open));
  if (row.words) {
    box.append(...wordLines(row.words));
    return box;
  }
  box.addEventListener("toggle", async () => {
    if (!box.open || box.dataset.asked) return;
    box.dataset.asked = "yes";
    const note = el("p", { class: "muted", role: "status" }, "Splitting the score by words…");
    box.append(note);
    try {
      const words = await ask(row, (text) => { note.textContent = text; });
      box.replaceChild(el("div", {}, ...wordLines(words)), note);
    } catch (fault) {
      note.textContent = fault.message;
      delete box.dataset.asked;
      box.addEventListener("toggle", () => note.remove(), { once: true });
    }
  });
  return box;
}

function wordLines(words) {
  const line = (name, list) => el("p", {}, el("span", { class: "what" }, name), el("span", { class: "shaded", dir: "auto" }, ...list.flatMap(shaded)));
  const asked = words.asked.map(([name, list]) => line(name, list));
  return [line("row", words.row), ...(asked.length > 2 ? [el("details", {}, el("summary", {}, `and of what was asked: ${asked.length} texts`), ...asked)] : asked)];
}

// A word with its level from -5 (strongest away) to 5; the space in front of it stays bare.
export function shaded([text, level]) {
  if (!level) return [text];
  const start = text.length - text.trimStart().length;
  return [text.slice(0, start), el("span", { class: `${level > 0 ? "towards" : "away"}-${Math.abs(level)}` }, text.slice(start))];
}

// Long texts are folded: the end of the prompt and the beginning of the completion stay.
const PROMPT_SHORT = 280, COMPLETION_SHORT = 420;

function rowText(row, hasPrompts) {
  const length = (list) => list.reduce((sum, [text]) => sum + text.length, 0);
  const long = length(row.prompt) > PROMPT_SHORT + 120 || length(row.completion) > COMPLETION_SHORT + 180;
  const [promptCut, completionCut] = row.cut || [0, 0];
  const box = el("p", { class: "text" });
  const draw = (folded) => {
    const first = folded ? keepEnd(row.prompt, PROMPT_SHORT) : row.prompt;
    const second = folded ? keepStart(row.completion, COMPLETION_SHORT) : row.completion;
    box.replaceChildren(
      el("span", { class: "prompt", dir: "auto" }, (promptCut || first !== row.prompt) && "…", ...marked(first)),
      el("span", { class: hasPrompts ? "completion" : "whole", dir: "auto" }, ...marked(second), (completionCut || second !== row.completion) && "…"));
  };
  draw(long);
  if (!long) return box;
  const total = grouped(length(row.prompt) + length(row.completion) + promptCut + completionCut);
  const label = (open) => (open ? "Show less" : `Show ${promptCut + completionCut ? "more" : "all"} of ${total} characters`);
  const more = button(label(false), () => {
    const open = more.getAttribute("aria-expanded") !== "true";
    more.setAttribute("aria-expanded", String(open));
    more.textContent = label(open);
    draw(!open);
  }, { class: "more", "aria-expanded": "false" });
  return el("div", {}, box, more);
}

// Neighbours of one mark share an element.
function marked(list) {
  const out = [];
  for (const [text, mark] of list) {
    if (!text) continue;
    out.push(mark ? el("mark", { class: mark === "run" ? "run" : null }, text) : text);
  }
  return out;
}

function keepStart(list, limit) {
  let left = limit;
  const kept = [];
  for (const [text, mark] of list) {
    if (text.length > left) return [...kept, [text.slice(0, left), ""]];
    kept.push([text, mark]);
    left -= text.length;
  }
  return list;
}

function keepEnd(list, limit) {
  let left = limit;
  const kept = [];
  for (const [text, mark] of [...list].reverse()) {
    if (text.length > left) return [[left ? text.slice(-left) : "", ""], ...kept];
    kept.unshift([text, mark]);
    left -= text.length;
  }
  return list;
}

export const termWidth = (count) => (count <= 6 ? count * 30 : Math.min(190, count * 12));

function bars(row, context) {
  const values = row.terms, width = termWidth(values.length), each = width / values.length, height = 50, reach = 33;
  const [up, down] = context.range, middle = up + down > 0 ? 1 + (reach * up) / (up + down) : reach;
  const wide = Math.min(16, each - 3), format = formatter(values);
  const told = values.map((v, i) => `${context.terms[i]}: ${format(v)}`).join(", ");
  const chart = svg("svg", { class: "terms", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told }, svg("title", {}, told));
  values.forEach((v, i) => {
    const tall = Math.max(v === 0 ? 0 : 1, (Math.abs(v) / (up + down || 1)) * reach), centre = i * each + each / 2;
    chart.append(svg("rect", { class: (v < 0 ? "down" : "up") + (isBase(context.terms[i]) ? " base" : ""),
      x: centre - wide / 2, y: v < 0 ? middle : middle - tall, width: wide, height: tall }));
    if (values.length <= 6 || i === 0 || i === values.length - 1)
      chart.append(svg("text", { x: values.length <= 6 ? centre : i ? width : 0, y: height - 2, "text-anchor": values.length <= 6 ? "middle" : i ? "end" : "start" }, context.termNames[i]));
  });
  chart.append(svg("line", { class: "zero", x1: 0, x2: width, y1: middle, y2: middle }));
  return chart;
}

export const weightsTold = (terms, weights) => terms.map((name, i) => `${shortNames(terms)[i]} × ${minus(weights[i])}`).join(", ");

// The frozen report: the document stands in the page, everything is drawn from it.
import { byId, el, button, tabs } from "./views/dom.js";
import { grouped, isBase, plural } from "./views/numbers.js";
import { sentence, showLeaning } from "./views/leaning.js";
import { heights, listedTicks, showHistogram } from "./views/histogram.js";
import { weightsTold } from "./views/cards.js";
import { focusedCard, helpPanel, moveCard, onKeys, openCard, showList } from "./views/list.js";
import { leaningSeries, plainText, records } from "./views/records.js";

const PAGE = 100;
const data = JSON.parse(byId("contents").textContent);
const state = { target: data.order[0], method: 0, list: "best", filter: "", source: "", range: null, start: 0, bySource: false };
const answer = () => data.answers[state.method][state.target];
const method = () => data.methods[state.method];
const target = () => data.targets[state.target];
const facet = data.facets && data.facets.length ? (data.facets.includes("source") ? "source" : data.facets[0]) : null;

// ---- the question ------------------------------------------------------------------------------------------------
const said = (query) => el("span", { class: "said", dir: "auto" }, (query.output || "").trim());
const asked = (query) => el("span", { class: "asked", dir: "auto" }, query.prompt.trimEnd());
const corrected = (query, tag) =>
  query.corrected == null ? null : el(tag, { class: "corrected" }, "corrected: ", el("span", { dir: "auto" }, query.corrected.trim()));

function showQuestion() {
  const queries = target().members.map((q) => data.queries[q]), heading = byId("question");
  if (target().kind === "group") {
    byId("kicker").textContent = `Why does the model say this? A group of ${plural(queries.length, "query", "queries")}, answered together`;
    heading.replaceChildren(target().name.replaceAll("->", "-\u2060>"));
    heading.classList.toggle("long", target().name.length > 140);
    byId("queries").replaceChildren(el("ul", { class: "members" }, ...queries.map((query) => {
      const number = data.targets.findIndex((t) => t.kind === "query" && t.name === query.name);
      return el("li", {}, number >= 0 && button(query.name, () => choose({ target: number }), { "aria-label": `Answer for ${query.name} alone` }),
        asked(query), " ", said(query), " ", corrected(query, "span"));
    })));
  } else {
    const query = queries[0];
    byId("kicker").textContent = "Why does the model say this?" + (query.span ? ` Measured: ${query.span}.` : "");
    heading.replaceChildren(asked(query), " ", said(query));
    heading.classList.toggle("long", query.prompt.length + (query.output || "").length > 140);
    byId("queries").replaceChildren(...[corrected(query, "p")].filter(Boolean));
  }
  byId("sentences").replaceChildren(...answer().sentences.map(sentence));
  if (target().guilty && target().culprits)
    byId("sentences").append(el("p", { class: "extra" },
      `Known culprits: ${plural(target().guilty, "row")}, of which ${grouped(answer().found)} among the first ${grouped(target().guilty)} under ${method().name}.`));
}

const drawLeaning = () => showLeaning(byId("leaning"), data.leanings ? data.leanings.checkpoints : [],
  leaningSeries(data.leanings, target().members.map((q) => data.queries[q])));

// ---- all scores and the rows ---------------------------------------------------------------------------------------
function drawHistogram() {
  const a = answer(), guilty = new Set(target().culprits || []), entries = a[state.list];
  const found = entries.filter(([n]) => guilty.has(n)).map((entry) => entry[2]);
  const change = (range) => choose({ range, start: 0 });
  showHistogram(byId("histogram"), { ...a, rows: data.train.rows, side: state.list, ticks: entries.map((entry) => entry[2]), culprits: found,
    told: heights(data.train.rows, method().name) + listedTicks(entries.length, data.train.rows, state.list, found.length) }, { range: state.range, change });
}

function drawRows() {
  const a = answer(), others = data.methods.filter((_, m) => m !== state.method).map((m) => m.name);
  for (const list of ["best", "worst"]) byId("tab-" + list).textContent = `${list === "best" ? "Supporting" : "Opposing"} ${grouped(a[list].length)}`;
  markTab(state.list);
  byId("list").setAttribute("role", "tabpanel");
  byId("list").setAttribute("aria-labelledby", "tab-" + state.list);
  const part = { rows: data.rows, twins: data.twins, separator: data.separator, words: target().words };
  const all = records(part, { entries: a[state.list], answer: a, target: state.target, total: data.train.rows, others, culprits: target().culprits, file: facet });
  const needle = state.filter.trim().toLowerCase();
  const shown = all.filter((row) => (!needle || plainText(row).includes(needle) || (row.culprit && needle === "culprit")) &&
    (!state.source || row.source === state.source) && (!state.range || (row.score >= state.range[0] && row.score <= state.range[1])));
  if (state.start >= shown.length) state.start = 0;
  byId("note").textContent = needle || state.source || state.range ? `${grouped(shown.length)} of the ${grouped(all.length)} rows listed.` : noteOf(a, all.length);
  showList(byId("list"), { rows: shown.slice(state.start, state.start + PAGE), start: state.start, size: PAGE, total: shown.length, terms: method().terms, others,
    kind: data.train.kind, bySource: state.bySource && facet, limit: state.list === "best" ? a.out : 0,
    empty: all.length ? `None of the ${grouped(all.length)} rows listed here is like this.` : `No row has a negative score under ${method().name}.` },
  (start) => { state.start = start; drawRows(); });
}

function noteOf(a, total) {
  const terms = method().terms, scores = plural(data.train.rows, "score"), parts = [];
  if (state.list === "best") parts.push(total === data.train.rows ? (total === 1 ? "The only row." : `All ${grouped(total)} rows, highest score first.`) : `The ${grouped(total)} highest of ${scores}.`);
  else if (total) parts.push(`The ${grouped(total)} lowest of ${scores}; only negative ones are listed.`);
  if (!total) return parts.join(" ");
  parts.push("Marked: words that the query has too; bold: whole runs of them.");
  if (terms.length) {
    const told = terms.length <= 8 ? `; the score adds them up as ${weightsTold(terms, method().weights)}` : "";
    parts.push(`Bars: the row’s value at each checkpoint${terms.some(isBase) ? ", hollow at the base model" : ""}${told}.`);
  }
  return parts.join(" ");
}

// ---- choosing ------------------------------------------------------------------------------------------------------
const markTab = tabs(["best", "worst"].map((list) => [list, byId("tab-" + list)]), (list) => choose({ list, start: 0 }));

function choose(change) {
  const before = { ...state };
  Object.assign(state, change);
  if (state.target !== before.target || state.method !== before.method) Object.assign(state, { range: null, start: 0 });
  location.replace("#" + new URLSearchParams({ question: target().name, method: method().name, rows: state.list, ...(state.filter && { filter: state.filter }) }));
  show(state.target !== before.target || state.method !== before.method);
}

function show(all = true) {
  byId("target").value = String(state.target);
  byId("method").value = String(state.method);
  byId("filter").value = state.filter;
  if (all) {
    showQuestion();
    drawLeaning();
  }
  drawHistogram();
  drawRows();
}

function fromAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const found = { target: data.targets.findIndex((t) => t.name === wanted.get("question")), method: data.methods.findIndex((m) => m.name === wanted.get("method")) };
  for (const [name, number] of Object.entries(found)) if (number >= 0) state[name] = number;
  if (["best", "worst"].includes(wanted.get("rows"))) state.list = wanted.get("rows");
  state.filter = wanted.get("filter") || "";
}

function options() {
  const short = (text) => (text.length > 70 ? text.slice(0, 69) + "…" : text);
  for (const [kind, title] of [["group", "Groups"], ["query", "Queries"]]) {
    const some = data.order.filter((r) => data.targets[r].kind === kind);
    if (!some.length) continue;
    byId("target").append(el("optgroup", { label: title }, ...some.map((r) => {
      const t = data.targets[r], query = data.queries[t.members[0]];
      const text = kind === "group" ? `${t.name} (${t.members.length})` : `${t.name}: ${query.prompt.trim()} → ${(query.output || "").trim()}`;
      return el("option", { value: r }, short(text));
    })));
  }
  data.methods.forEach((m, i) => byId("method").append(el("option", { value: i }, m.name)));
  byId("target-choice").hidden = data.targets.length < 2;
  byId("method-choice").hidden = data.methods.length < 2;
  const sources = facet ? [...new Set(Object.values(data.rows).map((row) => (row.f || {})[facet]).filter(Boolean))].sort() : [];
  byId("source-choice").hidden = byId("by-source-choice").hidden = sources.length < 2;
  byId("source").append(el("option", { value: "" }, `every ${facet}`), ...sources.map((name) => el("option", { value: name }, short(name))));
}

function start() {
  for (const node of document.querySelectorAll("[data-script]")) node.hidden = false;
  options();
  byId("target").addEventListener("change", (event) => choose({ target: Number(event.target.value) }));
  byId("method").addEventListener("change", (event) => choose({ method: Number(event.target.value) }));
  byId("filter").addEventListener("input", (event) => choose({ filter: event.target.value, start: 0 }));
  byId("source").addEventListener("change", (event) => choose({ source: event.target.value, start: 0 }));
  byId("by-source").addEventListener("change", (event) => choose({ bySource: event.target.checked }));
  const help = helpPanel([], ["m"]), list = byId("list");
  const turn = (step) => [...list.querySelectorAll(".pager button")][step]?.click();
  byId("help").addEventListener("click", () => help.showModal());
  onKeys({ j: () => moveCard(list, 1), k: () => moveCard(list, -1), Enter: () => openCard(focusedCard()), "/": () => byId("filter").focus(),
    s: () => choose({ list: "best", start: 0 }), o: () => choose({ list: "worst", start: 0 }), "[": () => turn(0), "]": () => turn(1),
    Escape: () => choose({ range: null }), "?": () => help.showModal() });
  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    drawLeaning();
    drawHistogram();
  }).observe(document.body);
  fromAddress();
  show();
  window.addEventListener("hashchange", () => {
    const before = JSON.stringify(state);
    fromAddress();
    if (JSON.stringify(state) !== before) show();
  });
}
start();

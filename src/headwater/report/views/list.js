// A page of cards: drawn at once, moved through with j and k, never more than one page in the document.
import { button, byId, el } from "./dom.js";
import { card, cardContext, columnHeads, termWidth } from "./cards.js";
import { grouped, plural } from "./numbers.js";

/* page: { rows, start, total, terms, others: [method names], kind, act, bySource, limit: rows that stand out, title, empty: text }
   turn(start) asks for another page. */
export function showList(root, page, turn) {
  const { rows, terms, others } = page;
  const panel = el("div", { class: (terms.length ? "with-terms " : "") + (others.length ? "with-others" : "") });
  if (page.title) panel.append(el("h3", { class: "of-method" }, page.title));
  panel.style.setProperty("--terms", Math.max(84, termWidth(terms.length)) + "px");
  if (!rows.length) {
    panel.append(el("p", { class: "empty" }, page.empty));
    return root.replaceChildren(panel);
  }
  const context = cardContext(rows, page);
  panel.append(columnHeads(terms, others));
  if (page.bySource) panel.append(...sections(rows, context));
  else panel.append(el("ol", { class: "list", start: page.start + 1 }, ...items(rows, context, page)));
  if (page.total > rows.length) panel.append(pager(page, turn));
  root.replaceChildren(panel);
}

function items(rows, context, page) {
  const same = (a, b) => a && b && a.twins && b.twins && a.twins.key === b.twins.key;
  return rows.flatMap((row, i) => {
    const before = rows[i - 1];
    const limit = page.limit && before && before.rank <= page.limit && row.rank > page.limit;
    return [limit && el("li", { class: "limit-line" }, "From here on no row stands out"),
      card(row, context, { twin: same(row, rows[i + 1]), again: same(row, before), open: row.rank <= 3 })].filter(Boolean);
  });
}

function sections(rows, context) {
  const groups = new Map();
  for (const row of rows) groups.set(row.source || "", [...(groups.get(row.source || "") || []), row]);
  return [...groups].map(([source, some]) => el("section", { class: "of-source" },
    el("h3", {}, source || "no source", el("span", { class: "muted" }, ` ${plural(some.length, "row")} on this page`)),
    el("ol", { class: "list" }, ...items(some, context, {}))));
}

function pager({ start, rows, total, size }, turn) {
  const move = (to) => { turn(to); byId("rows-title")?.scrollIntoView({ block: "start" }); };
  return el("nav", { class: "pager", "aria-label": "Pages of rows" },
    button("Previous", () => move(Math.max(0, start - size)), { disabled: start === 0 }),
    el("span", {}, `${grouped(start + 1)}–${grouped(start + rows.length)} of ${grouped(total)}`),
    button("Next", () => move(start + size), { disabled: start + rows.length >= total }));
}

// ---- keys: single letters, wherever nothing is being typed ------------------------------------------------------
export function onKeys(act) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (typing) {
      if (event.key === "Escape") typing.blur();
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    const name = event.key;
    if (!act[name] || (name === "Enter" && event.target.closest("button, a, summary, [role=tab], [role=option]"))) return;
    if (act[name](event) !== false) event.preventDefault();
  });
}

// The card that has the focus, and the one to go to.
export const focusedCard = () => document.activeElement?.closest?.(".row[data-row]") || null;

export function moveCard(root, step) {
  const cards = [...root.querySelectorAll(".row[data-row]")];
  if (!cards.length) return false;
  const at = cards.indexOf(focusedCard());
  const next = cards[at < 0 ? (step > 0 ? 0 : cards.length - 1) : Math.min(cards.length - 1, Math.max(0, at + step))];
  next.tabIndex = -1;
  next.focus();
  return cards.indexOf(next) !== at;
}

// Enter on a card: its whole text, and the words that carry the score.
export function openCard(node) {
  if (!node) return false;
  const details = node.querySelector("details.carrying");
  const more = node.querySelector("button.more");
  const open = details ? !details.open : more?.getAttribute("aria-expanded") !== "true";
  if (details) details.open = open;
  if (more && (more.getAttribute("aria-expanded") === "true") !== open) more.click();
  return true;
}

const KEYS = [["j, k", "next and previous row"], ["Enter", "open the row: its whole text, the words that carry the score"],
  ["m", "mark the row as a culprit"], ["/", "search the rows"], ["s, o", "supporting rows, opposing rows"],
  ["[, ]", "previous and next page"], ["Esc", "leave a field; show all scores again"], ["?", "this help"]];

export function helpPanel(extra, without = []) {
  const lines = [...extra, ...KEYS.filter(([key]) => !without.includes(key))];
  const close = button("Close", () => dialog.close());
  const dialog = el("dialog", { class: "help", "aria-labelledby": "help-title" }, el("h2", { id: "help-title" }, "Keys"),
    el("dl", {}, ...lines.flatMap(([key, what]) => [el("dt", {}, ...key.split(", ").flatMap((k, i) => [i ? " " : null, el("kbd", {}, k)])), el("dd", {}, what)])), close);
  document.body.append(dialog);
  return dialog;
}

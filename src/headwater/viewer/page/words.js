/* The output as words that can be shaded and selected. Positions are code points, as the server counts them.

A word is { start, end, space: what stands in front of it, parts: [[text, token or null]] }: a run of letters and digits, or
of other characters. */
import { el } from "./views/dom.js";
import { minus } from "./views/numbers.js";

// The output comes as it is, so that it can be asked about again; shown, nothing in it turns the direction of the page.
export const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))).replace(/[\u007f-\u009f\u202a-\u202e\u2066-\u2069]|\p{Cs}/gu, "\ufffd");

const WORD = /(\s*)((?:[\p{L}\p{N}\p{M}]+(?:['’.,:-][\p{L}\p{N}\p{M}]+)*|[^\s\p{L}\p{N}\p{M}]+)|$)/gu;

export function wordsOf(output, tokens) {
  const words = [];
  let at = 0;
  for (const [, space, letters] of output.matchAll(WORD)) {
    const start = at + [...space].length, points = [...letters];
    const end = (at = start + points.length);
    const inside = tokens.filter((token) => token.end > start && token.start < end);
    const cuts = [...new Set([start, end, ...inside.flatMap((token) => [token.start, token.end])])].filter((c) => c >= start && c <= end).sort((a, b) => a - b);
    const parts = cuts.slice(1).map((to, i) => [points.slice(cuts[i] - start, to - start).join(""), inside.find((token) => token.start <= cuts[i] && token.end >= to) || null]);
    if (letters) words.push({ start, end, space, parts });
  }
  return words;
}

const shades = {
  none: () => 0,
  // log-probability of the token: surprising ones are dark
  likely: (token) => -Math.min(5, Math.round(Math.max(0, -token.tuned))),
  // nats that fine-tuning moved it by
  moved: (token) => (token.base == null ? 0 : Math.max(-5, Math.min(5, Math.round(1.25 * (token.tuned - token.base))))),
};
export const shadeTold = {
  none: "",
  likely: "Darker: less likely under the last checkpoint; the darkest at 5 nats or more.",
  moved: "Blue: fine-tuning made it more likely; brown: less likely; the darkest at 4 nats or more.",
};

const told = (token) => `${minus(token.tuned.toFixed(2))} nats` + (token.base == null ? "" : `; base ${minus(token.base.toFixed(2))}`);

/* A listbox. choose([first, last] in words, or null) is called when the reader selects. */
export class Words {
  constructor(box, choose) {
    Object.assign(this, { box, choose, words: [], selection: null, shade: "likely", at: 0, anchor: 0 });
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("pointerdown", (event) => this.press(event));
    box.addEventListener("pointermove", (event) => event.buttons === 1 && this.dragging && this.extend(this.under(event)));
    window.addEventListener("pointerup", () => {
      if (this.dragging) this.tell();
      this.dragging = false;
    });
  }

  show(output, tokens) {
    this.words = wordsOf(output, tokens);
    this.at = Math.min(this.at, Math.max(0, this.words.length - 1));
    const hadFocus = this.box.contains(document.activeElement);
    this.box.replaceChildren(...this.words.flatMap(({ space, parts }, i) => [visible(space),
      el("span", { role: "option", class: "word", "data-word": i, tabindex: i === this.at ? 0 : -1 }, ...parts.map(([text, token]) => this.part(text, token)))]));
    this.mark();
    if (hadFocus) this.box.children[this.at]?.focus();
  }

  part(text, token) {
    if (!token) return visible(text);
    const level = shades[this.shade](token);
    const kind = this.shade === "likely" ? "odd" : level > 0 ? "towards" : "away";
    return el("span", { class: level ? `${kind}-${Math.abs(level)}` : null, title: told(token) }, visible(text));
  }

  select(range) {
    this.selection = range;
    if (range) [this.anchor, this.at] = range;
    this.mark();
  }

  // [start, end] in code points, or null for the whole output.
  get span() {
    if (!this.selection) return null;
    const [a, b] = this.selection;
    return a === 0 && b === this.words.length - 1 ? null : [this.words[a].start, this.words[b].end];
  }

  selectSpan(span) {
    const inside = span ? this.words.flatMap((word, i) => (word.end > span[0] && word.start < span[1] ? [i] : [])) : [];
    this.select(inside.length ? [inside[0], inside.at(-1)] : null);
  }

  sentenceAt(i) {
    const ends = (n) => /[.!?。！？]/u.test(this.words[n].parts.map(([text]) => text).join("")) || this.words[n + 1]?.space.includes("\n");
    let a = i, b = i;
    while (a > 0 && !ends(a - 1)) a--;
    while (b < this.words.length - 1 && !ends(b)) b++;
    return [a, b];
  }

  mark() {
    const [a, b] = this.selection || [0, -1];
    [...this.box.children].forEach((node, i) => {
      node.setAttribute("aria-selected", String(i >= a && i <= b));
      node.tabIndex = i === this.at ? 0 : -1;
    });
  }

  under(event) {
    const node = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-word]");
    return node && this.box.contains(node) ? Number(node.dataset.word) : -1;
  }

  press(event) {
    const i = this.under(event);
    if (i < 0 || event.button) return;
    event.preventDefault();
    this.dragging = true;
    if (event.shiftKey) return this.extend(i);
    this.anchor = this.at = i;
    this.select([i, i]);
    this.box.children[i].focus();
  }

  extend(i) {
    if (i < 0) return;
    this.at = i;
    this.selection = [Math.min(this.anchor, i), Math.max(this.anchor, i)];
    this.mark();
    this.box.children[i].focus();
  }

  key(event) {
    const last = this.words.length - 1, all = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a";
    const to = { ArrowLeft: this.at - 1, ArrowUp: this.at - 1, ArrowRight: this.at + 1, ArrowDown: this.at + 1, Home: 0, End: last }[event.key];
    if (all) { this.select(null); this.tell(); }
    else if (event.key === " " || event.key === "Enter") { this.anchor = this.at; this.select([this.at, this.at]); this.tell(); }
    else if (event.key === "Escape") { this.select(null); this.tell(); }
    else if (to === undefined) return;
    else {
      const next = Math.max(0, Math.min(last, to));
      if (event.shiftKey) { if (!this.selection) this.anchor = this.at; this.extend(next); this.tell(); }
      else { this.at = this.anchor = next; this.mark(); this.box.children[next].focus(); }
    }
    event.preventDefault();
    event.stopPropagation();
  }

  tell() { this.choose(this.selection); }
}

// The words between what both begin with and what both end with, of each, as the server cuts them (examples/queries.py).
function between(output, other) {
  const [a, b] = [output, other].map(cut);
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head].text === b[head].text) head++;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail].text === b[b.length - 1 - tail].text) tail++;
  return [a, b].map((words) => words.slice(head, words.length - tail));
}

const CUT = /\p{Nd}+(?:[.,:/]\p{Nd}+)+|[\p{L}\p{N}_]+(?:['’-][\p{L}\p{N}_]+)*|[^\s\p{L}\p{N}_]/gu;

function cut(text) {
  return [...text.matchAll(CUT)].map((found) => {
    const start = [...text.slice(0, found.index)].length;
    return { text: found[0], start, end: start + [...found[0]].length };
  });
}

// The characters of `output` in which it differs from `other`: [start, end], or null where it has no words of its own.
export function own(output, other) {
  const [mine] = between(output, other);
  return mine.length ? [mine[0].start, mine.at(-1).end] : null;
}

// The same, where both have letters or digits of their own there: what is measured of a contrast.
export function differing(output, other) {
  return between(output, other).every((words) => words.some(({ text }) => /[\p{L}\p{N}]/u.test(text))) ? own(output, other) : null;
}

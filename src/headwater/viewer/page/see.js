// See: one answer as sentences, a histogram and pages of cards. Every change is one request, and the last one counts.
import { button, byId, debounced, el, tabs } from "./views/dom.js";
import { grouped, isBase, plural, signed } from "./views/numbers.js";
import { sentence, showLeaning } from "./views/leaning.js";
import { heights, listedTicks, showHistogram } from "./views/histogram.js";
import { showList } from "./views/list.js";
import { leaningSeries, records } from "./views/records.js";
import { ask, finished, post } from "./api.js";
import { Sliders } from "./sliders.js";

const FRESH = { target: 0, against: "", list: "best", search: "", range: null, weights: null, facets: {}, offset: 0, marked: "", groups: false };

export class See {
  /* marks: () => marks by row number; pick(row); changed(view): the address; retargeted(): another question of the answer; failed(fault); compute(method): a promise of the
     method's answer being there, with its progress shown. */
  constructor(session, on) {
    Object.assign(this, { session, on, doc: null, view: { ...FRESH, answer: null, method: "" }, loading: false, rows: new Map(), words: new Map(), opened: new Map() });
    this.facet = session.facets.find(({ name }) => name === "source") || session.facets[0] || null;
    this.sliders = new Sliders(byId("sliders"), (weights) => this.change({ weights }));
    this.markTab = tabs(["best", "worst"].map((list) => [list, byId("tab-" + list)]), (list) => this.change({ list, offset: 0 }));
    byId("method").addEventListener("change", (event) => this.choose({ method: event.target.value, weights: null, range: null, offset: 0 }));
    byId("against").addEventListener("change", (event) => this.choose({ against: event.target.value, offset: 0 }));
    byId("target").addEventListener("change", (event) => {
      this.change({ target: Number(event.target.value), range: null, offset: 0 });
      this.on.retargeted();
    });
    const search = debounced((text) => this.change({ search: text, offset: 0 }), 180);
    byId("filter").addEventListener("input", (event) => search(event.target.value));
    byId("by-source").addEventListener("change", (event) => this.change({ groups: event.target.checked }));
    byId("by-source-choice").hidden = !this.facet;
    if (this.facet) byId("by-source").parentElement.lastChild.textContent = ` by ${this.facet.name}`;
    this.drawFacets();
    let width = 0;
    new ResizeObserver(() => {
      if (document.body.clientWidth === width) return;
      width = document.body.clientWidth;
      if (this.shown) { this.drawLeaning(); this.drawHistogram(); }
    }).observe(document.body);
  }

  // ---- what is shown -----------------------------------------------------------------------------------------------
  async open(id, view = {}) {
    const doc = await ask(`/api/answers/${encodeURIComponent(id)}`);
    const names = doc.methods.map(({ name }) => name);
    this.doc = doc;
    this.view = { ...this.view, answer: id, ...view };
    if (!names.includes(this.view.method)) Object.assign(this.view, { method: names[0], weights: null });
    if (!names.includes(this.view.against)) this.view.against = "";
    if (this.view.target >= doc.targets.length) this.view.target = doc.order[0] || 0;
    const terms = this.method.terms.length;
    if (this.view.weights && this.view.weights.length !== terms) this.view.weights = null;
    byId("result").hidden = false;
    this.drawChoices();
    await this.load();
    return doc;
  }

  get method() { return this.doc.methods.find(({ name }) => name === this.view.method); }
  get target() { return this.doc.targets[this.view.target]; }
  get total() { return this.doc.train.rows; }

  fresh() { this.opened.clear(); Object.assign(this.view, FRESH, { method: this.view.method, against: this.view.against, list: this.view.list, facets: this.view.facets, groups: this.view.groups }); }

  change(part) {
    if (!this.doc) return undefined;
    Object.assign(this.view, part);
    return this.load();
  }

  // A method whose answer may have to be computed first.
  async choose(part) {
    const wanted = part.method || part.against;
    if (wanted && !this.doc.methods.some(({ name }) => name === wanted)) {
      try {
        await this.on.compute(this.view.answer, wanted);
        this.doc = await ask(`/api/answers/${encodeURIComponent(this.view.answer)}`);
      } catch (fault) {
        this.drawChoices();
        if (!fault.cancelled) this.on.failed(fault);
        return;
      }
    }
    Object.assign(this.view, part);
    if (this.view.against === this.view.method) this.view.against = "";
    this.drawChoices();
    await this.load();
  }

  parameters(method) {
    const { target, list, search, range, weights, facets, offset, marked, groups, against } = this.view;
    const parts = new URLSearchParams({ target, method, list, offset, limit: this.session.defaults.page });
    if (weights && method === this.view.method) parts.set("weights", weights.join(","));
    if (search) parts.set("search", search);
    if (range && method === this.view.method) { parts.set("low", range[0]); parts.set("high", range[1]); }
    for (const [name, value] of Object.entries(facets)) parts.append("facet", `${name}=${value}`);
    if (marked !== "") parts.set("marked", marked);
    if (groups && this.facet) parts.set("group", this.facet.name);
    if (against && method === this.view.method) parts.set("against", against);
    return parts;
  }

  async load() {
    this.again = true;
    if (this.loading) return;
    this.loading = true;
    byId("lists").setAttribute("aria-busy", "true");
    try {
      while (this.again) {
        this.again = false;
        const methods = [this.view.method, this.view.against].filter(Boolean), place = `/api/answers/${encodeURIComponent(this.view.answer)}/view?`;
        const views = await Promise.all(methods.map((name) => ask(place + this.parameters(name))));
        if (!this.again) this.draw(methods, views);
      }
    } catch (fault) {
      this.on.failed(fault, () => this.load());
    } finally {
      this.loading = false;
      byId("lists").removeAttribute("aria-busy");
    }
  }

  draw(methods, views) {
    this.shown = views[0];
    this.side = views[1] || null;
    const { answer } = this.shown;
    this.told(byId("sentences"), answer.sentences);
    this.drawLeaning();
    this.drawHistogram();
    this.sliders.show(this.method, this.view.weights || answer.weights);
    byId("weights").hidden = !this.method.terms.length || this.method.reweighs?.able === false;
    this.drawRows(methods);
    this.drawGroups();
    this.on.changed(this.view);
  }

  // Only what is new is drawn, so that it is read out once.
  told(box, lines) {
    const now = lines.join("\n");
    if (box.dataset.told === now) return;
    box.dataset.told = now;
    box.replaceChildren(...lines.map(sentence));
  }

  drawLeaning() {
    const all = this.doc.leanings;
    showLeaning(byId("leaning"), all ? all.checkpoints : [], leaningSeries(all, this.target.members.map((q) => this.doc.queries[q])));
  }

  drawHistogram() {
    const { answer, list } = this.shown, entries = answer[list], marks = this.on.marks();
    const culprits = entries.filter(([n]) => marks[n]).map((entry) => entry[2]);
    showHistogram(byId("histogram"), { ...answer, rows: this.method.rows, side: list, ticks: entries.map((entry) => entry[2]), culprits,
      told: heights(this.method.rows, this.view.method) + (this.view.offset ? "" : listedTicks(entries.length, this.method.rows, list, culprits.length)) },
    { range: this.view.range, change: (range) => this.change({ range, offset: 0 }) });
  }

  // ---- rows --------------------------------------------------------------------------------------------------------
  drawRows(methods) {
    const { list } = this.view, marks = this.on.marks();
    this.markTab(list);
    byId("list").setAttribute("aria-labelledby", "tab-" + list);
    const some = [this.shown, this.side].filter(Boolean);
    const numbers = some.map((view) => new Set(view.answer[list].map(([n]) => n)));
    this.rows = new Map();
    some.forEach((view, side) => {
      const others = this.doc.methods.map(({ name }) => name).filter((name) => name !== methods[side]);
      const method = this.doc.methods.find(({ name }) => name === methods[side]);
      const rows = records(view, { entries: view.answer[list], answer: view.answer, target: this.view.target, total: method.rows,
        others: this.side ? [] : others, culprits: this.target.culprits, picked: (n) => Boolean(marks[n]), file: this.facet?.name });
      rows.forEach((row) => {
        row.words ||= this.words.get(this.wordsKey(methods[side], row));
        row.opened = this.opened.get(row.n);
        row.shared = this.side && numbers[1 - side].has(row.n);
        this.rows.set(row.n, row);
      });
      showList(byId(side ? "list-against" : "list"), { rows, start: view.offset, size: this.session.defaults.page, total: view.total, terms: this.side ? [] : method.terms,
        others: this.side ? [] : others, kind: this.doc.train.kind, limit: list === "best" ? view.answer.out : 0, title: this.side ? methods[side] + (method.kept < this.total ? ` (${plural(method.kept, "row")})` : "") : null,
        act: { pick: (row) => this.on.pick(row), words: this.splits(methods[side]) && ((row, say) => this.askWords(methods[side], row, say)), toggled: (row, open) => this.opened.set(row.n, open) }, empty: this.emptyText(methods[side]) },
      (offset) => this.change({ offset }));
    });
    byId("list-against").hidden = !this.side;
    byId("lists").classList.toggle("two", Boolean(this.side));
    byId("note").textContent = this.noteText();
    this.drawAgreement();
  }

  emptyText(method) {
    const { search, range, facets, marked, list } = this.view;
    if (search || range || marked !== "" || Object.keys(facets).length) return "No row is like this. Clear the search, the source or the range of scores.";
    return list === "worst" ? `No row has a negative score under ${method}.` : "There are no rows.";
  }

  noteText() {
    const { total, list, answer } = this.shown, { search, range, facets, marked } = this.view;
    const filtered = search || range || marked !== "" || Object.keys(facets).length;
    const kept = this.method.kept < this.total ? `; ${grouped(this.method.kept)} of ${plural(this.total, "row")} have a score by it` : "";
    const what = filtered ? `${grouped(total)} of ${plural(this.method.kept, "row")} ${total === 1 ? "is" : "are"} like this` : list === "worst" ? `${plural(total, "row")} with a negative score, lowest first` : `${plural(total, "row")}, highest score first`;
    const out = list === "best" && answer.out ? `; ${plural(answer.out, "stands", "stand")} out` : "";
    return `${what}${out}${kept}. Marked: words that the query has too; bold: whole runs of them.` +
      (this.method.terms.length && !this.side ? ` Bars: the row’s value at each checkpoint${this.method.terms.some(isBase) ? ", hollow at the base model" : ""}.` : "");
  }

  drawAgreement() {
    const found = this.side && this.shown.agreement;
    byId("agreement").hidden = !this.side;
    if (!this.side) return;
    const shared = found ? found.shared.map(([k, n]) => `${grouped(n)} of the first ${grouped(k)}`).join(", ") : "";
    byId("agreement").textContent = found
      ? `Agreement of ${this.view.method} and ${found.with}: ${shared} rows are the same; rank correlation over all rows ${found.spearman == null ? "unknown" : signed(found.spearman, 2)}.`
      : "These two cannot be compared row by row.";
  }

  // Whether a method's scores are made of parts by word.
  splits(method) { return this.session.methods.find(({ name }) => name === method.split(" (")[0])?.words !== false; }

  wordsKey(method, row) { return JSON.stringify([this.view.answer, this.view.target, method, this.view.weights, row.n]); }

  async askWords(method, row, say) {
    const key = this.wordsKey(method, row);
    const { able, why } = this.session.can.words;
    if (!able) throw new Error(why);
    const { answer, target, weights } = this.view;
    const found = await post(`/api/answers/${encodeURIComponent(answer)}/words`, { target, method, row: row.n, ...(weights && method === this.view.method && { weights }) });
    const done = found.words ? { result: found } : await finished(found.job, (job) => say(["Splitting the score by words", job.stage].filter(Boolean).join(" · ")));
    if (this.words.size > 200) this.words.clear();
    this.words.set(key, done.result.words);
    return done.result.words;
  }

  // ---- choices -----------------------------------------------------------------------------------------------------
  drawChoices() {
    const there = new Set(this.doc.methods.map(({ name }) => name));
    const option = ({ name, able, how, why }) => el("option", { value: name, disabled: !able && !there.has(name), title: why },
      name + (there.has(name) ? "" : able ? { rows: " (slow: reads all rows)", look: " (slower: reads the first rows again)", index: "", words: "", stored: "" }[how] || "" : " (not here)"));
    const known = this.session.methods.map(({ name }) => name);
    const all = [...this.session.methods, ...this.doc.methods.filter(({ name }) => !known.includes(name)).map(({ name }) => ({ name, able: true, how: "stored" }))];
    byId("method").replaceChildren(...all.map(option));
    byId("method").value = this.view.method;
    byId("against").replaceChildren(el("option", { value: "" }, "none"), ...all.filter(({ name }) => name !== this.view.method).map(option));
    byId("against").value = this.view.against;
    const method = this.session.methods.find(({ name }) => name === this.view.method);
    byId("method-told").textContent = method ? `${method.name}: ${method.computes}.` : "";
    byId("target-choice").hidden = this.doc.targets.length < 2;
    byId("target").replaceChildren(...this.doc.order.map((r) => {
      const target = this.doc.targets[r], query = this.doc.queries[target.members[0]];
      const text = target.kind === "group" ? `${target.name} (${plural(target.members.length, "query", "queries")})` : `${target.name}: ${query.prompt.trim()} → ${(query.output || "").trim()}`;
      return el("option", { value: r }, text.length > 70 ? text.slice(0, 69) + "…" : text);
    }));
    byId("target").value = String(this.view.target);
    if (byId("filter").value !== this.view.search) byId("filter").value = this.view.search;
    byId("by-source").checked = Boolean(this.view.groups);
    for (const select of byId("facets").querySelectorAll("select")) select.value = this.view.facets[select.dataset.name] || "";
  }

  drawFacets() {
    byId("facets").replaceChildren(...this.session.facets.slice(0, 3).map(({ name, values }) => el("label", {}, `${name} `,
      el("select", { "data-name": name, on: { change: (event) => this.narrow(name, event.target.value) } }, el("option", { value: "" }, "all"),
        ...values.map(([value, count]) => el("option", { value }, `${value.length > 40 ? value.slice(0, 39) + "…" : value} (${grouped(count)})`))))));
  }

  narrow(name, value) {
    const facets = { ...this.view.facets, [name]: value };
    if (!value) delete facets[name];
    this.change({ facets, offset: 0 });
    for (const select of byId("facets").querySelectorAll("select")) if (select.dataset.name === name) select.value = value;
  }

  drawGroups() {
    const { groups } = this.shown;
    if (!groups) return byId("groups").replaceChildren();
    const { name } = this.facet, chosen = this.view.facets[name];
    const row = (group) => el("tr", { class: group.value === chosen ? "chosen" : null },
      el("th", { scope: "row" }, button(group.value || "none", () => this.narrow(name, chosen === group.value ? "" : group.value), { class: "link", dir: "auto", "aria-pressed": String(group.value === chosen) })),
      ...[group.rows, group.first, group.out].map((count) => el("td", {}, count == null ? "" : grouped(count))), el("td", {}, signed(group.mean, 4)));
    byId("groups").replaceChildren(el("div", { class: "wide" }, el("table", { class: "groups" },
      el("caption", {}, `By ${name}, best first`),
      el("thead", {}, el("tr", {}, ...[name, "rows", "best rank", "stand out", "mean score"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...groups.slice(0, 50).map(row)))));
  }

  // The parameters of what is shown, for exports.
  get query() {
    const parts = this.parameters(this.view.method);
    for (const name of ["offset", "limit", "group", "against"]) parts.delete(name);
    parts.set("answer", this.view.answer);
    return parts;
  }
}

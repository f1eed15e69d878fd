// Act: the marked rows, what to do with each, exports, and training again without them.
import { button, byId, debounced, el } from "./views/dom.js";
import { minus, plural } from "./views/numbers.js";
import { ask, finished, post } from "./api.js";
import { showJob } from "./progress.js";
import { grow } from "./question.js";
import { own } from "./words.js";

// [file, text, for which it is there: marks of an action, or an answer]
const FILES = [["drop.jsonl", "Rows to drop, JSONL", "drop"], ["fix.jsonl", "Rows to correct, JSONL", "fix"], ["rows.csv", "Rows listed, CSV", "answer"],
  ["rows.jsonl", "Rows listed, JSONL", "answer"], ["report.html", "Report, HTML", "answer"]];

export class Act {
  /* changed(): the marks are others; query(): parameters of what is shown, or null; answer(): id; told(text); failed(fault, again) */
  constructor(session, on) {
    Object.assign(this, { session, on, marks: session.marks, job: null });
    this.able = null;
    new IntersectionObserver((seen) => byId("dock").classList.toggle("away", seen.at(-1).isIntersecting)).observe(byId("act"));
    this.set(session.marks);
    const last = session.jobs.filter(({ kind }) => kind === "repair").at(-1);
    if (last && last.state === "done") this.showAfter(last.result);
    else if (last && !["failed", "cancelled"].includes(last.state)) this.follow(last);
  }

  set(marks) {
    this.marks = marks;
    this.draw();
    this.learn();
    this.on.changed();
  }

  async write(method, body) {
    try {
      this.set(await ask("/api/marks", { method, body }));
      return true;
    } catch (fault) {
      this.on.failed(fault);
      return false;
    }
  }

  async pick(row) {
    const there = this.marks[row.n];
    const done = there ? await this.write("DELETE", { rows: [row.n] }) : await this.write("PUT", { rows: [row.n], action: "drop" });
    if (done) this.on.told(there ? `${row.id} is no longer marked` : `${row.id} is marked as a culprit`);
  }

  // ---- the list ----------------------------------------------------------------------------------------------------
  draw() {
    const all = Object.entries(this.marks), fixes = all.filter(([, mark]) => mark.action === "fix").length;
    byId("dock").hidden = !all.length;
    byId("dock").replaceChildren(el("span", {}, `${plural(all.length, "row")} marked`, fixes ? el("span", { class: "more-told" }, `, ${fixes} to correct`) : ""),
      button("Review and act", () => { byId("act").scrollIntoView({ block: "start" }); byId("act-title").focus({ preventScroll: true }); }, { class: "primary" }));
    byId("act").hidden = !all.length && !this.on.query();
    byId("act-note").textContent = all.length
      ? "Rows to drop are left out of the next training; rows to correct get another completion."
      : "None yet. Mark the rows that taught the model wrong: press m on a row, or its button.";
    const focused = document.activeElement?.closest("#marks [data-mark]");
    if (focused && focused.tagName === "LI" && all.length === byId("marks").children.length) return; // being edited
    byId("marks").replaceChildren(...all.slice(0, 500).map(([n, mark]) => this.item(Number(n), mark)), ...(all.length > 500 ? [el("li", {}, `and ${all.length - 500} more`)] : []));
    byId("marks").querySelectorAll("textarea").forEach(grow);
  }

  item(n, mark) {
    const talk = ["messages", "chat"].includes(this.session.train.kind) && typeof mark.was !== "string";
    const save = debounced((completion) => this.write("PUT", { rows: [n], action: "fix", completion }), 500);
    const area = el("textarea", { rows: 1, "aria-label": `What ${mark.id} should say`, spellcheck: "false", on: { input: () => { grow(area); save(area.value); } } }, mark.completion ?? mark.was ?? "");
    const act = el("select", { "aria-label": `What to do with ${mark.id}`, on: { change: async () => {
      const body = act.value === "fix" ? { rows: [n], action: "fix", completion: area.value || mark.was || " " } : { rows: [n], action: "drop" };
      act.blur();
      await this.write("PUT", body);
    } } }, el("option", { value: "drop" }, "drop"), el("option", { value: "fix", disabled: talk }, "correct"));
    act.value = mark.action;
    return el("li", { "data-mark": n }, el("span", { class: "id", dir: "auto" }, mark.id), act,
      el("div", { class: "mark-text", dir: "auto" }, mark.prompt && el("span", { class: "prompt" }, mark.prompt), mark.action === "fix" ? area : el("span", { class: "struck" }, mark.was || "")),
      button("Unmark", () => this.write("DELETE", { rows: [n] }), { class: "link", "aria-label": `Unmark ${mark.id}` }));
  }

  // ---- exports -----------------------------------------------------------------------------------------------------
  drawExports() {
    const query = this.on.query(), actions = new Set(Object.values(this.marks).map(({ action }) => action));
    byId("act").hidden = !actions.size && !query;
    byId("exports").replaceChildren(el("span", { class: "muted" }, "Export"), ...FILES.filter(([, , needs]) => (needs === "answer" ? query : actions.has(needs))).map(([file, text, needs]) => {
      const parts = file === "report.html" ? `?${new URLSearchParams(["answer", "method"].map((name) => [name, query.get(name)]))}` : needs === "answer" ? `?${query}` : "";
      return el("a", { class: "button", href: `/api/export/${file}${parts}`, download: file }, text);
    }));
  }

  // ---- training again ------------------------------------------------------------------------------------------------
  async learn() {
    this.drawExports();
    const { repair } = this.session.can;
    try {
      this.able = repair.able ? await ask("/api/repair") : { ...repair, command: null, drop: 0, fix: 0 };
    } catch (fault) {
      return;
    }
    this.drawRepair();
  }

  drawRepair() {
    const { able, why, command, drop, fix } = this.able, marked = Object.keys(this.marks).length, answer = this.on.answer();
    const what = [drop && `remove ${plural(drop, "row")}`, fix && `correct ${plural(fix, "row")}`].filter(Boolean).join(", ");
    const go = button(what ? `${what[0].toUpperCase()}${what.slice(1)} and retrain` : "Remove and retrain", () => this.repair(), { class: "primary", disabled: !able || !marked || !answer || Boolean(this.job) });
    byId("repair").replaceChildren(...[go, !able && el("p", { class: "note" }, `Not possible here: ${why}`),
      command && el("details", {}, el("summary", {}, "The command that does it outside of this page"), el("pre", { class: "command" }, command))].filter(Boolean));
  }

  async repair() {
    try {
      const { job } = await post("/api/repair", { answer: this.on.answer() });
      await this.follow(job);
    } catch (fault) {
      if (!fault.cancelled) this.on.failed(fault);
    }
  }

  async follow(job) {
    this.job = job;
    if (this.able) this.drawRepair();
    this.on.told("Training again without the marked rows");
    try {
      const done = await finished(job, (now) => showJob(byId("repair-progress"), now, "Training again"));
      this.showAfter(done.result);
      this.on.told("Trained again. Before and after are shown.");
      byId("after").querySelector("h3").focus();
    } catch (fault) {
      if (!fault.cancelled) this.on.failed(fault, () => this.repair());
    } finally {
      this.job = null;
      showJob(byId("repair-progress"), null);
      if (this.able) this.drawRepair();
    }
  }

  showAfter(result) {
    const nats = (side) => (side.corrected == null ? `output ${minus(side.output.toFixed(1))} nats` : `output ${minus(side.output.toFixed(1))}, corrected ${minus(side.corrected.toFixed(1))} nats`);
    const column = (name, side, other) => el("div", { class: "side" }, el("h4", {}, `${name} `, side.wrong && el("span", { class: "badge wrong" }, "states the wrong output")), el("p", { class: "quote", dir: "auto" }, ...marked(side.said, other.said)), el("p", { class: "muted" }, nats(side)));
    byId("act").hidden = false;
    byId("after").replaceChildren(el("h3", { tabindex: -1 }, "Before and after"),
      el("div", { class: "verdict" }, ...result.sentences.map((text) => el("p", {}, text))),
      el("p", { class: "note" }, `${plural(result.removed, "row")} removed, ${result.corrected} corrected. The new model is in ${result.folder}.`),
      ...result.queries.map((query) => el("div", { class: "pair" }, el("p", { class: "asked", dir: "auto" }, typeof query.prompt === "string" ? query.prompt : query.prompt.map((turn) => turn.content).join("\n")),
        column("Before", query.before, query.after), column("After", query.after, query.before))));
  }
}

// What one says and the other does not is marked.
function marked(said, other) {
  const range = own(said, other), points = [...said];
  if (!range) return [said];
  const [head, part, tail] = [[0, range[0]], range, [range[1]]].map((cut) => points.slice(...cut).join(""));
  return [head, el("mark", {}, part), tail];
}

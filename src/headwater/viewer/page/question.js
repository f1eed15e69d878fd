// Ask and mark: the prompt, the output with its words, what should have been said. Every change makes a new query.
import { button, byId, debounced, el } from "./views/dom.js";
import { cancel, finished, post } from "./api.js";
import { showJob } from "./progress.js";
import { Words, differing, shadeTold, visible } from "./words.js";

const WAIT = 400; // milliseconds of quiet after which the rows are asked for

export class Question {
  /* asked(query): a whole query is there. told(text): say it to the reader. failed(fault, again): show it. */
  constructor(session, { asked, told, failed }) {
    Object.assign(this, { session, asked, told, failed, output: null, tokens: [], span: "auto", job: null, turns: [] });
    this.words = new Words(byId("words"), (range) => this.choose(range));
    this.later = debounced(() => this.send(), WAIT);
    byId("max-tokens").value = session.defaults.max_new_tokens;
    byId("ask").addEventListener("submit", (event) => { event.preventDefault(); this.generate(); });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
    });
    byId("paste").addEventListener("click", () => this.openPaste(byId("pasted").hidden));
    byId("use").addEventListener("click", () => this.use(byId("output").value));
    byId("as-chat").addEventListener("change", (event) => this.asChat(event.target.checked));
    byId("corrected").addEventListener("input", () => this.correct());
    byId("pick-all").addEventListener("click", () => this.choose(null));
    byId("pick-sentence").addEventListener("click", () => this.choose(this.words.sentenceAt(this.words.at)));
    byId("pick-diff").addEventListener("click", () => this.pickDiff());
    for (const radio of document.getElementsByName("shade"))
      radio.addEventListener("change", () => { this.words.shade = radio.value; this.draw(); });
    for (const area of document.querySelectorAll("main textarea")) area.addEventListener("input", () => grow(area));
    this.permit();
  }

  permit() {
    const { generate, base } = this.session.can;
    byId("generate").disabled = !generate.able;
    byId("max-tokens").disabled = !generate.able;
    byId("ask-why").hidden = generate.able;
    byId("ask-why").textContent = generate.able ? "" : `Nothing can be generated here: ${generate.why}`;
    byId("moved-choice").hidden = !base.able;
    if (this.session.train.kind === "chat" || this.session.train.kind === "messages") {
      byId("as-chat").checked = true;
      this.asChat(true);
    }
  }

  // ---- the prompt --------------------------------------------------------------------------------------------------
  asChat(chat) {
    byId("plain").hidden = chat;
    byId("chat").hidden = !chat;
    if (chat && !this.turns.length) this.turns = [{ role: "user", content: byId("prompt").value }];
    if (!chat) byId("prompt").value = this.turns.filter((turn) => turn.role === "user").map((turn) => turn.content).join("\n") || byId("prompt").value;
    this.drawTurns();
  }

  drawTurns() {
    byId("chat").replaceChildren(...this.turns.map((turn, i) => {
      const role = el("select", { "aria-label": `Role of turn ${i + 1}`, on: { change: (event) => { turn.role = event.target.value; } } },
        ...["system", "user", "assistant"].map((name) => el("option", { value: name, selected: name === turn.role }, name)));
      const text = el("textarea", { rows: 2, spellcheck: "false", "aria-label": `Text of turn ${i + 1}`,
        on: { input: (event) => { turn.content = event.target.value; grow(text); }, keydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit(); } } }, turn.content);
      const gone = this.turns.length > 1 && button("Remove", () => { this.turns.splice(i, 1); this.drawTurns(); }, { class: "link", "aria-label": `Remove turn ${i + 1}` });
      return el("div", { class: "turn" }, role, text, gone);
    }), button("Add a turn", () => {
      this.turns.push({ role: this.turns.at(-1).role === "user" ? "assistant" : "user", content: "" });
      this.drawTurns();
    }, { class: "link" }));
    byId("chat").querySelectorAll("textarea").forEach(grow);
  }

  get prompt() {
    return byId("as-chat").checked ? this.turns.map(({ role, content }) => ({ role, content })) : byId("prompt").value;
  }

  get empty() {
    return typeof this.prompt === "string" ? !this.prompt : !this.prompt.some((turn) => turn.content);
  }

  // ---- the output --------------------------------------------------------------------------------------------------
  openPaste(open) {
    byId("pasted").hidden = !open;
    byId("paste").setAttribute("aria-expanded", String(open));
    if (open) byId("output").focus();
  }

  async generate() {
    if (this.empty) { byId("prompt").focus(); return this.failed(new Error("Write a prompt first.")); }
    await this.measure("/api/generate", { prompt: this.prompt, max_new_tokens: Number(byId("max-tokens").value) || 64 }, "");
    if (this.output) this.told(`The model said: ${this.output}`);
  }

  async use(output) {
    if (!output) { byId("output").focus(); return; }
    this.openPaste(false);
    this.set(output, []);
    this.later();
    if (this.session.can.generate.able) await this.measure("/api/tokens", { prompt: this.prompt, output }, output);
  }

  // A job that gives the tokens; while it generates they come one by one.
  async measure(path, body, output) {
    if (this.job) cancel(this.job);
    this.job = null;
    const fresh = path === "/api/generate";
    if (fresh) {
      this.later.cancel();
      byId("corrected").value = "";
      this.set(output, []);
    }
    byId("words").setAttribute("aria-busy", "true");
    let job = null;
    try {
      ({ job } = await post(path, body));
      this.job = job;
      const done = await finished(job, (now) => { if (this.job === job) showJob(byId("progress"), now, fresh ? "Generating" : "Measuring the words"); });
      if (this.job !== job) return;
      const { output: said, tokens } = done.result;
      if (said !== this.output) this.set(said, tokens);
      else { this.tokens = tokens; this.draw(); }
    } catch (fault) {
      if (!fault.cancelled && this.job === job) this.failed(fault, () => this.measure(path, body, output));
    }
    if (this.job !== job) return; // another one came in between
    this.job = null;
    byId("words").removeAttribute("aria-busy");
    showJob(byId("progress"), null);
    if (fresh) this.send();
  }

  streamed({ job, n, token }) {
    if (this.job?.id !== job || this.tokens[n]) return;
    this.tokens[n] = token;
    const there = this.tokens.filter(Boolean);
    this.output = there.map(({ text }) => text).join("");
    this.draw();
  }

  set(output, tokens) {
    Object.assign(this, { output, tokens, span: "auto" });
    byId("answer-section").hidden = false;
    this.draw();
    this.words.selectSpan(this.apart);
  }

  // A question from before, as it was posted.
  restore(query, fallback) {
    const { prompt, output, corrected, span } = query;
    const chat = Array.isArray(prompt);
    byId("as-chat").checked = chat;
    if (chat) this.turns = prompt.map((turn) => ({ ...turn }));
    else byId("prompt").value = prompt;
    byId("plain").hidden = chat;
    byId("chat").hidden = !chat;
    if (chat) this.drawTurns();
    byId("corrected").value = corrected ?? "";
    this.set(output ?? fallback ?? "", []);
    this.span = !span || span === "diff" ? "auto" : span;
    this.words.selectSpan(Array.isArray(span) ? span : this.apart);
    this.draw();
    this.sent = JSON.stringify(this.query());
    document.querySelectorAll("main textarea").forEach(grow);
    if (this.session.can.generate.able && output) this.measure("/api/tokens", { prompt, output }, output);
  }

  draw() {
    this.words.show(this.output || "", this.tokens.filter(Boolean));
    byId("shade-told").textContent = this.tokens.length ? shadeTold[this.words.shade] : "";
    byId("pick-diff").disabled = !byId("corrected").value.trim() || !this.output;
    byId("picked").textContent = Array.isArray(this.span) ? `measured: “${visible([...this.output].slice(...this.span).join(""))}”` : `measured: ${this.apart ? "the words that differ" : "the whole answer"}`;
  }

  // ---- marking -----------------------------------------------------------------------------------------------------
  choose(range) {
    this.words.select(range);
    this.span = this.words.span ?? (byId("corrected").value.trim() ? "all" : "auto");
    this.draw();
    this.later();
  }

  pickDiff() {
    this.span = "auto";
    this.correct();
  }

  // The words that differ from what should have been said, where these are measured: [start, end] of them, or null.
  get apart() {
    return this.span === "auto" && this.output ? differing(this.output, byId("corrected").value) : null;
  }

  // A correction says what was wrong: it takes the place of words that were marked before.
  correct() {
    if (this.span !== "all") this.span = "auto";
    this.words.selectSpan(this.apart);
    this.draw();
    this.later();
  }

  // The corrected output begins as the output does: with or without a space.
  query() {
    const typed = byId("corrected").value, lead = this.output.match(/^\s*/)[0];
    const corrected = typed.trim() ? (typed.match(/^\s/) ? typed : lead + typed) : null;
    return { prompt: this.prompt, output: this.output, ...(corrected && { corrected }), ...(this.span !== "auto" && { span: this.span }) };
  }

  send() {
    this.later.cancel();
    if (!this.output || this.empty || (this.job && this.job.kind === "generate")) return;
    const text = JSON.stringify(this.query());
    if (text === this.sent) return;
    this.sent = text;
    this.asked(this.query());
  }
}

// A field as high as its text.
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(320, area.scrollHeight + 2)}px`;
}

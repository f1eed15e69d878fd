// The page: session, question, rows and marks put together; messages, keys and the address.
import { button, byId, el } from "./views/dom.js";
import { plural } from "./views/numbers.js";
import { focusedCard, helpPanel, moveCard, onKeys, openCard } from "./views/list.js";
import { ask, cancel, finished, listen, post } from "./api.js";
import { Act } from "./act.js";
import { readLink, writeLink } from "./link.js";
import { showJob } from "./progress.js";
import { Question } from "./question.js";
import { See } from "./see.js";

let session, question, see, act;
let asking = null; // the job of the question asked last

// ---- messages ---------------------------------------------------------------------------------------------------------
const tell = (text) => { byId("status").textContent = text; };

// One message of a kind at a time, and none twice; a lost connection stays until it is back.
const standing = (text) => [...byId("banner").children].find((line) => line.querySelector("p").textContent === text);
function message(kind, text, again) {
  byId("banner").querySelector(`[data-kind="${kind}"]`)?.remove();
  if (!text) return;
  standing(text)?.remove();
  const line = el("div", { class: "message", "data-kind": kind }, el("p", { dir: "auto" }, text),
    again && button("Try again", () => { line.remove(); again(); }),
    kind !== "lost" && button("Close", () => line.remove(), { class: "link" }));
  byId("banner").append(line);
}
const failed = (fault, again) => message("fault", fault.message, again);

// ---- a question becomes an answer -------------------------------------------------------------------------------------
async function answer(query) {
  if (asking?.id) cancel(asking);
  let mine = (asking = { id: null });
  byId("result").setAttribute("aria-busy", "true");
  message("fault", null);
  const methods = [see.view.method || session.defaults.method, see.view.against].filter(Boolean).filter((name) => session.methods.some((m) => m.name === name && m.able));
  try {
    if (!session.can.ask.able) throw new Error(`New questions cannot be answered here: ${session.can.ask.why}`);
    const reply = await post("/api/answers", { queries: [query], methods: (methods.length ? methods : [session.defaults.method]).map(asked) });
    if (asking !== mine) { if (reply.job) cancel(reply.job); return; }
    if (reply.job) {
      mine = asking = reply.job;
      await finished(reply.job, (job) => asking === mine && showJob(byId("progress"), job, "Scoring the rows"));
      if (asking !== mine) return;
    }
    see.fresh();
    await see.open(reply.answer);
    act.drawExports();
    tell(`The rows are there. ${see.shown ? see.shown.answer.sentences.join(" ") : ""}`);
  } catch (fault) {
    if (!fault.cancelled) failed(fault, () => { question.sent = null; question.send(); });
    else question.sent = null;
  } finally {
    if (asking === mine) {
      showJob(byId("progress"), null);
      byId("result").removeAttribute("aria-busy");
    }
  }
}

// A method as the server is asked for it: its name and options.
const asked = (name) => session.methods.find((method) => method.name === name)?.ask || { name };

// A further method for the answer shown.
async function compute(id, name) {
  const { job } = await post(`/api/answers/${encodeURIComponent(id)}/methods`, asked(name));
  if (!job) return;
  byId("lists").setAttribute("aria-busy", "true");
  try {
    await finished(job, (now) => showJob(byId("progress"), now, `Scoring the rows by ${name}`));
  } finally {
    showJob(byId("progress"), null);
    byId("lists").removeAttribute("aria-busy");
  }
}

// The fields hold the question that is shown; of several together, the first.
function fill() {
  const { question: posted, queries } = see.doc, number = see.target.members[0];
  question.restore(posted?.queries?.[number] || queries[number], queries[number].output);
}

async function restore(view) {
  try {
    await see.open(view.answer, view);
    fill();
    act.drawExports();
  } catch (fault) {
    failed(fault);
  }
}

// ---- the frame --------------------------------------------------------------------------------------------------------
function drawFrame() {
  const { train, models, opened, sign, provenance } = session;
  const last = models.filter(({ name }) => name !== "base").at(-1);
  document.title = `${opened.name} · headwater`;
  byId("opened").textContent = [opened.name, last && last.name, `${plural(train.rows, "row")} of ${train.name}`].filter(Boolean).join(" · ");
  byId("sign").textContent = sign;
  const line = (name, value) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(value)));
  byId("models").replaceChildren(el("tbody", {}, line("headwater", session.version), line("opened", opened.place),
    line("training rows", `${plural(train.rows, "row")} of ${train.name}, ${train.duplicates} of them with the content of an earlier row; ${train.fingerprint}`),
    ...models.map((model) => line(model.name, [model.kind, model.place, model.step != null && `step ${model.step}`, model.fingerprint].filter(Boolean).join(" · ")))));
  byId("provenance").replaceChildren(el("tbody", {}, ...provenance.map(([name, value]) => line(name, value))));
}

function drawEarlier(answers) {
  byId("earlier-choice").hidden = !answers.length;
  byId("earlier").replaceChildren(el("option", { value: "" }, "choose"), ...answers.slice(0, 100).map(({ id, title }) => el("option", { value: id }, title.length > 70 ? title.slice(0, 69) + "…" : title)));
  byId("earlier").value = "";
}

function worker({ state, message: text }) {
  if (state === "stopped" && standing(text)) return; // the job that it died of has said so
  message("worker", state === "stopped" ? text : null, question && (() => { question.sent = null; question.send(); }));
}

function keys() {
  const help = helpPanel([["Shift ←, →", "on the words of the output: select"], ["Ctrl Enter", "in the prompt: generate"]]);
  const turn = (step) => [...document.querySelectorAll("#list .pager button")][step]?.click();
  const list = () => focusedCard()?.closest(".cards") || byId("list");
  byId("help").addEventListener("click", () => help.showModal());
  onKeys({
    j: () => moveCard(list(), 1), k: () => moveCard(list(), -1), Enter: () => openCard(focusedCard()), "/": () => byId("filter").focus(),
    m: () => { const card = focusedCard(); if (card) act.pick(see.rows.get(Number(card.dataset.row))); },
    s: () => see.change({ list: "best", offset: 0 }), o: () => see.change({ list: "worst", offset: 0 }), "[": () => turn(0), "]": () => turn(1),
    Escape: () => see.view.range && see.change({ range: null, offset: 0 }), "?": () => help.showModal(),
  });
}

// Marks change the cards that are there; the list itself stays where it is.
function marksChanged() {
  if (!see?.shown) return;
  for (const card of document.querySelectorAll(".row[data-row]")) {
    const n = Number(card.dataset.row), picked = Boolean(act.marks[n]), pick = card.querySelector(".pick");
    card.classList.toggle("picked", picked);
    if (see.rows.has(n)) see.rows.get(n).picked = picked;
    pick.setAttribute("aria-pressed", String(picked));
    pick.textContent = picked ? "Culprit" : "Mark";
  }
  see.drawHistogram();
}

async function start() {
  try {
    session = await ask("/api/session");
  } catch (fault) {
    return failed(fault, start);
  }
  drawFrame();
  question = new Question(session, { asked: answer, told: tell, failed });
  see = new See(session, { marks: () => act.marks, pick: (row) => act.pick(row), changed: (view) => { writeLink(view); act.drawExports(); }, retargeted: fill, failed, compute });
  act = new Act(session, { changed: () => queueMicrotask(marksChanged), query: () => (see.shown ? see.query : null), answer: () => see.view.answer, told: tell, failed });
  drawEarlier(session.answers);
  worker(session.worker);
  keys();
  byId("earlier").addEventListener("change", (event) => event.target.value && restore({ answer: event.target.value, method: "", against: "", target: 0, weights: null, range: null, offset: 0, search: "", facets: {} }));
  listen({
    state: (state) => { drawEarlier(state.answers); act.set(state.marks); worker(state.worker); },
    token: (event) => question.streamed(event), answers: drawEarlier, marks: (marks) => act.set(marks), worker,
    lost: () => message("lost", "The connection to the server is lost. Look at the terminal where headwater serve runs; this page goes on by itself when it is back."),
    found: () => { message("lost", null); message("fault", null); tell("The connection is back."); if (see.doc) see.load(); },
  });
  const view = readLink();
  if (!view.answer && session.opened.kind === "trace" && session.answers.some(({ id }) => id === "trace")) view.answer = "trace";
  if (view.answer) await restore(view);
  document.body.dataset.ready = "yes";
}

window.addEventListener("hashchange", () => {
  const view = readLink();
  if (view.answer && see) restore({ target: 0, against: "", list: "best", search: "", range: null, weights: null, facets: {}, offset: 0, method: "", ...view });
});
start();

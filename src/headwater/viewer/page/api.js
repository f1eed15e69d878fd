// The server (API.md): requests, the stream of events, and jobs that take a while.

const token = document.querySelector('meta[name="headwater-token"]').content;

export class Fault extends Error {
  constructor(error, status) {
    super(!error.fix || error.message.includes(error.fix) ? error.message : `${error.message} — ${error.fix}`);
    this.status = status;
  }
}

const LOST = { message: "The server does not answer", fix: "look at the terminal where headwater serve runs; this page goes on when it is back" };

const FORGOTTEN = { message: "The server was started again while this was computed", fix: "ask again; what was finished is kept" };

export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = method === "GET" ? {} : { "X-Headwater-Token": token, ...(body && { "Content-Type": "application/json" }) };
  let reply, value;
  try {
    reply = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    value = await reply.json();
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Fault(reply ? { message: `The server's reply to ${path} cannot be read` } : LOST, 0);
  }
  if (reply.ok) return value;
  if (value.reload) location.reload();
  throw new Fault(value.error || { message: `The server answered ${reply.status}` }, reply.status);
}

export const post = (path, body = {}) => ask(path, { method: "POST", body });

// ---- events and jobs -------------------------------------------------------------------------------------------------
const jobs = new Map(); // id -> { update, done, failed }
const FINISHED = ["done", "failed", "cancelled"];

/* on: { state, token, answers, marks, worker, lost, found }. A stream that broke is opened again, until it works. */
export function listen(on) {
  let lost = false;
  const open = () => {
    const source = new EventSource("/api/events");
    const hear = (name, act) => source.addEventListener(name, (event) => act(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      if (!lost) on.lost();
      lost = true;
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 2000);
    });
    hear("state", (state) => {
      state.jobs.forEach(heard);
      for (const [id, waiting] of jobs)
        if (!state.jobs.some((job) => job.id === id)) settle(id, waiting.failed, new Fault(FORGOTTEN, 0));
      if (lost) on.found();
      lost = false;
      on.state(state);
    });
    hear("job", heard);
    for (const name of ["token", "answers", "marks", "worker"]) hear(name, on[name]);
  };
  open();
}

function heard(job) {
  const waiting = jobs.get(job.id);
  if (!waiting) return;
  if (!FINISHED.includes(job.state)) return waiting.update(job);
  if (job.state === "done") settle(job.id, waiting.done, job);
  else if (job.state === "cancelled") settle(job.id, waiting.failed, Object.assign(new Fault({ message: "Cancelled" }, 0), { cancelled: true }));
  else settle(job.id, waiting.failed, new Fault(job.error || { message: "This failed" }, 0));
}

function settle(id, act, value) {
  jobs.delete(id);
  act(value);
}

// The finished job; update(job) while it runs. The stream may have been ahead of the reply, so the job is read once.
export function finished(job, update) {
  return new Promise((done, failed) => {
    jobs.set(job.id, { update, done, failed });
    heard(job);
    if (jobs.has(job.id)) ask(`/api/jobs/${job.id}`).then(heard, () => {});
  });
}

export const cancel = (job) => post(`/api/jobs/${job.id}/cancel`).catch(() => {});

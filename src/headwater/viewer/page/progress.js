// A job that runs: what it does, how far it is, how long it still takes, and a way to stop it.
import { button, el } from "./views/dom.js";
import { duration } from "./views/numbers.js";
import { cancel } from "./api.js";

export function showJob(place, job, what) {
  if (!job) return place.replaceChildren();
  const share = job.total ? Math.min(1, job.done / job.total) : null;
  const left = job.seconds_left != null ? `about ${duration(job.seconds_left)} left` : job.state === "queued" ? "waiting for other work" : "";
  const text = [what, job.stage, left].filter(Boolean).join(" · ");
  let line = place.firstElementChild;
  if (!line || line.dataset.job !== job.id) {
    const stop = button("Cancel", () => { stop.disabled = true; cancel(job); }, { class: "link" });
    line = el("div", { class: "job", "data-job": job.id }, el("progress", { max: 1, "aria-label": what }), el("span", {}), stop);
    place.replaceChildren(line);
  }
  const bar = line.querySelector("progress");
  if (share == null) bar.removeAttribute("value");
  else bar.value = share;
  if (line.children[1].textContent !== text) line.children[1].textContent = text;
}

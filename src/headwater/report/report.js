"use strict";
(() => {
  const data = JSON.parse(document.getElementById("contents").textContent);
  const SVG = document.getElementById("svg-home").namespaceURI;
  const byId = (id) => document.getElementById(id);
  const state = { target: data.order[0], method: 0, list: "best", filter: "" };

  // ---- building blocks -------------------------------------------------------------------------------------------
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "on") Object.entries(value).forEach(([event, act]) => node.addEventListener(event, act));
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child != null && child !== false));
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  function formatter(values) {
    const largest = Math.max(0, ...values.map(Math.abs));
    const exponent = largest > 0 ? Math.floor(Math.log10(largest)) : 0;
    return (value) => {
      if (value === 0) return "0";
      const size = Math.abs(value);
      const text = exponent < -4 || exponent > 6 ? size.toExponential(2) : size.toFixed(Math.min(8, Math.max(0, 3 - exponent)));
      return (value < 0 ? "−" : "") + text;
    };
  }
  function signed(value, digits) {
    const size = Math.abs(value).toFixed(digits);
    return (Number(size) === 0 ? "" : value < 0 ? "−" : "+") + size;
  }
  const grouped = (count) => count.toLocaleString("en-US");
  const plural = (count, one, many) => `${grouped(count)} ${count === 1 ? one : many}`;

  // Names of checkpoints without what they all begin with: checkpoint-16, checkpoint-32 -> 16, 32.
  function shortNames(names) {
    const plain = names.filter((name) => !isBase(name));
    let length = plain.length > 1 ? Math.min(...plain.map((name) => name.length)) : 0;
    while (length && !plain.every((name) => name.slice(0, length) === plain[0].slice(0, length))) length--;
    const cut = plain.length ? plain[0].slice(0, length).replace(/[\p{L}\p{N}]+$/u, "").length : 0;
    return names.map((name) => (isBase(name) ? "base" : name.slice(cut).length > 12 ? "…" + name.slice(-11) : name.slice(cut)));
  }
  const isBase = (name) => name === "base" || name.endsWith(" x base");

  // ---- the question ----------------------------------------------------------------------------------------------
  const said = (query) => el("span", { class: "said", dir: "auto" }, (query.output || "").trim());
  const asked = (query) => el("span", { class: "asked", dir: "auto" }, query.prompt.trimEnd());
  const corrected = (query, tag) =>
    query.corrected == null ? null : el(tag, { class: "corrected" }, "corrected: ", el("span", { dir: "auto" }, query.corrected.trim()));

  function showQuestion() {
    const target = data.targets[state.target];
    const queries = target.members.map((q) => data.queries[q]);
    const heading = byId("question");
    if (target.kind === "group") {
      byId("kicker").textContent = `Why does the model say this? A group of ${plural(queries.length, "query", "queries")}, answered together`;
      heading.replaceChildren(target.name.replaceAll("->", "-\u2060>"));
      heading.classList.toggle("long", target.name.length > 140);
      byId("queries").replaceChildren(
        el("ul", { class: "members" }, ...queries.map((query) => {
          const number = data.targets.findIndex((t) => t.kind === "query" && t.name === query.name);
          const go = { click: () => choose({ target: number }) };
          return el("li", {}, number >= 0 && el("button", { type: "button", on: go, "aria-label": `Answer for ${query.name} alone` }, query.name),
            asked(query), " ", said(query), " ", corrected(query, "span"));
        })));
    } else {
      const query = queries[0];
      byId("kicker").textContent = "Why does the model say this?" + (query.span ? ` Measured: ${query.span}.` : "");
      heading.replaceChildren(asked(query), " ", said(query));
      heading.classList.toggle("long", query.prompt.length + (query.output || "").length > 140);
      byId("queries").replaceChildren(...[corrected(query, "p")].filter(Boolean));
    }
    byId("sentences").replaceChildren(...answer().sentences.map((text) => el("p", {}, text)));
    if (target.guilty && target.culprits)
      byId("sentences").append(el("p", { class: "extra" },
        `Known culprits: ${plural(target.guilty, "row", "rows")}, of which ${grouped(answer().found)} among the first ${grouped(target.guilty)} under ${method().name}.`));
  }

  // ---- how the models leaned -------------------------------------------------------------------------------------
  function showLeaning() {
    const figure = byId("leaning");
    const target = data.targets[state.target];
    const all = data.leanings;
    const series = all ? target.members.map((q) => all.values[data.queries[q].name]).filter(Boolean) : [];
    const places = all ? all.checkpoints.map((_, k) => k).filter((k) => series.some((s) => s[k])) : [];
    figure.parentElement.classList.toggle("single", !places.length);
    figure.hidden = !places.length;
    if (!places.length) return figure.replaceChildren();
    const names = places.map((k) => all.checkpoints[k]);
    const contrast = series.some((s) => s.some((pair) => pair && pair[1] != null));
    const value = (pair) => (!pair ? null : !contrast ? pair[0] : pair[1] == null ? null : pair[0] - pair[1]);
    const lines = series.map((s) => places.map((k) => value(s[k])));
    const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : null);
    const means = places.map((_, i) => mean(lines.map((line) => line[i]).filter((v) => v != null)));
    const many = series.length > 1;
    const caption = contrast
      ? `How far each model prefers the output to the corrected one, in nats${many ? "; thin: each query, bold: their mean" : ""}`
      : `Log-probability of the output under each model, in nats${many ? "; thin: each query, bold: their mean" : ""}`;
    const cell = (v, plus) => el("td", {}, v == null ? "" : plus ? signed(v, 2) : v.toFixed(2).replace("-", "−"));
    const rows = places.map((k, i) => {
      const pairs = series.map((s) => s[k]).filter(Boolean);
      return el("tr", {}, el("th", { scope: "row" }, names[i]), cell(mean(pairs.map((p) => p[0]))),
        ...(contrast ? [cell(mean(pairs.filter((p) => p[1] != null).map((p) => p[1]))), cell(means[i], true)] : []));
    });
    const heads = ["model", "output", ...(contrast ? ["corrected", "difference"] : [])];
    figure.replaceChildren(
      el("figcaption", {}, caption),
      leaningChart(Math.max(260, figure.clientWidth), names, lines, means, contrast),
      el("details", {}, el("summary", {}, "The numbers" + (many ? ", as means over the queries" : "")),
        el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, ...rows))));
  }

  function leaningChart(width, names, lines, means, contrast) {
    const height = 190, left = 40, right = 52, top = 12, bottom = 26;
    const values = lines.flat().filter((v) => v != null).concat(contrast ? [0] : []);
    let low = Math.min(...values), high = Math.max(...values);
    if (high - low < 1e-6) { low -= 1; high += 1; }
    const step = niceStep((high - low) / 4), margin = (high - low) * 0.07;
    low -= margin;
    high += margin;
    const x = (i) => left + 10 + (names.length === 1 ? 0.5 : i / (names.length - 1)) * (width - left - right - 20);
    const y = (v) => top + ((high - v) / (high - low)) * (height - top - bottom);
    const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": names.map((name, i) => `${name}: ${means[i] == null ? "none" : signed(means[i], 1)}`).join(", ") });
    const digits = step < 1 ? (step < 0.1 ? 2 : 1) : 0;
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) {
      const zero = contrast && Math.abs(v) < step / 2;
      chart.append(svg("line", { class: zero ? "zero" : "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
        svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, zero ? "0" : contrast ? signed(v, digits) : v.toFixed(digits).replace("-", "−")));
    }
    if (contrast) {
      const room = (18 / (height - top - bottom)) * (high - low);
      if (high > room) chart.append(svg("text", { class: "tone-support", x: left + 4, y: top + 10 }, "↑ prefers the output"));
      if (low < -room) chart.append(svg("text", { class: "tone-oppose", x: width - right, y: height - bottom - 5, "text-anchor": "end" }, "↓ prefers the corrected one"));
    }
    const path = (line) => line.map((v, i) => (v == null ? "" : `${i && line[i - 1] != null ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`)).join("");
    if (lines.length > 1) lines.forEach((line) => chart.append(svg("path", { class: "thin", d: path(line) })));
    chart.append(svg("path", { class: "line", d: path(means) }));
    const short = shortNames(names);
    const every = Math.max(1, Math.ceil(names.length / Math.max(2, Math.floor((width - left - right) / 64))));
    means.forEach((v, i) => {
      if (v != null) chart.append(svg("circle", { class: isBase(names[i]) ? "dot base" : "dot", cx: x(i), cy: y(v), r: 4 }, svg("title", {}, `${names[i]}: ${signed(v, 2)}`)));
      const last = i === names.length - 1;
      if (i === 0 || last || (i % every === 0 && names.length - 1 - i >= every))
        chart.append(svg("text", { x: x(i), y: height - 6, "text-anchor": "middle", class: isBase(names[i]) ? "strong" : "" }, short[i]));
      if (v != null && last) chart.append(svg("text", { class: "strong", x: x(i) + 9, y: y(v) + 4 }, contrast ? signed(v, 1) : v.toFixed(1).replace("-", "−")));
    });
    return chart;
  }

  function niceStep(rough) {
    const power = 10 ** Math.floor(Math.log10(rough));
    return power * ([1, 2, 5].find((m) => m * power >= rough) || 10);
  }

  // ---- all scores ------------------------------------------------------------------------------------------------
  function showHistogram() {
    const figure = byId("histogram");
    const a = answer(), target = data.targets[state.target];
    const width = Math.max(280, figure.clientWidth), height = 150, top = 18, base = 104;
    const flat = a.bins.length === 1;
    const low = flat ? a.low - 1 : a.low, high = flat ? a.high + 1 : a.high;
    const x = (v) => 6 + ((v - low) / (high - low)) * (width - 12);
    const tallest = Math.sqrt(Math.max(...a.bins));
    const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Histogram of the scores of ${plural(data.train.rows, "row", "rows")}, from ${a.low} to ${a.high}, median ${a.median}` });
    const part = (width - 12) / (flat ? 21 : a.bins.length);
    a.bins.forEach((count, i) => {
      if (!count) return;
      const tall = Math.max(1.5, (Math.sqrt(count) / tallest) * (base - top));
      chart.append(svg("rect", { class: "count", x: 6 + (flat ? 10 : i) * part + 0.5, y: base - tall, width: Math.max(1, part - 1), height: tall },
        svg("title", {}, plural(count, "row", "rows"))));
    });
    chart.append(svg("line", { class: "zero", x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 }));
    const format = formatter([a.low, a.high, a.median]);
    const label = (v, text, y, anchor, kind) => svg("text", { x: x(v), y, "text-anchor": anchor, class: kind || "" }, text);
    if (flat) chart.append(label(a.low, format(a.low), height - 6, "middle"));
    else chart.append(label(a.low, format(a.low), height - 6, "start"), label(a.high, format(a.high), height - 6, "end"));
    if (!flat && x(a.median) > 90 && x(a.median) < width - 110)
      chart.append(label(a.median, `median ${format(a.median)}`, height - 6, "middle"));
    if (!flat && a.threshold != null && a.threshold <= a.high) {
      const end = x(a.threshold) > width - 200;
      chart.append(svg("line", { class: "limit", x1: x(a.threshold), x2: x(a.threshold), y1: 2, y2: base }),
        svg("text", { x: x(a.threshold) + (end ? -6 : 6), y: 12, "text-anchor": end ? "end" : "start" }, end ? "stands out →" : "stands out from here"));
    }
    const guilty = new Set(target.culprits || []);
    const entries = a[state.list];
    for (const entry of entries)
      chart.append(svg("line", { class: state.list === "best" ? "tick-support" : "tick-oppose", x1: x(entry[1]), x2: x(entry[1]), y1: base + 4, y2: base + 16 }));
    const found = entries.filter((entry) => guilty.has(entry[0]));
    for (const entry of found)
      chart.append(svg("path", { class: "culprit", d: `M${x(entry[1]).toFixed(1)} ${base + 17}l3.5 7h-7z` }));
    const ticks = entries.length === data.train.rows ? "the rows" : state.list === "best" ? `the ${grouped(entries.length)} highest` : `the ${grouped(entries.length)} lowest`;
    figure.replaceChildren(el("figcaption", {},
      `${plural(data.train.rows, "row", "rows")} under ${method().name}; heights on a square-root scale. ` +
      (entries.length ? `Ticks: ${ticks}${found.length ? "; triangles: known culprits among them" : ""}.` : "")), chart);
  }

  // ---- rows ------------------------------------------------------------------------------------------------------
  const answer = () => data.answers[state.method][state.target];
  const method = () => data.methods[state.method];
  const hasPrompts = ["completion", "chat"].includes(data.train.kind);
  const twinsOf = new Map(data.twins.flatMap((group) => group.rows.map((n) => [n, group])));

  function showRows() {
    const a = answer(), terms = method().terms, target = data.targets[state.target];
    const entries = a[state.list];
    for (const list of ["best", "worst"]) {
      const tab = byId("tab-" + list);
      tab.textContent = `${list === "best" ? "Supporting" : "Opposing"} ${a[list].length}`;
      tab.setAttribute("aria-selected", String(list === state.list));
      tab.tabIndex = list === state.list ? 0 : -1;
    }
    byId("list").setAttribute("role", "tabpanel");
    byId("list").setAttribute("aria-labelledby", "tab-" + state.list);
    const words = new Set(target.words), guilty = new Set(target.culprits || []);
    const needle = state.filter.trim().toLowerCase();
    const shown = entries.map((entry, i) => [entry, i]).filter(([entry]) => matches(entry[0], needle, guilty));
    const others = data.methods.filter((_, m) => m !== state.method).map((m) => m.name);
    const format = formatter(entries.map((entry) => entry[1]));
    const values = entries.flatMap((entry) => entry.slice(4, 4 + terms.length));
    const range = [Math.max(0, ...values), Math.max(0, ...values.map((v) => -v))];
    const termNames = shortNames(terms);
    const context = { words, guilty, others, format, range, terms, termNames };
    byId("note").textContent = noteOf(a, shown.length, entries.length, needle, terms);
    const list = el("ol", { class: "list" });
    shown.forEach(([entry, i], place) => {
      const previous = place ? shown[place - 1][0] : null;
      if (state.list === "best" && place && shown[place - 1][1] < a.out && i >= a.out)
        list.append(el("li", { class: "limit-line" }, "From here on no row stands out"));
      const group = twinsOf.get(entry[0]);
      const next = shown[place + 1];
      const twin = group && next && group.rows.includes(next[0][0]);
      const again = group && previous && group.rows.includes(previous[0]);
      list.append(card(entry, i + 1, context, group, twin, again));
    });
    const panel = el("div", { class: (terms.length ? "with-terms " : "") + (others.length ? "with-others" : "") });
    if (shown.length) panel.append(columnHeads(terms, others), list);
    else panel.append(el("p", { class: "empty" }, needle && entries.length
      ? `None of the ${entries.length} rows listed here has “${state.filter.trim()}”.`
      : `No row has a negative score under ${method().name}.`));
    panel.style.setProperty("--terms", Math.max(84, termWidth(terms.length)) + "px");
    byId("list").replaceChildren(panel);
  }

  function matches(n, needle, guilty) {
    if (!needle) return true;
    const row = data.rows[n];
    return [row.id, row.at || "", row.p.replaceAll(data.separator, ""), row.c.replaceAll(data.separator, ""), guilty.has(n) ? "culprit" : ""].join("\n").toLowerCase().includes(needle);
  }

  function noteOf(a, shown, total, needle, terms) {
    if (needle) return `${shown} of the ${total} rows listed.`;
    const parts = [];
    if (state.list === "best" && total === data.train.rows) parts.push(total === 1 ? "The only row." : `All ${grouped(total)} rows, highest score first.`);
    else if (state.list === "best") parts.push(`The ${grouped(total)} highest of ${plural(data.train.rows, "score", "scores")}.`);
    else if (total) parts.push(`The ${grouped(total)} lowest of ${plural(data.train.rows, "score", "scores")}; only negative ones are listed.`);
    if (!total) return parts.join(" ");
    parts.push((hasPrompts ? "Bold: the completion; marked" : "Marked") + ": words that the query has too.");
    if (terms.length) {
      const weights = terms.map((name, i) => `${shortNames(terms)[i]} × ${String(method().weights[i]).replace("-", "−")}`);
      const told = weights.length <= 8 ? `; the score adds them up as ${weights.join(", ")}` : "";
      parts.push(`Bars: the row’s value at each checkpoint${terms.some(isBase) ? ", hollow at the base model" : ""}${told}.`);
    }
    return parts.join(" ");
  }

  function columnHeads(terms, others) {
    return el("div", { class: "columns", "aria-hidden": "true" }, el("span", {}, "rank"), el("span", {}, "row"),
      el("span", { class: "number" }, "score"), el("span", { class: "number" }, "percentile"), el("span", { class: "number" }, "deviations"),
      terms.length > 0 && el("span", {}, "per checkpoint"), others.length > 0 && el("span", {}, "rank by others"));
  }

  function card(entry, rank, context, group, twin, again) {
    const [n, score, deviations, above] = entry;
    const row = data.rows[n], total = data.train.rows;
    const number = (kind, what, text) => el("div", { class: "number " + kind }, el("span", { class: "what" }, what), text);
    const ranks = entry.slice(4 + context.terms.length);
    return el("li", { class: "row" + (context.guilty.has(n) ? " guilty" : "") + (twin ? " twin" : "") },
      el("span", { class: "rank" }, el("span", { class: "sr" }, "rank "), String(rank)),
      el("div", { class: "body" },
        el("p", { class: "name" }, el("span", { class: "id", dir: "auto" }, row.id), row.at && el("span", { class: "at", dir: "auto" }, row.at),
          context.guilty.has(n) && el("span", { class: "badge" }, "culprit"),
          group && el("span", { class: "badge same" }, `×${group.count} identical`)),
        rowText(row, context.words),
        carrying(answer().words[n], rank),
        group && !again && el("p", { class: "twins" }, "Identical rows: " + group.ids.join(", ") + (group.count > group.ids.length ? `, and ${group.count - group.ids.length} more` : ""))),
      number("score " + (score > 0 ? "positive" : score < 0 ? "negative" : ""), "score", context.format(score)),
      number("", "percentile", ((100 * (total - above)) / total).toFixed(total >= 5000 ? 2 : 1)),
      number("", "deviations", signed(deviations, 1)),
      context.terms.length > 0 && bars(entry, context),
      ranks.length > 0 && el("dl", { class: "others" }, el("span", { class: "what" }, "rank under other methods"),
        ...ranks.map((r, i) => el("div", {}, el("dt", { title: context.others[i] }, context.others[i]), el("dd", {}, grouped(r))))));
  }

  // Which words of the row, and of what was asked, carry the score.
  function carrying(words, rank) {
    if (!words || state.list !== "best") return null;
    const shade = ([text, level]) => {
      if (!level) return [text];
      const start = text.length - text.trimStart().length;
      return [text.slice(0, start), el("span", { class: `${level > 0 ? "towards" : "away"}-${Math.abs(level)}` }, text.slice(start))];
    };
    const line = (name, list) => el("p", {}, el("span", { class: "what" }, name), el("span", { class: "shaded", dir: "auto" }, ...list.flatMap(shade)));
    const asked = words.asked.map(([name, list]) => line(name, list));
    const folded = asked.length > 2 ? [el("details", {}, el("summary", {}, `and of what was asked: ${asked.length} texts`), ...asked)] : asked;
    return el("details", { class: "carrying", open: rank <= 3 }, el("summary", {}, "Words that carry the score"),
      line("row", words.row), ...folded);
  }

  // Long texts are folded: the end of the prompt and the beginning of the completion stay.
  const PROMPT_SHORT = 280, COMPLETION_SHORT = 420;
  function rowText(row, words) {
    const prompt = row.p.split(data.separator), completion = row.c.split(data.separator);
    const length = (list) => list.reduce((sum, piece) => sum + piece.length, 0);
    const long = length(prompt) > PROMPT_SHORT + 120 || length(completion) > COMPLETION_SHORT + 180;
    const [promptCut, completionCut] = row.cut || [0, 0];
    const box = el("p", { class: "text" });
    const draw = (folded) => {
      const first = folded ? keepEnd(prompt, PROMPT_SHORT) : prompt;
      const second = folded ? keepStart(completion, COMPLETION_SHORT) : completion;
      box.replaceChildren(
        el("span", { class: "prompt", dir: "auto" }, (promptCut || first !== prompt) && "…", ...marked(first, words)),
        el("span", { class: hasPrompts ? "completion" : "whole", dir: "auto" }, ...marked(second, words), (completionCut || second !== completion) && "…"));
    };
    draw(long);
    if (!long) return box;
    const total = grouped(length(prompt) + length(completion) + promptCut + completionCut);
    const label = (open) => (open ? "Show less" : `Show ${promptCut + completionCut ? "more" : "all"} of ${total} characters`);
    const button = el("button", { type: "button", class: "more", "aria-expanded": "false" }, label(false));
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      button.textContent = label(open);
      draw(!open);
    });
    return el("div", {}, box, button);
  }

  // Pieces with odd numbers are words; what is kept begins with an even one.
  const marked = (list, words) => list.map((piece, i) => (i % 2 === 1 && words.has(piece) ? el("mark", {}, piece) : piece));
  function keepStart(list, limit) {
    let to = 0;
    for (let length = 0; to < list.length && (length += list[to].length) <= limit; ) to++;
    return to === list.length ? list : to ? list.slice(0, to) : [list.slice(0, 2).join("").slice(0, limit)];
  }
  function keepEnd(list, limit) {
    let from = list.length;
    for (let length = 0; from > 0 && (length += list[from - 1].length) <= limit; ) from--;
    if (from === 0) return list;
    from += from % 2;
    return from < list.length ? list.slice(from) : [list.slice(-3).join("").slice(-limit)];
  }

  const termWidth = (count) => (count <= 6 ? count * 30 : Math.min(190, count * 12));
  function bars(entry, context) {
    const values = entry.slice(4, 4 + context.terms.length);
    const width = termWidth(values.length), each = width / values.length, height = 50, reach = 33;
    const [up, down] = context.range, middle = up + down > 0 ? 1 + (reach * up) / (up + down) : reach;
    const wide = Math.min(16, each - 3);
    const format = formatter(values);
    const told = values.map((v, i) => `${context.terms[i]}: ${format(v)}`).join(", ");
    const chart = svg("svg", { class: "terms", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told }, svg("title", {}, told));
    values.forEach((v, i) => {
      const tall = Math.max(v === 0 ? 0 : 1, (Math.abs(v) / (up + down)) * reach);
      const centre = i * each + each / 2;
      chart.append(svg("rect", { class: (v < 0 ? "down" : "up") + (isBase(context.terms[i]) ? " base" : ""),
        x: centre - wide / 2, y: v < 0 ? middle : middle - tall, width: wide, height: tall }));
      if (values.length <= 6 || i === 0 || i === values.length - 1)
        chart.append(svg("text", { x: values.length <= 6 ? centre : i ? width : 0, y: height - 2, "text-anchor": values.length <= 6 ? "middle" : i ? "end" : "start" }, context.termNames[i]));
    });
    chart.append(svg("line", { class: "zero", x1: 0, x2: width, y1: middle, y2: middle }));
    return chart;
  }

  // ---- choosing --------------------------------------------------------------------------------------------------
  function choose(change) {
    Object.assign(state, change);
    byId("target").value = String(state.target);
    byId("method").value = String(state.method);
    location.replace("#" + new URLSearchParams({ question: data.targets[state.target].name, method: method().name, rows: state.list }));
    show();
  }
  function show() {
    showQuestion();
    showLeaning();
    showHistogram();
    showRows();
  }
  function fromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const target = data.targets.findIndex((t) => t.name === wanted.get("question"));
    const chosen = data.methods.findIndex((m) => m.name === wanted.get("method"));
    if (target >= 0) state.target = target;
    if (chosen >= 0) state.method = chosen;
    if (["best", "worst"].includes(wanted.get("rows"))) state.list = wanted.get("rows");
  }

  function start() {
    for (const node of document.querySelectorAll("[data-script]")) node.hidden = false;
    const short = (text) => (text.length > 70 ? text.slice(0, 69) + "…" : text);
    for (const [kind, title] of [["group", "Groups"], ["query", "Queries"]]) {
      const some = data.order.filter((r) => data.targets[r].kind === kind);
      if (!some.length) continue;
      byId("target").append(el("optgroup", { label: title }, ...some.map((r) => {
        const target = data.targets[r], query = data.queries[target.members[0]];
        const text = kind === "group" ? `${target.name} (${target.members.length})` : `${target.name}: ${query.prompt.trim()} → ${(query.output || "").trim()}`;
        return el("option", { value: r }, short(text));
      })));
    }
    data.methods.forEach((m, i) => byId("method").append(el("option", { value: i }, m.name)));
    byId("target-choice").hidden = data.targets.length < 2;
    byId("method-choice").hidden = data.methods.length < 2;
    byId("target").addEventListener("change", (event) => choose({ target: Number(event.target.value) }));
    byId("method").addEventListener("change", (event) => choose({ method: Number(event.target.value) }));
    byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; showRows(); });
    for (const list of ["best", "worst"]) {
      byId("tab-" + list).addEventListener("click", () => choose({ list }));
      byId("tab-" + list).addEventListener("keydown", (event) => {
        if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
        event.preventDefault();
        const next = event.key === "Home" ? "best" : event.key === "End" ? "worst" : state.list === "best" ? "worst" : "best";
        choose({ list: next });
        byId("tab-" + next).focus();
      });
    }
    let width = 0;
    new ResizeObserver(() => {
      if (document.body.clientWidth === width) return;
      width = document.body.clientWidth;
      showLeaning();
      showHistogram();
    }).observe(document.body);
    fromAddress();
    byId("target").value = String(state.target);
    byId("method").value = String(state.method);
    show();
    window.addEventListener("hashchange", () => {
      const before = JSON.stringify(state);
      fromAddress();
      if (JSON.stringify(state) === before) return;
      byId("target").value = String(state.target);
      byId("method").value = String(state.method);
      show();
    });
  }
  start();
})();

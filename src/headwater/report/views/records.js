/* From the document (headwater/viewer/API.md) to the rows that cards show. */

// part: { rows, twins, separator, words } of the document or of a view; target: its number; answer: one of the answers.
export function records(part, { entries, answer, target, total, others, culprits, picked, file }) {
  const known = new Set(part.words), guilty = new Set(culprits || []);
  const twins = new Map(part.twins.flatMap((group, key) => group.rows.map((n) => [n, { key, count: group.count, ids: group.ids }])));
  return entries.map(([n, rank, score, deviations, above, q, terms, ranks]) => {
    const row = part.rows[n], runs = (row.runs || {})[target] || [];
    const of = (side) => runs.filter((run) => run[0] === side);
    return {
      n, rank, id: row.id, at: row.at, source: (row.f || {})[file], facets: row.f || {}, score, deviations, q, terms,
      ranks: others.map((name, i) => [name, ranks[i]]),
      percentile: ((100 * (total - above)) / total).toFixed(total >= 5000 ? 2 : 1),
      prompt: pieces(row.p.split(part.separator), known, of(0)), completion: pieces(row.c.split(part.separator), known, of(1)),
      cut: row.cut, words: answer.words[n], twins: twins.get(n) || null, culprit: guilty.has(n),
      picked: picked ? picked(n) : null,
    };
  });
}

// [[text, mark]...]: pieces with odd numbers are words; a run is one piece, with what stands between its words.
function pieces(list, known, runs) {
  const out = [];
  for (let i = 0; i < list.length; ) {
    const run = runs.find(([, from]) => from === i);
    const end = run ? run[2] : i + 1;
    out.push([list.slice(i, end).join(""), run ? "run" : i % 2 === 1 && known.has(list[i]) ? "word" : ""]);
    i = end;
  }
  return out;
}

export const leaningSeries = (all, queries) => (all ? queries.map((query) => all.values[query.name]).filter(Boolean) : []);

export const plainText = (row) => [row.id, row.at || "", ...row.prompt.map(([text]) => text), ...row.completion.map(([text]) => text)].join("").toLowerCase();

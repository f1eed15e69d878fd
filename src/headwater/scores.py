"""Scores: for every query (or group of queries) and every training row, one number, and where it comes from.

Sign: a positive score means that training on the row pushed the model TOWARDS the query's output (for a contrast:
towards the wrong output and away from the corrected one). This is the one place where that is decided. Of a token
cosine it is the row's best position that did: nearly every row has one, and the score's height counts, not its sign.

Shapes: R targets (queries, then groups), N rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import DataError, NumericalError
from headwater.examples import Examples, Query
from headwater.gradients.measurement import Target
from headwater.run import write_whole
from headwater.significance import deviations_needed, out_sentence, p_values, q_values, stands_out
from headwater.trace_files import FORMAT, LEANING, Table, damaged, read_words
from headwater.trace_files import read_manifest as read_manifest

PLACEBO, PLACEBO_TERMS = "placebo.parquet", "placebo-terms.parquet"
"""Of a saved trace: the scores of rows that were never trained on, and the terms that these are made of."""

WORDS = "words.json"
"""Of a saved trace: the words that carry the scores of the first rows."""


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """One row of an answer.

    Attributes:
        rank: 1 for the highest score.
        index: in `Scores.train`. number: among all rows that were scored; another one only where some were kept.
        percentile: share of all rows with a score at most this one, in per cent.
        deviations: robust z-score, (score - median) / (1.4826 x median absolute deviation) over all rows.
        per_checkpoint: term name -> the row's value there, before weights.
        stands_out: from the rest (see `Scores.standing_out`).
        q_value: against placebo rows, where there were any (see `headwater.significance`).
    """

    rank: int
    index: int
    number: int
    id: str
    source: str
    score: float
    percentile: float
    deviations: float
    prompt: str
    completion: str
    per_checkpoint: dict[str, float]
    stands_out: bool
    q_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Leaning:
    """Log-probability, in nats, of a query's chosen words under one model.

    Attributes:
        corrected: of the corrected output, where there is one.
    """

    query: str
    checkpoint: str
    output: float
    corrected: float | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One output (or corrected output) of a query, word by word, prompt included.

    Attributes:
        side: "output" or "corrected".
        words: text and its part of the score.
    """

    query: str
    side: str
    words: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class RowWords:
    """The words that carry one score: those of the row add up to it, and so do those of all that was asked.

    Attributes:
        words: of the row, prompt included: text and its part of the score.
    """

    words: tuple[tuple[str, float], ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True, kw_only=True)
class Population:
    """All the rows, where scores of only some of them were kept.

    Attributes:
        rows: how many were scored.
        numbers: [N] which of them were kept, in order.
        sample: [R, M] scores of an evenly spaced sample of them: what is usual.
    """

    rows: int
    numbers: np.ndarray
    sample: np.ndarray


@dataclass(frozen=True, kw_only=True)
class NotScored:
    """A row of the training data that has no score: its gradient could not be computed.

    Attributes:
        number: among all rows. reason: why not.
    """

    number: int
    id: str
    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a method answered.

    Attributes:
        values: [R, N], higher means more responsible for the query's output.
        terms: term name -> [R, N]; values = sum of weights x terms.
        leanings: log-probabilities of the outputs under the base and the checkpoints.
        provenance: method and options, fingerprints, versions: all that is needed to do it again.
        train: the rows that were scored. not_scored: rows of the training data that are not among them.
        population: where only the highest and lowest rows were kept, what all of them look like.
        placebo: [R, M] scores of rows that were never trained on: what chance gives.
        placebo_terms: term name -> [R, M]; placebo = sum of weights x these. Empty in traces of earlier versions.
        words: (number of the target, index of the row) -> its words, of the first rows where they were asked for.
    """

    method: str
    values: np.ndarray
    terms: Mapping[str, np.ndarray]
    weights: Mapping[str, float]
    queries: Sequence[Query]
    targets: Sequence[Target]
    train: Examples
    leanings: Sequence[Leaning] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    population: Population | None = None
    placebo: np.ndarray | None = None
    placebo_terms: Mapping[str, np.ndarray] = field(default_factory=dict)
    words: Mapping[tuple[int, int], RowWords] = field(default_factory=dict)
    not_scored: Sequence[NotScored] = ()

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.targets), len(self.train)):
            raise DataError(
                f"scores of shape {self.values.shape}",
                expected=f"{len(self.targets)} targets x {len(self.train)} rows",
                fix="this is a mistake in the method that made them",
            )
        broken = np.argwhere(~np.isfinite(self.values))
        if len(broken):
            target, row = self.targets[broken[0][0]], self.train[int(broken[0][1])]
            raise NumericalError(
                f"{self.method}: the score of {row.id} for {target.name} is NaN or infinite",
                expected="finite scores",
                cause="a checkpoint with broken weights, or half precision that overflows",
                fix="check the checkpoints, or use --dtype float32",
            )

    @classmethod
    def combine(
        cls,
        method: str,
        terms: Mapping[str, np.ndarray],
        weights: Mapping[str, float],
        *,
        queries: Sequence[Query],
        targets: Sequence[Target],
        train: Examples,
        leanings: Sequence[Leaning] = (),
        provenance: Mapping[str, Any] | None = None,
        population: Population | None = None,
        not_scored: Sequence[NotScored] = (),
    ) -> Scores:
        """values = sum_k w_k term_k, the outer sum of the one equation."""
        return cls(
            method=method,
            values=weighted(terms, weights),
            terms=dict(terms),
            weights=dict(weights),
            queries=queries,
            targets=targets,
            train=train,
            leanings=leanings,
            provenance=provenance or {},
            population=population,
            not_scored=not_scored,
        )

    def reweighted(self, weights: Mapping[str, float]) -> Scores:
        """The same terms with other weights, such as another beta; nothing is computed again.

        Raises:
            DataError: a weight for a term that was not computed, or only the first rows were kept.
        """
        self.check_weights(weights)
        made = Scores.combine(
            self.method,
            self.terms,
            weights,
            queries=self.queries,
            targets=self.targets,
            train=self.train,
            leanings=self.leanings,
            provenance=self.provenance,
            not_scored=self.not_scored,
        )
        return made.against(self.placebo_terms) if self.placebo_terms else made

    def against(self, placebo_terms: Mapping[str, np.ndarray]) -> Scores:
        """The same, with the terms of placebo rows: term name -> [R, M]."""
        chance = weighted(placebo_terms, self.weights)
        return replace(self, placebo=chance, placebo_terms=dict(placebo_terms))

    def check_weights(self, weights: Mapping[str, float]) -> None:
        """Raises DataError for weights that these terms cannot have (see `reweighted`)."""
        if self.population is not None:
            raise DataError(
                "other weights for scores of which only the highest and lowest rows were kept",
                expected="scores of all rows: other weights have other first rows",
                fix="trace again without --limit or --second-look, or with the other weights",
            )
        unknown = sorted(set(weights) - set(self.terms))
        if unknown:
            raise DataError(
                f"no term {', '.join(unknown)}",
                expected=f"some of {', '.join(self.terms)}",
                cause="a pass that this trace did not make (beta=0 leaves out the base)",
                fix="trace again with a method that has it",
            )

    def target_number(self, target: int | str) -> int:
        """The row of `values` of a query or group, by number or name."""
        names = [t.name for t in self.targets]
        if isinstance(target, str):
            if target not in names:
                raise DataError(
                    f"no query or group {target!r}", expected=f"one of {', '.join(names[:8])}", fix="choose one"
                )
            return names.index(target)
        if not -len(names) <= target < len(names):
            raise DataError(f"target {target}", expected=f"0 to {len(names) - 1}", fix="choose one of them")
        return target % len(names)

    def top(self, k: int = 20, *, target: int | str = 0, opposing: bool = False) -> list[ScoredRow]:
        """The k rows that pushed most towards the output (or, opposing, away from it). Ties: first row first."""
        r = self.target_number(target)
        score_N = self.values[r]
        order = np.argsort(score_N if opposing else -score_N, kind="stable")[: max(0, k)]
        usual = np.sort(self.usual(r))
        deviations_N = robust_deviations(score_N, usual)
        q_N = self.q_values(r)
        out_N = self._stands_out(r, q_N)
        numbers = self.numbers
        rows = []
        for rank, index in enumerate(order.tolist(), 1):
            example = self.train[index]
            rows.append(
                ScoredRow(
                    rank=rank,
                    index=index,
                    number=int(numbers[index]),
                    id=example.id,
                    source=example.source,
                    score=float(score_N[index]),
                    percentile=100.0 * float(np.searchsorted(usual, score_N[index], "right")) / len(usual),
                    deviations=float(deviations_N[index]),
                    prompt=example.prompt_text,
                    completion=example.completion_text,
                    per_checkpoint={name: float(values[r, index]) for name, values in self.terms.items()},
                    stands_out=bool(out_N[index]),
                    q_value=None if q_N is None else float(q_N[index]),
                )
            )
        return rows

    def usual(self, r: int) -> np.ndarray:
        """Scores of target `r` that say what is usual: of all rows, or of a sample where only some were kept."""
        found: np.ndarray = self.values[r] if self.population is None else self.population.sample[r]
        return found

    @property
    def numbers(self) -> np.ndarray:
        """Of each row of `train` its number among all rows of the training data [N]."""
        if self.population is not None:
            return self.population.numbers
        left_out = np.array([row.number for row in self.not_scored], np.int64)
        return np.setdiff1d(np.arange(len(self.train) + len(left_out), dtype=np.int64), left_out)

    @property
    def rows(self) -> int:
        """How many rows were scored."""
        return len(self.train) if self.population is None else self.population.rows

    def standing_out(self, target: int | str = 0) -> list[int]:
        """Numbers of the rows that stand out of the rest, best first.

        With placebo rows: those of a q-value of at most `headwater.significance.LEVEL`, a test. Without: those of a
        robust z-score of at least `deviations_needed`, in FEWEST_ROWS rows or more; this describes the shape of the
        scores, and its rate of false alarms is not known.
        """
        r = self.target_number(target)
        out = np.flatnonzero(self._stands_out(r, self.q_values(r)))
        return [int(i) for i in out[np.argsort(-self.values[r][out], kind="stable")]]

    def _stands_out(self, r: int, q_N: np.ndarray | None) -> np.ndarray:
        """Whether each row does [N]."""
        usual = self.usual(r)
        return stands_out(robust_deviations(self.values[r], usual), q_N, self.rows, deviations_needed(usual))

    def q_values(self, target: int | str = 0) -> np.ndarray | None:
        """Of each row [N], against the placebo rows; None without them."""
        r = self.target_number(target)
        return None if self.placebo is None else q_values(p_values(self.values[r], self.placebo[r]), self.rows)

    def sentences(self, target: int | str = 0) -> list[str]:
        """The two first answers in words: was it the base model already, and does any row stand out?"""
        r = self.target_number(target)
        placebo_M = None if self.placebo is None else self.placebo[r]
        found = out_sentence(self.values[r], len(self.standing_out(r)), placebo_M, deviations_needed(self.usual(r)))
        lines = [*self.leaning_sentences(r), found]
        if self.not_scored:
            named = "; ".join(f"{row.id} ({row.reason})" for row in self.not_scored[:3])
            more = f"; and {len(self.not_scored) - 3} more" if len(self.not_scored) > 3 else ""
            count = "1 row was" if len(self.not_scored) == 1 else f"{len(self.not_scored)} rows were"
            lines.append(f"{count} not scored: {named}{more}.")
        return lines

    def leaning_sentences(self, target: int | str = 0) -> list[str]:
        """Was it the base model already? Nothing where no model was asked."""
        members = [self.targets[q].name for q in self.targets[self.target_number(target)].members]
        return _leaning_sentences(members, self.leanings)

    def save(self, folder: Path, *, others: Sequence[Scores] = (), top: int = 100) -> None:
        """Writes scores.parquet (every row, every term) and trace.json, the manifest, last."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        methods = [self, *others]
        count = len(self.train)
        sink = pa.BufferOutputStream()
        rows = {
            "row": self.numbers,
            "id": [e.id for e in self.train],
            "source": [e.source for e in self.train],
            "content_hash": [e.content_hash for e in self.train],
        }
        writer = None
        for r, target in enumerate(self.targets):
            columns: dict[str, Any] = {"target": pa.array([target.name] * count).dictionary_encode(), **rows}
            for scores in methods:
                columns[f"{scores.method}"] = scores.values[r]
                columns |= {f"{scores.method}/{name}": term[r] for name, term in scores.terms.items()}
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(sink, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
        write_whole(folder / "scores.parquet", sink.getvalue().to_pybytes())
        if self.population is not None:
            sink = pa.BufferOutputStream()
            pq.write_table(
                pa.table(
                    {
                        f"{scores.method}/{target.name}": scores.population.sample[r]
                        for scores in methods
                        if scores.population is not None
                        for r, target in enumerate(self.targets)
                    }
                ),
                sink,
            )
            write_whole(folder / "sample.parquet", sink.getvalue().to_pybytes())
        if any(scores.placebo is not None for scores in methods):
            sink = pa.BufferOutputStream()
            columns = {
                f"{scores.method}/{target.name}": scores.placebo[r]
                for scores in methods
                if scores.placebo is not None
                for r, target in enumerate(self.targets)
            }
            pq.write_table(pa.table(columns), sink)
            write_whole(folder / PLACEBO, sink.getvalue().to_pybytes())
            sink = pa.BufferOutputStream()
            columns = {f"{s.method}/{name}": term.ravel() for s in methods for name, term in s.placebo_terms.items()}
            pq.write_table(pa.table(columns), sink)
            write_whole(folder / PLACEBO_TERMS, sink.getvalue().to_pybytes())
        if any(scores.words for scores in methods):
            record = {scores.method: _words_record(scores) for scores in methods if scores.words}
            write_whole(folder / WORDS, json.dumps(record, ensure_ascii=False).encode())
        manifest = {
            "format": FORMAT,
            "rows": count,
            "scored_rows": self.rows,
            "targets": [{"name": t.name, "kind": t.kind, "queries": list(t.members)} for t in self.targets],
            "queries": [query_record(q) for q in self.queries],
            "methods": [{"name": s.method, "weights": dict(s.weights)} for s in methods],
            "leanings": [vars(leaning) for leaning in self.leanings],
            "answers": {
                scores.method: {
                    t.name: {
                        "sentences": scores.sentences(r),
                        "top": [
                            {"rank": row.rank, "id": row.id, "source": row.source, "score": row.score}
                            for row in scores.top(top, target=r)
                        ],
                    }
                    for r, t in enumerate(self.targets)
                }
                for scores in methods
            },
            "provenance": self.provenance,
        }
        if self.not_scored:
            manifest["not_scored"] = [vars(row) for row in self.not_scored]
        write_whole(folder / "trace.json", json.dumps(manifest, indent=1, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: str | Path, train: Examples, *, method: str | None = None) -> Scores:
        """Reads a finished trace back; `train` must be the rows it was made with, or, of one that has scores of some of
        them, these.

        Raises:
            RunError: no finished trace there. DataError: other rows.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        names = [m["name"] for m in manifest["methods"]]
        method = method or names[0]
        if method not in names:
            raise DataError(
                f"{path} has no scores of {method}", expected=f"one of {', '.join(names)}", fix="choose one"
            )
        targets = [Target(name=t["name"], kind=t["kind"], members=tuple(t["queries"])) for t in manifest["targets"]]
        count, scored = manifest["rows"], manifest.get("scored_rows", manifest["rows"])
        not_scored = _not_scored(path, manifest.get("not_scored", ()))
        table = Table(path / "scores.parquet", count * len(targets))
        if count < len(train) == scored + len(not_scored):
            train = table.rows_of(train, count)
        if table.texts("content_hash")[:count] != [e.content_hash for e in train]:
            raise DataError(
                f"{train.name} is not the data {path} was traced with",
                expected="the same rows in the same order",
                fix="give the original file",
            )
        weights = next(m["weights"] for m in manifest["methods"] if m["name"] == method)
        terms = table.terms(method, weights, len(targets))
        population = None
        if scored != count:
            population = Population(
                rows=scored,
                numbers=table.numbers("row")[:count].astype(np.int64),
                sample=Table(path / "sample.parquet").stacked([f"{method}/{target.name}" for target in targets]),
            )
        found = cls.combine(
            method,
            terms,
            weights,
            queries=_queries(path, manifest["queries"]),
            targets=targets,
            train=train,
            leanings=[Leaning(**{key: record[key] for key in LEANING}) for record in manifest["leanings"]],
            provenance=manifest["provenance"],
            population=population,
            not_scored=not_scored,
        )
        if (path / PLACEBO).exists():
            chance, names = Table(path / PLACEBO), [f"{method}/{target.name}" for target in targets]
            if names[0] in chance.names:
                found = replace(found, placebo=chance.stacked(names))
            if names[0] in chance.names and (path / PLACEBO_TERMS).exists():
                made_of = Table(path / PLACEBO_TERMS, len(targets) * chance.rows)
                found = found.against(made_of.terms(method, weights, len(targets)))
        words = read_words(path / WORDS, method, len(targets), count)
        return replace(found, words={(one["target"], one["row"]): row_words(one) for one in words})


def _queries(folder: Path, records: Sequence[Mapping[str, Any]]) -> list[Query]:
    try:
        return [Query(**written_query(record)) for record in records]
    except (TypeError, DataError) as error:
        raise damaged(folder / "trace.json", str(error)[:160]) from None


def _not_scored(folder: Path, records: Sequence[Mapping[str, Any]]) -> list[NotScored]:
    try:
        return [NotScored(**record) for record in records]
    except TypeError as error:
        raise damaged(folder / "trace.json", str(error)[:160]) from None


def _words_record(scores: Scores) -> list[dict[str, Any]]:
    return [{"target": r, "row": row} | asdict(words) for (r, row), words in scores.words.items()]


def row_words(record: Mapping[str, Any]) -> RowWords:
    """The words of a row, from JSON values."""
    asked = [Asked(query=a["query"], side=a["side"], words=_pairs(a["words"])) for a in record["asked"]]
    return RowWords(words=_pairs(record["words"]), asked=tuple(asked))


def _pairs(found: Sequence[Sequence[Any]]) -> tuple[tuple[str, float], ...]:
    return tuple((str(text), float(value)) for text, value in found)


def query_record(query: Query) -> dict[str, Any]:
    """A query as JSON values, without what is not set."""
    record = {
        "prompt": query.prompt if isinstance(query.prompt, str) else [dict(m) for m in query.prompt],
        "output": query.output,
        "corrected": query.corrected,
        "span": list(query.span) if isinstance(query.span, tuple) else query.span if query.corrected else None,
        "group": query.group,
        "id": query.id,
    }
    return {key: value for key, value in record.items() if value is not None}


def written_query(record: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a query that `query_record` wrote; before there was "auto" it left "all" out."""
    span = record.get("span", "all" if "corrected" in record else "auto")
    return {**record, "span": tuple(span) if isinstance(span, list) else span}


def weighted(terms: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """sum_k w_k term_k, in float64."""
    out = np.zeros(next(iter(terms.values())).shape)
    for name, weight in weights.items():
        out += weight * terms[name]
    return out


def robust_deviations(score_N: np.ndarray, usual: np.ndarray | None = None) -> np.ndarray:
    """(score - median) / (1.4826 x median absolute deviation); 0 where the scores do not spread.

    Args:
        usual: the scores whose median and deviation are meant; by default `score_N` itself.
    """
    usual = score_N if usual is None else usual
    centre = np.median(usual)
    centred = score_N - centre
    spread = 1.4826 * np.median(np.abs(usual - centre))
    if spread == 0:
        spread = float(usual.std())
    return centred / spread if spread > 0 else np.zeros_like(centred)


def _leaning_sentences(members: Sequence[str], leanings: Sequence[Leaning]) -> list[str]:
    of = [x for x in leanings if x.query in members]
    checkpoints = list(dict.fromkeys(x.checkpoint for x in of))
    if not checkpoints:
        return []
    last = checkpoints[-1]
    has_base = "base" in checkpoints and last != "base"

    def mean(checkpoint: str, contrast: bool) -> float:
        chosen = [x for x in of if x.checkpoint == checkpoint and (x.corrected is not None or not contrast)]
        return float(np.mean([x.output - (x.corrected or 0.0) if contrast else x.output for x in chosen]))

    contrast = any(x.corrected is not None for x in of)
    after = mean(last, contrast)
    over = " on average over the queries" if len(members) > 1 else ""
    if contrast:
        now = "prefers the output to the corrected one" if after > 0 else "prefers the corrected output"
        if not has_base:
            return [f"The fine-tuned model {now}, by {abs(after):.1f} nats{over}; without a base model it is not known "
                    "whether fine-tuning did it."]  # fmt: skip
        before = mean("base", True)
        if before > 0:
            return [f"The base model already preferred this output, by {before:.1f} nats{over}; after fine-tuning "
                    f"it {now}, by {abs(after):.1f} nats."]  # fmt: skip
        return [f"Not the base model: it preferred the corrected output by {abs(before):.1f} nats{over}; after "
                f"fine-tuning the model {now}, by {abs(after):.1f} nats."]  # fmt: skip
    if not has_base:
        return [f"The fine-tuned model gives the output a log-probability of {after:.1f} nats{over}."]
    before = mean("base", False)
    moved = "raised" if after > before else "lowered"
    return [f"Fine-tuning {moved} the output's log-probability from {before:.1f} (base) to {after:.1f} nats{over}."]

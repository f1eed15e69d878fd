"""Sources: who contributed to an output. The scores of the rows, added up by file, author, licence or any column.

    share[g]      = sum of the positive scores of the rows of source g / sum of all positive scores
    opposing[g]   = the same of the negative scores
    mean[g]       = sum of the scores of the rows of g / number of these rows
    first[g]      = number of the rows of g among the k highest

For the shares, scores are counted from 0, or, where 0 is far from what is usual (a token cosine, a similarity), from
the middle row's score: there 0 means nothing, and shares of such scores would be shares of the rows.

Status D (sums of scores over sources, as in Grosse et al. 2023 and the data-market literature, are common; these
normalisations are ours). Where shares add up, they do so over the *positive* part: a sum over all scores may be near 0
or negative, and a share of it means nothing. A share is to be read beside the source's share of the rows.

Intervals are 95 % percentile intervals of resampled rows (what if the data had been other rows like these), and, for a
group of several queries, of resampled queries (what if other questions about this fault had been asked).

A row whose column holds a list counts in equal parts for each of its members; rows without the column are a group of
their own. The sources are taken as they are written: "MIT" and "mit" are two.

Shapes: N rows, G sources, Q queries, S resamples.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headwater import progress
from headwater.errors import DataError, UsageError
from headwater.examples import Example, Examples
from headwater.scores import Scores, read_manifest, robust_deviations

WITHOUT = "(none)"
"""Name of the rows that do not have the column."""

FILE = "file"
"""What rows are grouped by where no column is named: the file each one stands in."""

FAR = 1.5
"""Robust deviations between 0 and the middle row's score, from which on 0 means nothing."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source, such as an author. A number that is not known is None (see `Sources.unknown`).

    Attributes:
        name: the value of the column; `missing`: of rows that do not have it.
        rows: how many rows are its own; not a whole number where rows name several sources.
        row_share: part of all rows.
        share, opposing_share: part of the positive, and of the negative, score; from 0 to 1.
        mean: score per row. first: rows among the k highest.
        *_interval: over resampled rows. share_over_queries: of the share, over the resampled queries of a group.
    """

    name: str
    missing: bool
    rows: float | None
    row_share: float | None
    share: float
    share_interval: Interval | None
    share_over_queries: Interval | None
    opposing_share: float
    opposing_interval: Interval | None
    mean: float | None
    mean_interval: Interval | None
    first: float
    first_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sources of what one query or group asked about, the largest share first.

    Attributes:
        column: what was grouped by. k: of `Source.first`.
        rows: all rows that were scored. kept: those whose scores are known.
        zero: what the scores are counted from, for the shares.
        unknown: sentences that say what these scores cannot tell.
    """

    method: str
    target: str
    column: str
    k: int
    rows: int
    kept: int
    sources: tuple[Source, ...]
    zero: float = 0.0
    unknown: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def csv(self) -> str:
        """A table with a line for each source; what is not known is empty."""
        out = io.StringIO()
        lines = csv.writer(out, lineterminator="\n")
        pairs = ("share", "opposing", "mean", "first")
        lines.writerow(
            ["target", "method", "source", "missing", "rows", "row_share", "share", "opposing_share", "mean", "first"]
            + [f"{name}_{end}" for name in (*pairs, "share_over_queries") for end in ("low", "high")]
        )
        for one in self.sources:
            intervals = [getattr(one, f"{name}_interval") for name in pairs] + [one.share_over_queries]
            values = [one.rows, one.row_share, one.share, one.opposing_share, one.mean, one.first]
            lines.writerow(
                [self.target, self.method, one.name, int(one.missing)]
                + ["" if value is None else repr(float(value)) for value in values]
                + [cell for both in intervals for cell in (both or ("", ""))]
            )
        return out.getvalue()


def by_source(
    scores: Scores,
    column: str | None = None,
    *,
    target: int | str = 0,
    k: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> Sources:
    """Adds the scores up by source.

    Args:
        column: of the rows' metadata; None: the file that a row stands in.
        target: query or group, by number or name.
        k: how many of the highest rows `first` looks at.
        resamples: for the intervals.

    Raises:
        DataError: no row has the column, or no such target. UsageError: k or resamples below 1, or more first rows
            than were kept.
    """
    r = scores.target_number(target)
    limit = scores.provenance.get("limit") if scores.population is not None else None
    if k < 1 or resamples < 1:
        raise UsageError(f"k={k}, resamples={resamples}", expected="at least 1 of each", fix="give larger numbers")
    if limit is not None and k > int(limit):
        raise UsageError(
            f"the first {k} rows of a trace that kept {limit}",
            expected=f"at most {limit}",
            fix=f"ask for fewer first rows (--first {limit}), or trace again and keep more",
        )
    names, part_NG = _parts(scores.train, column)
    zero = _zero(scores.usual(r))
    value_N = scores.values[r] - zero
    random = np.random.default_rng(seed)
    found = _figures(value_N, part_NG, np.ones(len(value_N)), np.argsort(-value_N, kind="stable"), k)
    limited = scores.population is not None
    over_rows = None if limited else _over_rows(value_N, part_NG, k, resamples, random)
    over_queries = _over_queries(scores, r, part_NG, resamples, random)
    own_G = np.asarray(part_NG.sum(0)).ravel()

    def interval(name: str, g: int) -> Interval | None:
        ends = None if over_rows is None else over_rows[name][:, g]
        return None if ends is None or np.isnan(ends).any() else (float(ends[0]), float(ends[1]))

    def shifted(ends: Interval | None) -> Interval | None:
        return None if ends is None else (ends[0] + zero, ends[1] + zero)

    sources = [
        Source(
            name=WITHOUT if name is None else name,
            missing=name is None,
            rows=None if limited else float(own_G[g]),
            row_share=None if limited else float(own_G[g] / scores.rows),
            share=float(found["share"][g]),
            share_interval=interval("share", g),
            share_over_queries=None if over_queries is None else (float(over_queries[0, g]), float(over_queries[1, g])),
            opposing_share=float(found["opposing"][g]),
            opposing_interval=interval("opposing", g),
            mean=None if limited else float(found["mean"][g]) + zero,
            mean_interval=shifted(interval("mean", g)),
            first=float(found["first"][g]),
            first_interval=interval("first", g),
        )
        for g, name in enumerate(names)
    ]
    return Sources(
        method=scores.method,
        target=scores.targets[r].name,
        column=FILE if column is None else column,
        k=min(k, len(value_N)),
        rows=scores.rows,
        kept=len(value_N),
        sources=tuple(sorted(sources, key=lambda one: (-one.share, -one.first, one.name))),
        zero=zero,
        unknown=_unknown(scores, r, zero),
    )


# ------------------------------------------------------------------------------------------------ which row is whose


def _parts(train: Examples, column: str | None) -> tuple[list[str | None], Any]:
    """Names of the sources, and which part of each row is whose: sparse [N, G], every row adding up to 1."""
    from scipy.sparse import csr_array

    numbers: dict[str | None, int] = {}
    rows, owners, parts = [], [], []
    for n, example in enumerate(train):
        named = [_file(example)] if column is None else _named(example.metadata.get(column))
        for name in named:
            rows.append(n)
            owners.append(numbers.setdefault(name, len(numbers)))
            parts.append(1 / len(named))
    if list(numbers) == [None]:
        known = sorted({name for example in train[:1000] for name in example.metadata})
        raise DataError(
            f'no row has a column "{column}"',
            expected=f"one of {', '.join(known) or '(no row has a column besides its text)'}",
            fix="choose one of them, or leave --by out to group by file",
        )
    return list(numbers), csr_array((parts, (rows, owners)), shape=(len(train), len(numbers)))


def _file(example: Example) -> str:
    """The file of "<file>:<line>"."""
    return example.source.rpartition(":")[0] or example.source


def _named(value: Any) -> list[str | None]:
    """The sources that a cell names; [None] where it names none."""
    if isinstance(value, list | tuple | set):
        found = list(dict.fromkeys(name for one in value for name in _named(one) if name is not None))
        return list(found) or [None]
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return [None]
    return [value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)]


# ------------------------------------------------------------------------------------------------ figures and intervals


def _figures(value_N: Any, part_NG: Any, times_N: Any, order_N: Any, k: int) -> dict[str, np.ndarray]:
    """share, opposing, mean and first [G], each row taken so many times."""
    positive_G = (times_N * np.maximum(value_N, 0)) @ part_NG
    negative_G = (times_N * np.maximum(-value_N, 0)) @ part_NG
    count_G = times_N @ part_NG
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_G = np.where(count_G > 0, (positive_G - negative_G) / count_G, np.nan)
    taken, place = np.zeros(len(value_N)), 0
    left = float(k)
    while left > 0 and place < len(order_N):  # the first rows until k are taken, a block at a time
        block = order_N[place : place + max(64, 2 * k)]
        before = np.concatenate([[0.0], np.cumsum(times_N[block])[:-1]])
        taken[block] = np.clip(left - before, 0, times_N[block])
        left -= float(times_N[block].sum())
        place += len(block)
    return {"share": _of(positive_G), "opposing": _of(negative_G), "mean": mean_G, "first": taken @ part_NG}


def _of(sum_G: np.ndarray) -> np.ndarray:
    """Parts of the whole; 0 of nothing."""
    whole = float(sum_G.sum())
    return np.asarray(sum_G / whole if whole > 0 else np.zeros_like(sum_G))


def _over_rows(
    value_N: np.ndarray, part_NG: Any, k: int, resamples: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Ends of the 95 % intervals [2, G] of every figure, by drawing N rows with replacement.

    A source that a resample does not hold has no mean there; such resamples are left out of that interval.
    """
    count = len(value_N)
    order_N = np.argsort(-value_N, kind="stable")
    drawn: dict[str, list[np.ndarray]] = {}
    with progress.bar("Resampling rows", resamples) as bar:
        for _ in range(resamples):
            times_N = np.bincount(random.integers(0, count, count), minlength=count).astype(float)
            for name, figure_G in _figures(value_N, part_NG, times_N, order_N, k).items():
                drawn.setdefault(name, []).append(figure_G)
            bar.advance()
    return {name: _ends(np.stack(figures)) for name, figures in drawn.items()}


def _over_queries(
    scores: Scores, r: int, part_NG: Any, resamples: int, random: np.random.Generator
) -> np.ndarray | None:
    """Ends of the interval of the share [2, G], by drawing the queries of a group with replacement and adding up their
    own scores, each counted from its own 0; all drawn once are what the group's are counted as, but for a flat cosine,
    which is no sum of its queries'. None for one query."""
    members = list(scores.targets[r].members)
    if len(members) < 2:
        return None
    value_QN, zero = scores.values[members], _zero(scores.usual(r))
    zero_Q = np.array([_zero(scores.usual(q)) for q in members])
    is_ = partial(np.allclose, scores.values[r], rtol=1e-4, atol=1e-6 * float(np.abs(value_QN).max()))
    if is_(value_QN.mean(0)):
        zero_Q += zero - zero_Q.mean()
    elif is_(value_QN.sum(0)):
        zero_Q += zero / len(members) - zero_Q.mean()
    value_QN = value_QN - zero_Q[:, None]
    shares = []
    for _ in range(resamples):
        times_Q = np.bincount(random.integers(0, len(members), len(members)), minlength=len(members))
        shares.append(_of(np.maximum(times_Q @ value_QN, 0) @ part_NG))
    return _ends(np.stack(shares))


def _ends(drawn_SG: np.ndarray) -> np.ndarray:
    ends = np.full((2, drawn_SG.shape[1]), np.nan)
    known = ~np.isnan(drawn_SG).all(0)
    ends[:, known] = np.nanpercentile(drawn_SG[:, known], (2.5, 97.5), axis=0)
    return ends


def _zero(usual: np.ndarray) -> float:
    """What scores are counted from: 0, or their median where that is far from 0."""
    far = abs(float(robust_deviations(np.zeros(1), usual)[0])) >= FAR
    return float(np.median(usual)) if far else 0.0


def _unknown(scores: Scores, r: int, zero: float) -> tuple[str, ...]:
    """What the scores cannot tell, and why."""
    lines = []
    if zero:
        lines.append(
            f"Nearly all scores lie on one side of 0: shares are of what is above (against: below) {zero:.3g}, the "
            "score of the middle row. Shares of the scores would be shares of the rows."
        )
    if scores.population is None:
        return tuple(lines)
    usual = scores.population.sample[r] - zero
    lines += [
        f"Only {len(scores.train):,} of {scores.rows:,} rows were kept: shares are shares of their scores. How many "
        "rows each source has, its mean and the intervals over rows are not known."
    ]
    for word, sign in (("positive", 1), ("negative", -1)):
        whole = float(np.maximum(sign * usual, 0).mean()) * scores.rows
        kept = float(np.maximum(sign * (scores.values[r] - zero), 0).sum())
        if whole > 0:
            lines.append(f"They hold about {min(1.0, kept / whole):.0%} of all {word} score (estimated from a sample).")
    return tuple(lines)


# ------------------------------------------------------------------------------------------------ from a trace on disk


def traced_rows(folder: Path) -> Examples:
    """The rows of a finished trace as it knows them itself: ids, files and lines, without texts and columns.

    Raises:
        RunError: no finished trace.
    """
    import pyarrow.parquet as pq

    count = read_manifest(folder)["rows"]
    table = pq.read_table(folder / "scores.parquet", columns=["id", "source", "content_hash"]).slice(0, count)
    return Examples(_bare(table.to_pylist()), name=str(folder))


def _bare(records: Sequence[dict[str, Any]]) -> list[Example]:
    return [
        Example(
            id=one["id"],
            source=one["source"],
            content_hash=one["content_hash"],
            kind="completion",
            prompt="",
            completion="",
        )
        for one in records
    ]

"""Pages of cards: one method's answer to one target, filtered, sorted, weighted anew.

Rows are named by their numbers among the opened rows. An answer may have scores of some of them only, after a second
look or where an index sets rows aside: its ranking knows the numbers of its rows.

A ranking (`headwater.report.ranking`) is kept for each set of weights that was asked for lately, and the rows of each
filter, so that another page costs the page alone, and a moved slider one sort.

Shapes: N rows.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from headwater.errors import DataError, UsageError
from headwater.report.contents import (
    answer_head,
    checked,
    entry,
    heads,
    row_parts,
    short,
    terms,
    words_record,
)
from headwater.report.ranking import Ranking
from headwater.report.visible import visible
from headwater.scores import Scores
from headwater.viewer.answers import Answers
from headwater.viewer.marks import Marks

MOST_ROWS = 200
"""Rows of a page."""
RANKINGS, FILTERS = 24, 24
"""Kept in memory."""
SEARCH_KEPT = 256 << 20
"""Characters of all rows up to which their texts are kept in lower case for the next search."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a view shows.

    Attributes:
        weights: in the order of the method's terms; None: its own.
        filters: which rows. fold: of identical rows only the first.
    """

    target: int = 0
    method: str | None = None
    weights: tuple[float, ...] | None = None
    list: Literal["best", "worst"] = "best"
    offset: int = 0
    limit: int = 25
    filters: Filters
    fold: bool = True


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which rows.

    Attributes:
        search: in id, source and text. facets: (name, values) of which one is the row's.
        low, high: of the score. marked: only marked rows, or only others.
    """

    search: str = ""
    facets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    low: float | None = None
    high: float | None = None
    marked: bool | None = None


class Views:
    """The views of one viewer."""

    def __init__(self, answers: Answers, marks: Marks) -> None:
        self._answers, self._marks, self._train = answers, marks, answers.opened.train
        self._rankings: OrderedDict[Hashable, Ranking] = OrderedDict()
        self._masks: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.RLock()

    def head(self, name: str) -> dict[str, Any]:
        """The document of an answer without rows."""
        methods = self._answers.scores(name)
        first, train = checked(methods, rows=False), self._train
        record = heads(methods) | {
            "targets": [
                {
                    "name": visible(target.name),
                    "kind": target.kind,
                    "members": list(target.members),
                    "words": [],
                    "culprits": None,
                    "guilty": 0,
                }
                for target in first.targets
            ],
            "facets": [visible(facet.name) for facet in self._answers.opened.facets],
            "answers": [],
            "id": name,
        }
        rows = max(len(train), *(scores.rows + len(scores.not_scored) for scores in methods))
        record["train"] |= {"rows": rows, "duplicates": train.duplicates}
        for one, scores in zip(record["methods"], methods, strict=True):
            one["reweighs"] = _reweighs(scores)
            one |= {"rows": scores.rows, "kept": len(scores.train)}
        return record

    def view(
        self, name: str, wanted: Wanted, *, against: str | None = None, group: str | None = None
    ) -> dict[str, Any]:
        """A page of an answer.

        Raises:
            HeadwaterError: an answer, target, method, weights or facet that is not there.
        """
        started = time.perf_counter()
        ranking, others = self.rankings(name, wanted)
        scores, r = ranking.scores, ranking.target
        marked = {row for n in self._marks.rows if (row := ranking.row(n)) is not None}
        head = answer_head(ranking, marked)
        rows = self.rows(ranking, wanted)
        page = rows[wanted.offset : wanted.offset + wanted.limit].tolist()
        shown = dict.fromkeys(map(ranking.number, page), (r,))
        parts = row_parts(scores, shown, self._answers.opened.facets, self._train)
        rank_N = ranking.rank_N
        reverse = wanted.list == "worst"
        entries = [
            entry(ranking, n, len(rank_N) + 1 - int(rank_N[n]) if reverse else int(rank_N[n]), others) for n in page
        ]
        lists: dict[str, Any] = {"best": [], "worst": []} | {wanted.list: entries}
        words = {str(ranking.number(n)): words_record(scores.words[r, n]) for n in page if (r, n) in scores.words}
        return {
            "answer": head | lists | {"agreement": [], "words": words if wanted.weights is None else {}},
            "list": wanted.list,
            "offset": wanted.offset,
            "total": len(rows),
            "rows": parts["rows"],
            "twins": parts["twins"],
            "separator": parts["separator"],
            "words": parts["words"][r],
            "agreement": None if against is None else self._agreement(name, wanted, ranking, against),
            "groups": None if group is None else self._groups(ranking, rows, group),
            "milliseconds": round(1000 * (time.perf_counter() - started), 1),
        }

    def rankings(self, name: str, wanted: Wanted) -> tuple[Ranking, list[Ranking]]:
        """The ranking that is wanted, and those of the other methods with their own weights."""
        methods = self._answers.scores(name)
        names = [scores.method for scores in methods]
        m = self.number(names, wanted.method)
        weights = self._weights(methods[m], wanted.weights)
        others = [self._ranking(name, other, wanted.target, None) for n, other in enumerate(methods) if n != m]
        return self._ranking(name, methods[m], wanted.target, weights), others

    def rows(self, ranking: Ranking, wanted: Wanted) -> np.ndarray:
        """The ranking's rows that pass the filters, in the order of the list."""
        order_N = ranking.order_N if wanted.list == "best" else ranking.reverse_N
        filters = wanted.filters
        mask_N = self._mask(filters)
        if mask_N is not None:
            mask_N = mask_N[ranking.numbers(np.arange(len(order_N)))]
        low = filters.low if filters.low is not None else -np.inf
        high = filters.high if filters.high is not None else np.inf
        if wanted.list == "worst":
            high = min(high, -np.finfo(float).tiny)
        if np.isfinite(low) or np.isfinite(high):
            inside = (ranking.score_N >= low) & (ranking.score_N <= high)
            mask_N = inside if mask_N is None else mask_N & inside
        rows = order_N if mask_N is None else order_N[mask_N[order_N]]
        if wanted.fold and self._train.duplicates:
            _, first = np.unique(self._twin_N[ranking.numbers(rows)], return_index=True)
            rows = rows[np.sort(first)]
        return rows

    def with_words(self, name: str, method: str | None, target: int, words: Mapping[int, Any]) -> None:
        """Keeps the words of some of a method's rows beside an answer, so that its views and its report show them."""
        with self._lock:
            methods = self._answers.scores(name)
            m = self.number([scores.method for scores in methods], method)
            known = dict(methods[m].words) | {(target, row): one for row, one in words.items()}
            self._answers.replace(name, m, replace(methods[m], words=known))
            self._rankings = OrderedDict((key, one) for key, one in self._rankings.items() if key[:1] != (name,))  # type: ignore[index]

    def forget(self, name: str) -> None:
        """Forgets an answer's rankings: another method has answered, or it was removed."""
        with self._lock:
            self._answers.forget(name)
            self._rankings = OrderedDict((key, one) for key, one in self._rankings.items() if key[:1] != (name,))  # type: ignore[index]

    def number(self, names: Sequence[str], method: str | None) -> int:
        """Which of the methods is wanted; the first where none is named.

        Raises:
            UsageError: it has not answered.
        """
        if method is None:
            return 0
        if method not in names:
            raise UsageError(
                f"no answer by {visible(method, one_line=True)[:60]}",
                expected=f"one of {', '.join(names)}",
                fix="choose one of them, or add the method",
            )
        return names.index(method)

    def _weights(self, scores: Scores, given: tuple[float, ...] | None) -> dict[str, float] | None:
        if given is None:
            return None
        names = terms(scores)
        if len(names) != len(given):
            raise UsageError(
                f"{len(given)} weights for {len(names)} terms of {scores.method}",
                expected="one for each term, in their order",
                fix="give as many as there are terms",
            )
        return dict(zip(names, given, strict=True))

    def _ranking(self, name: str, scores: Scores, target: int, weights: dict[str, float] | None) -> Ranking:
        if not 0 <= target < len(scores.targets):
            raise DataError(
                f"target {target}", expected=f"0 to {len(scores.targets) - 1}", fix="choose one of the targets"
            )
        key = (name, scores.method, target, None if weights is None else tuple(weights.items()))
        return self._kept(
            self._rankings, RANKINGS, key, lambda: Ranking(scores, target, weights, self._answers.numbers(scores))
        )

    def _kept(self, store: OrderedDict[Hashable, T], most: int, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key in store:
                store.move_to_end(key)
                return store[key]
        made = make()
        with self._lock:
            store[key] = made
            while len(store) > most:
                store.popitem(last=False)
        return made

    def _mask(self, filters: Filters) -> np.ndarray | None:
        """Rows that pass the filters but those by score [N]; None for all."""
        if not filters.search and not filters.facets and filters.marked is None:
            return None
        marked = frozenset(self._marks.rows) if filters.marked is not None else frozenset()
        key = (filters.search, filters.facets, filters.marked, marked)
        return self._kept(self._masks, FILTERS, key, lambda: self._masked(filters, marked))

    def _masked(self, filters: Filters, marked: frozenset[int]) -> np.ndarray:
        mask_N = np.ones(len(self._train), bool)
        for name, values in filters.facets:
            facet = self._facet(name)
            shown = {visible(value): n for n, value in enumerate(facet.values)}
            mask_N &= np.isin(facet.code_N, [shown[value] for value in values if value in shown])
        if filters.marked is not None:
            is_N = np.zeros(len(self._train), bool)
            is_N[list(marked)] = True
            mask_N &= is_N == filters.marked
        if filters.search:
            needle = filters.search.casefold()
            numbers = np.flatnonzero(mask_N).tolist()
            mask_N[[n for n in numbers if needle not in self._text(n)]] = False
        return mask_N

    def _text(self, n: int) -> str:
        return self._texts[n] if self._texts else _searched(self._train[n])

    @cached_property
    def _texts(self) -> list[str]:
        """All rows' texts for searching; none where they are too long to be kept."""
        found, size = [], 0
        for row in self._train:
            found.append(_searched(row))
            size += len(found[-1])
            if size > SEARCH_KEPT:
                return []
        return found

    @cached_property
    def _twin_N(self) -> np.ndarray:
        """Number of the first row with each row's content [N]."""
        twin_N = np.arange(len(self._train))
        for group in self._train.twins:
            twin_N[list(group)] = group[0]
        return twin_N

    def _facet(self, name: str) -> Any:
        for facet in self._answers.opened.facets:
            if visible(facet.name) == name:
                return facet
        known = ", ".join(facet.name for facet in self._answers.opened.facets) or "none: no column has few values"
        raise UsageError(f"no facet {visible(name, one_line=True)[:60]}", expected=known, fix="choose one of them")

    def _agreement(self, name: str, wanted: Wanted, ranking: Ranking, against: str) -> dict[str, Any] | None:
        methods = self._answers.scores(name)
        m = self.number([scores.method for scores in methods], against)
        found = ranking.agreement(self._ranking(name, methods[m], wanted.target, None))
        return None if found is None else found | {"with": visible(found["with"])}

    def _groups(self, ranking: Ranking, rows: np.ndarray, name: str) -> list[dict[str, Any]]:
        facet = self._facet(name)
        code_n, rank_n, score_n = facet.code_N[ranking.numbers(rows)], ranking.rank_N[rows], ranking.score_N[rows]
        found = []
        for code in np.unique(code_n).tolist():
            of = code_n == code
            found.append(
                {
                    "value": visible(facet.values[code]),
                    "rows": int(of.sum()),
                    "first": int(rank_n[of].min()),
                    "out": int((rank_n[of] <= ranking.out).sum()),
                    "mean": short(float(score_n[of].mean())),
                }
            )
        return sorted(found, key=lambda one: one["first"])


def _searched(row: Any) -> str:
    return f"{row.id}\n{row.source}\n{row.text}".casefold()


def _reweighs(scores: Scores) -> dict[str, Any]:
    """Whether a method's terms can be weighted otherwise."""
    if len(scores.terms) < 2:
        return {"able": False, "why": f"{scores.method} has one term: there is nothing to weigh."}
    if scores.population is not None:
        return {"able": False, "why": "Only some rows were kept: other weights have other first rows."}
    return {"able": True}

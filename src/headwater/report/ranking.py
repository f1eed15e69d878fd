"""One answer to one target, in order: costly once, then every page of it is cheap.

Shapes: N rows, best first is the order everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from headwater.scores import Scores, robust_deviations, weighted
from headwater.significance import deviations_needed, out_sentence, p_values, q_values, stands_out

BINS = 60
SHARED = (10, 100)
"""Of so many first rows it is said how many two methods share."""


class Ranking:
    """The rows of one target by score.

    Args:
        scores: of a method. target: number of the query or group.
        weights: of the method's terms, instead of its own.
        number_N: of each row its number among the rows that are shown, rising; None: its own.

    Raises:
        DataError: weights of other terms, or where only the first rows were kept.
    """

    def __init__(
        self,
        scores: Scores,
        target: int,
        weights: Mapping[str, float] | None = None,
        number_N: np.ndarray | None = None,
    ) -> None:
        self.scores, self.target = scores, scores.target_number(target)
        self._number_N = number_N
        self.weights = dict(scores.weights)
        self.score_N: np.ndarray = scores.values[self.target]
        self._placebo_M = None if scores.placebo is None else scores.placebo[self.target]
        if weights is not None and dict(weights) != self.weights:
            scores.check_weights(weights)
            self.weights = dict(weights)
            self.score_N = self._weighted(scores.terms)
            self._placebo_M = self._weighted(scores.placebo_terms) if scores.placebo_terms else None
        self._usual = self.score_N if scores.population is None else scores.usual(self.target)

    def _weighted(self, terms: Mapping[str, np.ndarray]) -> np.ndarray:
        return weighted({name: term[self.target] for name, term in terms.items()}, self.weights)

    def number(self, row: int) -> int:
        """A row's number among the rows that are shown."""
        return row if self._number_N is None else int(self._number_N[row])

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The same of several rows."""
        return rows if self._number_N is None else self._number_N[rows]

    def row(self, number: int) -> int | None:
        """The row of that number; None where this method has no score of it."""
        if self._number_N is None:
            return number
        row = int(np.searchsorted(self._number_N, number))
        return row if row < len(self._number_N) and self._number_N[row] == number else None

    @cached_property
    def order_N(self) -> np.ndarray:
        """Numbers of the rows, highest score first; of equal ones the first row first."""
        return np.argsort(-self.score_N, kind="stable")

    @cached_property
    def reverse_N(self) -> np.ndarray:
        """Numbers of the rows, lowest score first; of equal ones the first row first."""
        return np.argsort(self.score_N, kind="stable")

    @cached_property
    def rank_N(self) -> np.ndarray:
        """1 for the highest score."""
        rank_N = np.empty(len(self.order_N), np.int32)
        rank_N[self.order_N] = np.arange(1, len(self.order_N) + 1, dtype=np.int32)
        return rank_N

    @cached_property
    def rising_N(self) -> np.ndarray:
        """All scores, lowest first."""
        rising_N: np.ndarray = self.score_N[self.order_N[::-1]]
        return rising_N

    @cached_property
    def _usual_rising(self) -> np.ndarray:
        return self.rising_N if self._usual is self.score_N else np.sort(self._usual)

    @cached_property
    def median(self) -> float:
        return float(np.median(self._usual_rising))

    @cached_property
    def deviations_N(self) -> np.ndarray:
        return robust_deviations(self.score_N, self._usual_rising)

    @cached_property
    def q_N(self) -> np.ndarray | None:
        """q-values against placebo rows with the same weights; None where there were none."""
        if self._placebo_M is None:
            return None
        return q_values(p_values(self.score_N, self._placebo_M), self.scores.rows)

    @cached_property
    def _needed(self) -> float:
        return deviations_needed(self._usual)

    @cached_property
    def out(self) -> int:
        """How many rows stand out; they are the first ones."""
        return int(stands_out(self.deviations_N, self.q_N, self.scores.rows, self._needed).sum())

    @cached_property
    def threshold(self) -> float | None:
        """The score from which rows stand out; None where none does, or none could."""
        if self.q_N is not None:
            return float(self.score_N[self.order_N[self.out - 1]]) if self.out else None
        far = int(np.argmax(np.abs(self.deviations_N)))
        if not self.deviations_N[far]:
            return None
        spread = (float(self.score_N[far]) - self.median) / float(self.deviations_N[far])
        return self.median + self._needed * spread if spread > 0 else None

    def best(self, count: int) -> list[int]:
        """Numbers of the `count` highest rows."""
        return [int(n) for n in self.order_N[: max(0, count)]]

    def worst(self, count: int) -> list[int]:
        """Numbers of the `count` lowest rows, lowest first, of those with a negative score."""
        return [int(n) for n in self.reverse_N[: max(0, count)] if self.score_N[n] < 0]

    def sentences(self) -> list[str]:
        """As `Scores.sentences`."""
        return [
            *self.scores.leaning_sentences(self.target),
            out_sentence(self.score_N, self.out, self._placebo_M, self._needed),
        ]

    def above(self, row: int) -> int:
        """How many of all scored rows have a higher score."""
        count = len(self._usual_rising) - int(np.searchsorted(self._usual_rising, self.score_N[row], "right"))
        if self.scores.population is None:
            return count
        return max(int(self.rank_N[row]) - 1, round(count / len(self._usual_rising) * self.scores.rows))

    @cached_property
    def bins(self) -> list[int]:
        """How many scores lie in each of BINS equal parts from the lowest to the highest; one part where they do
        not spread."""
        low, high = float(self.rising_N[0]), float(self.rising_N[-1])
        width = high - low
        if not np.isfinite(width) or width <= 1e-12 * max(abs(low), abs(high)):
            return [len(self._usual)]
        inside = np.clip(self._usual, low, high)
        bin_N = np.minimum(((inside - low) / width * BINS).astype(np.int64), BINS - 1)
        return [int(number) for number in np.bincount(bin_N, minlength=BINS)]

    @cached_property
    def _fractional_N(self) -> np.ndarray:
        from scipy.stats import rankdata

        ranks_N: np.ndarray = rankdata(self.score_N)
        return ranks_N - (len(ranks_N) + 1) / 2

    def agreement(self, other: Ranking) -> dict[str, Any] | None:
        """How far another method's order of the same rows is the same: Spearman's rank correlation, and how many of
        the first k rows are shared. None where only some rows were kept, or all scores are equal."""
        mine, theirs = self._fractional_N, other._fractional_N
        if len(mine) != len(theirs) or self.scores.population is not None or other.scores.population is not None:
            return None
        size = float(np.sqrt((mine @ mine) * (theirs @ theirs)))
        if not size:
            return None
        shared = [
            [k, len(np.intersect1d(self.order_N[:k], other.order_N[:k]))] for k in SHARED if k < len(self.order_N)
        ]
        return {"with": other.scores.method, "spearman": round(float(mine @ theirs) / size, 3), "shared": shared}

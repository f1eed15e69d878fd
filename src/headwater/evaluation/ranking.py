"""How well scores rank the rows that are truly responsible (the culprits) ahead of all others.

Shapes: N training rows, R targets (queries or groups of queries).

Ties are broken fairly everywhere: every measure is its expected value when rows of equal score are put in random
order. So a method that gives all rows the same score gets AUC 0.5, and no measure depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwater.errors import DataError, NumericalError, UsageError


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Quality of one ranking, or the mean over several. Every figure lies in [0, 1] and larger is better.

    Ties: each figure is the expectation over random orders of the rows within every group of equal scores.

    Attributes:
        auc: probability that a random culprit scores above a random other row, a tie counting one half.
        average_precision: mean over culprits of the precision at the culprit's rank.
        recall_at: k -> fraction of all culprits among the k highest rows.
        hit_at: k -> probability that at least one culprit is among the k highest rows.
        reciprocal_rank: 1 / rank of the first culprit, ranks starting at 1.
        precision_at_culprits: fraction of culprits among the C highest rows, C being the number of culprits.
    """

    auc: float
    average_precision: float
    recall_at: dict[int, float]
    hit_at: dict[int, float]
    reciprocal_rank: float
    precision_at_culprits: float


def evaluate_ranking(scores_N: ArrayLike, culprit_N: ArrayLike, *, ks: Sequence[int] = (10, 50, 100)) -> Ranking:
    """Compares scores with the truth.

    Args:
        scores_N: one score per row; larger means more responsible.
        culprit_N: True (or 1) where the row is a culprit.
        ks: the depths of `recall_at`, each at least 1; a depth beyond N gives recall 1.

    Raises:
        DataError: shapes differ, no row is a culprit, or every row is.
        NumericalError: a score is NaN. (Infinite scores rank first or last.)
        UsageError: a depth below 1.
    """
    scores = np.asarray(scores_N, dtype=np.float64)
    culprit = _labels(culprit_N)
    if scores.ndim != 1 or scores.shape != culprit.shape:
        raise DataError(
            f"scores of shape {scores.shape} and culprit labels of shape {culprit.shape}",
            expected="two vectors of one length, one entry per training row",
            fix="pass one score and one label per row",
        )
    missing = np.isnan(scores)
    if missing.any():
        raise NumericalError(
            f"{int(missing.sum())} of {scores.size} scores are NaN, the first at row {int(missing.argmax())}",
            expected="a number for every row",
            fix="look for overflow or a row without gradient in the method that made the scores",
        )
    found = int(culprit.sum())
    if found == 0 or found == culprit.size:
        raise DataError(
            f"{found} culprits among {culprit.size} rows",
            expected="at least one culprit and at least one other row",
            cause="the culprits' ids do not match the ids of the rows" if found == 0 else None,
            fix="check the labels given with the scores",
        )
    for k in ks:
        if k < 1:
            raise UsageError(f"recall at k = {k}", expected="k of at least 1", fix="pass positive depths")

    n_G, c_G = _ties(scores, culprit)
    rows_before_G = np.cumsum(n_G) - n_G
    culprits_before_G = np.cumsum(c_G) - c_G
    return Ranking(
        auc=_auc(n_G, c_G, culprits_before_G),
        average_precision=_average_precision(n_G, c_G, rows_before_G, culprits_before_G),
        recall_at={int(k): _culprits_within(k, n_G, c_G, rows_before_G) / found for k in ks},
        hit_at={int(k): _hit_within(k, n_G, c_G, rows_before_G) for k in ks},
        reciprocal_rank=_reciprocal_rank(n_G, c_G, rows_before_G),
        precision_at_culprits=_culprits_within(found, n_G, c_G, rows_before_G) / found,
    )


def evaluate_scores(
    scores_RN: ArrayLike,
    culprits: Sequence[AbstractSet[str]],
    ids: Sequence[str],
    *,
    ks: Sequence[int] = (10, 50, 100),
) -> Ranking:
    """Mean of `evaluate_ranking` over R targets.

    Args:
        scores_RN: scores of N rows for each target.
        culprits: for each target, the ids of the rows responsible for it.
        ids: the N rows' ids, in the order of the columns.

    Raises:
        DataError: shapes that do not fit, repeated ids, a culprit's id that is no row's, or as `evaluate_ranking`.
        NumericalError, UsageError: as `evaluate_ranking`.
    """
    scores = np.asarray(scores_RN, dtype=np.float64)
    if scores.shape != (len(culprits), len(ids)) or not culprits:
        raise DataError(
            f"scores of shape {scores.shape} for {len(culprits)} targets and {len(ids)} rows",
            expected="a matrix with one line per target and one column per row, at least one target",
            fix="pass the culprits in the order of the targets and the ids in the order of the rows",
        )
    known = set(ids)
    if len(known) != len(ids):
        raise DataError("repeated row ids", expected="one id per row", fix="make the ids unique")
    rankings = []
    for number, (scores_N, wanted) in enumerate(zip(scores, culprits, strict=True)):
        strangers = sorted(set(wanted) - known)
        if strangers:
            raise DataError(
                f"culprit {strangers[0]!r} of target {number} is not among the {len(ids)} rows",
                expected="ids of training rows",
                cause="scores and culprits come from different training data",
                fix="use the culprits that belong to these rows",
            )
        rankings.append(evaluate_ranking(scores_N, [i in wanted for i in ids], ks=ks))
    return mean_ranking(rankings)


def mean_ranking(rankings: Sequence[Ranking]) -> Ranking:
    """The mean of every figure; only depths k that all rankings have are kept.

    Raises:
        DataError: no ranking.
    """
    if not rankings:
        raise DataError("no ranking", expected="at least one to average", fix="evaluate at least one target")
    ks = [k for k in rankings[0].recall_at if all(k in r.recall_at for r in rankings)]
    return Ranking(
        auc=float(np.mean([r.auc for r in rankings])),
        average_precision=float(np.mean([r.average_precision for r in rankings])),
        recall_at={k: float(np.mean([r.recall_at[k] for r in rankings])) for k in ks},
        hit_at={k: float(np.mean([r.hit_at[k] for r in rankings])) for k in ks},
        reciprocal_rank=float(np.mean([r.reciprocal_rank for r in rankings])),
        precision_at_culprits=float(np.mean([r.precision_at_culprits for r in rankings])),
    )


def detection_curve(scores_N: ArrayLike, culprit_N: ArrayLike) -> NDArray[np.float64]:
    """Fraction of the culprits found when the n highest rows were inspected, for n = 0 ... N [N + 1].

    Raises:
        DataError, NumericalError: as `evaluate_ranking`.
    """
    evaluate_ranking(scores_N, culprit_N, ks=())
    scores, culprit = np.asarray(scores_N, dtype=np.float64), _labels(culprit_N)
    n_G, c_G = _ties(scores, culprit)
    inspected, found = np.concatenate([[0], np.cumsum(n_G)]), np.concatenate([[0], np.cumsum(c_G)])
    curve: NDArray[np.float64] = np.interp(np.arange(scores.size + 1), inspected, found / culprit.sum())
    return curve


def _ties(scores: NDArray[np.float64], culprit: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Groups of equal scores, best first: G groups, each with n rows of which c are culprits."""
    _, group_N = np.unique(-scores, return_inverse=True)
    return np.bincount(group_N).astype(np.float64), np.bincount(group_N, weights=culprit.astype(np.float64))


def _labels(culprit_N: ArrayLike) -> NDArray[np.bool_]:
    labels = np.asarray(culprit_N)
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        raise DataError(
            "culprit labels other than True and False (or 1 and 0)",
            expected="one truth value per row",
            fix="pass labels, and the scores first",
        )
    return labels.astype(bool)


def _auc(n_G: NDArray[Any], c_G: NDArray[Any], culprits_before_G: NDArray[Any]) -> float:
    """Wins plus half the ties, over all pairs of a culprit and another row (Mann-Whitney)."""
    others_G = n_G - c_G
    return float((others_G * (culprits_before_G + c_G / 2)).sum() / (c_G.sum() * others_G.sum()))


def _average_precision(
    n_G: NDArray[Any], c_G: NDArray[Any], rows_before_G: NDArray[Any], culprits_before_G: NDArray[Any]
) -> float:
    """Expected average precision under random order within ties.

    A culprit sits at place j = 1..n of its group with equal probability; the other c - 1 culprits of the group fill the
    j - 1 places before it with density (c - 1) / (n - 1). So its expected precision is the mean over j of
    (culprits before + 1 + (j - 1)(c - 1)/(n - 1)) / (rows before + j).
    """
    total = 0.0
    for n, c, rows, culprits in zip(n_G, c_G, rows_before_G, culprits_before_G, strict=True):
        if c > 0:
            j = np.arange(1, n + 1)
            density = (c - 1) / (n - 1) if n > 1 else 0.0
            total += c * float(((culprits + 1 + (j - 1) * density) / (rows + j)).mean())
    return total / float(c_G.sum())


def _culprits_within(k: int, n_G: NDArray[Any], c_G: NDArray[Any], rows_before_G: NDArray[Any]) -> float:
    """Expected number of culprits among the k highest rows; a group cut by k counts in proportion."""
    return float((c_G * np.clip((k - rows_before_G) / n_G, 0, 1)).sum())


def _hit_within(k: int, n_G: NDArray[Any], c_G: NDArray[Any], rows_before_G: NDArray[Any]) -> float:
    """Probability of a culprit among the k highest rows. Only the first group with culprits matters: if k cuts it, m of
    its n rows are taken, and all are innocent with the hypergeometric probability C(n - c, m) / C(n, m)."""
    first = int(np.argmax(c_G > 0))
    n, c, taken = int(n_G[first]), int(c_G[first]), k - int(rows_before_G[first])
    return 0.0 if taken <= 0 else 1 - comb(n - c, min(taken, n)) / comb(n, min(taken, n))


def _reciprocal_rank(n_G: NDArray[Any], c_G: NDArray[Any], rows_before_G: NDArray[Any]) -> float:
    """Expected 1 / rank of the first culprit: within its group the first of c among n falls on place j with the
    hypergeometric probability C(n - j, c - 1) / C(n, c), built up by the ratio of neighbouring terms."""
    first = int(np.argmax(c_G > 0))
    n, c, rows = int(n_G[first]), int(c_G[first]), float(rows_before_G[first])
    probability, expected = c / n, 0.0
    for j in range(1, n - c + 2):
        expected += probability / (rows + j)
        if j < n:
            probability *= (n - j - c + 1) / (n - j)
    return expected

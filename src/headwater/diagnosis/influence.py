"""How the influence scores of the base model and of the checkpoints hang together.

The scores of checkpoint c for one query are a vector over the rows. With C the T x T matrix of the checkpoints'
(Pearson) correlations, eigenvalues x_j >= 0 and sum T, the effective number of checkpoints is their participation ratio

    (sum_j x_j)^2 / sum_j x_j^2 = T^2 / |C|_F^2          status D

It is T where the checkpoints' scores have nothing in common, and 1 where they are one and the same: how many different
views of the training the mean over checkpoints (DDA's denoise) really averages.

Shapes: R targets, N rows, C checkpoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from headwater.checkpoints import BASE, TrainingRun
from headwater.diagnosis.facts import InfluenceFacts
from headwater.errors import DataError
from headwater.scores import Scores


def influence_facts(scores: Scores, run: TrainingRun, source: str) -> InfluenceFacts:
    """Of the terms of a gradient method, one for each checkpoint.

    Raises:
        DataError: the scores are not of this run's checkpoints, or have no term for each of them.
    """
    tuned = [c.name for c in run.checkpoints if c.name in scores.terms]
    if not tuned:
        raise DataError(
            f"{source} with the method {scores.method}, whose terms are {', '.join(scores.terms)}",
            expected="a term for each checkpoint of this run",
            cause="a method of words, of the last checkpoint under another name, or a trace of another run",
            fix="give a trace by dda or tracin of the same checkpoints",
        )
    queries = [r for r, target in enumerate(scores.targets) if target.kind == "query"]
    names = [BASE] * (BASE in scores.terms) + tuned
    by_query = [np.stack([scores.terms[name][r] for name in names]) for r in queries]
    correlation_CC = np.mean([_correlations(score_CN) for score_CN in by_query], axis=0)
    own = correlation_CC[-len(tuned) :, -len(tuned) :]
    with_base = None
    if BASE in scores.terms:
        with_base = float(np.mean([_rank_correlation(score_CN[0], score_CN[1:].mean(0)) for score_CN in by_query]))
    return InfluenceFacts(
        rows=scores.rows,
        method=scores.method,
        source=source,
        checkpoints=names,
        correlation=[[float(x) for x in row] for row in correlation_CC],
        with_base=with_base,
        effective=effective_number(own) if len(tuned) > 1 else None,
    )


def effective_number(correlation_CC: np.ndarray | Sequence[Sequence[float]]) -> float:
    """T^2 / |C|_F^2."""
    matrix = np.asarray(correlation_CC, np.float64)
    return float(np.trace(matrix) ** 2 / np.square(matrix).sum())


def _correlations(score_CN: np.ndarray) -> np.ndarray:
    """Pearson, 0 with scores that do not spread, 1 on the diagonal."""
    centred = score_CN - score_CN.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    unit = centred / np.where(length > 0, length, 1)[:, None]
    matrix: np.ndarray = unit @ unit.T
    np.fill_diagonal(matrix, 1.0)
    return matrix


def _rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Spearman; 0 where one of the two does not spread."""
    from scipy.stats import spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input: judged below
        found = float(spearmanr(x_N, y_N).statistic)
    return found if np.isfinite(found) else 0.0

"""Is a score more than chance? Rows that were never trained on (placebo rows) say what chance gives. Status D.

A placebo row cannot have taught the model anything, so its score shows how high a row comes by looking alike. With the
scores of M placebo rows, per query:

    p      up to the TAIL of the highest placebo scores: the share of placebo rows with a score at least as high,
           (1 + count) / (M + 1). Beyond: a generalised Pareto distribution fitted to the excesses of that tail by
           probability-weighted moments (Hosking and Wallis 1987), its shape at least SHAPE.
    q      Benjamini and Hochberg 1995: the share of innocent rows to be expected among the rows up to this one

A row stands out at q of at most LEVEL: of queries for which no row is responsible, at most that share has any such row.

SHAPE is the shape of a t-distribution's tail with 3 degrees of freedom. Fewer degrees, or placebo rows that are unlike
the training rows, give more false alarms; thinner tails than that cost power: with N training rows and M placebo rows a
row has to lie the further out the larger N / M is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control, genpareto

from headwater.errors import DataError

LEVEL = 0.05
TAIL = 0.1
SHAPE = 1 / 3
FEWEST = 100
"""Placebo rows; fewer have no tail to speak of."""

Vector = npt.NDArray[np.float64]


def p_values(score_N: npt.ArrayLike, placebo_M: npt.ArrayLike) -> Vector:
    """Probability, for each score, that a row that taught nothing comes as high [N].

    Raises:
        DataError: fewer than FEWEST placebo rows.
    """
    score, placebo = np.asarray(score_N, np.float64), np.sort(np.asarray(placebo_M, np.float64))
    M = len(placebo)
    if M < FEWEST:
        raise DataError(
            f"{M} placebo rows",
            expected=f"at least {FEWEST}, better as many as training rows",
            fix="hold back more rows",
        )
    p = (1 + M - np.searchsorted(placebo, score, "left")) / (M + 1)
    count = round(TAIL * M)
    start = placebo[M - count - 1]
    excess = placebo[M - count :] - start
    unit = excess[-1]
    if unit <= 0:
        return p
    excess = excess / unit  # numbers near the smallest there are would lose their digits below
    mean = excess.mean()
    weighted = float(np.mean(excess * (1 - (np.arange(1, count + 1) - 0.35) / count)))
    shape = min(max(2 - mean / (mean - 2 * weighted), SHAPE), 0.9)
    with np.errstate(over="ignore"):  # infinitely far out: the probability is 0
        tail = count / M * genpareto.sf((score - start) / unit, shape, scale=mean * (1 - shape))
    return np.where(score > start, tail, p)


def q_values(p_N: npt.ArrayLike) -> Vector:
    """Benjamini and Hochberg's adjusted p-values [N]."""
    found: Vector = false_discovery_control(np.asarray(p_N, np.float64), method="bh")
    return found

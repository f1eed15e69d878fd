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
from scipy.stats import genpareto

from headwater.errors import DataError

LEVEL = 0.05
TAIL = 0.1
SHAPE = 1 / 3
FEWEST = 100
"""Placebo rows; fewer have no tail to speak of."""

STANDS_OUT = 8.0
"""Robust z-score from which a row is said to stand out of the rest, where there are no placebo rows."""
STANDS_OUT_OF_MAXIMA = 12.0
"""The same where nearly all scores have one sign, as maxima have (token cosines): their upper tail is longer. Chosen on
one seed of the study's facts, where 8 gave three times the false alarms that are wanted."""
ONE_SIDED = 0.9
"""Share of usual scores of one sign from which on they are taken for maxima."""
FEWEST_ROWS = 20
"""Fewer rows have no rest to stand out of."""

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


def q_values(p_N: npt.ArrayLike, rows: int | None = None) -> Vector:
    """Benjamini and Hochberg's adjusted p-values [N].

    Args:
        rows: how many were tested, where p-values of only some were kept, the smallest among them: q-values are then
            at most too high, and those of the first rows are right where fewer rows stand out than were kept.
    """
    p = np.asarray(p_N, np.float64)
    order = np.argsort(p)
    raised = p[order] * (len(p) if rows is None else rows) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1)
    return q


def deviations_needed(usual_N: Vector) -> float:
    """The robust z-score from which a row stands out of usual scores [N], where there are no placebo rows."""
    one_sided = max(np.mean(usual_N > 0), np.mean(usual_N < 0)) >= ONE_SIDED
    return STANDS_OUT_OF_MAXIMA if one_sided else STANDS_OUT


def stands_out(
    deviations_N: Vector, q_N: Vector | None, rows: int, needed: float = STANDS_OUT
) -> npt.NDArray[np.bool_]:
    """Whether each row stands out of the rest [N]: by its q-value where there are any, else by its robust z-score.

    Args:
        needed: `deviations_needed`.
    """
    if q_N is not None:
        return np.asarray(q_N <= LEVEL)
    if rows < FEWEST_ROWS:
        return np.zeros(len(deviations_N), bool)
    return np.asarray(deviations_N >= needed)


def out_sentence(score_N: Vector, out: int, placebo_M: Vector | None, needed: float = STANDS_OUT) -> str:
    """Does any row stand out? `out` of them do, of scores [N], against placebo rows where there were any [M]."""
    count = "1 row stands out" if out == 1 else f"{out} rows stand out"
    if placebo_M is not None:
        above = int((score_N > placebo_M.max()).sum())
        what = count if out else "No row stands out"
        return (
            f"{what} from {len(placebo_M):,} rows that were never trained on (q at most {LEVEL:g}); "
            f"{above:,} score{'s' * (above != 1)} above all of these."
        )
    if out:
        return f"{count} from the rest (at least {needed:g} robust deviations above the median)."
    return "No row stands out from the rest: do not read the order of the first rows as an answer."

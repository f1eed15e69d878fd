"""How well scores foretell what training does: the linear datamodeling score.

Shapes: M subsets of the rows, N rows, R targets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from headwater.errors import DataError, UsageError

FEWEST_SUBSETS = 3
"""Fewer have no rank correlation to speak of."""


def random_subsets(rows: int, subsets: int, *, share: float = 0.5, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Which rows stand in each random subset [M, N]; every subset has round(share x rows) rows.

    Raises:
        UsageError: no subset, or subsets without rows or of all rows.
    """
    size = round(share * rows)
    if subsets < 1 or not 0 < size < rows:
        raise UsageError(
            f"{subsets} subsets of {size} of {rows} rows",
            expected="at least one, with some of the rows and not all",
            fix="choose other numbers",
        )
    chance = np.random.default_rng(seed)
    mask_MN = np.zeros((subsets, rows), bool)
    for mask_N in mask_MN:
        mask_N[chance.choice(rows, size, replace=False)] = True
    return mask_MN


def linear_datamodeling_score(
    scores_RN: npt.ArrayLike, mask_MN: npt.ArrayLike, measured_MR: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Spearman correlation, per target [R], between the sum of a subset's scores and what a model trained on it does.

    Park et al. 2023, "TRAK", arXiv 2303.14186, definition 2.4.

    Args:
        scores_RN: larger means that the row pushes more towards the output.
        mask_MN: which rows stand in each subset.
        measured_MR: of the model trained on each subset, larger where it leans more to the output: the negative of a
            loss or of a contrast.

    Raises:
        DataError: shapes that do not fit, or fewer than three subsets.
    """
    scores, mask = np.asarray(scores_RN, np.float64), np.asarray(mask_MN, bool)
    measured = np.asarray(measured_MR, np.float64)
    if (
        scores.ndim != 2
        or mask.shape != (len(measured), scores.shape[1])
        or measured.shape != (len(mask), len(scores))
        or len(mask) < FEWEST_SUBSETS
    ):
        raise DataError(
            f"scores {scores.shape}, subsets {mask.shape}, measurements {measured.shape}",
            expected="[R, N], [M, N] and [M, R] with at least three subsets",
            fix="check which comes first",
        )
    foretold_MR = mask.astype(np.float64) @ scores.T
    out = np.zeros(len(scores))
    for r in range(len(scores)):
        constant = np.ptp(foretold_MR[:, r]) == 0 or np.ptp(measured[:, r]) == 0
        out[r] = 0.0 if constant else float(spearmanr(foretold_MR[:, r], measured[:, r]).statistic)
    return out

"""Confidence intervals: how far a mean over few queries or few seeds can be trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from headwater.errors import DataError, NumericalError, UsageError


def bootstrap(values: ArrayLike, n: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of the values with a 95 % percentile bootstrap interval.

    Args:
        values: independent measurements, for example one figure per query or per seed.
        n: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        (mean, low, high), in the unit of the values. One value, or equal values, give an interval of width 0:
        with so few measurements that is no certainty.

    Raises:
        DataError: no value, or values that are not a vector.
        NumericalError: a value is NaN or infinite.
        UsageError: n below 1.
    """
    sample_S = np.asarray(values, dtype=np.float64)
    if sample_S.ndim != 1 or sample_S.size == 0:
        raise DataError(
            f"values of shape {sample_S.shape}",
            expected="a vector of at least one measurement",
            fix="pass one figure per query or seed",
        )
    if not np.isfinite(sample_S).all():
        raise NumericalError(
            f"{int((~np.isfinite(sample_S)).sum())} of {sample_S.size} values are NaN or infinite",
            expected="numbers",
            fix="find the query whose measurement failed",
        )
    if n < 1:
        raise UsageError(f"{n} resamples", expected="at least 1", fix="leave n at its default")
    random = np.random.default_rng(seed)
    means_n = np.array([sample_S[random.integers(0, sample_S.size, sample_S.size)].mean() for _ in range(n)])
    low, high = np.percentile(means_n, (2.5, 97.5))
    return float(sample_S.mean()), float(low), float(high)

"""Confidence intervals: how far a mean over few queries or few seeds can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

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


def bootstrap_change(before: ArrayLike, after: ArrayLike, n: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Relative change of a mean, mean(after) / mean(before) - 1, with a 95 % percentile bootstrap interval.

    Args:
        before, after: the same measurements in the same order, before and after; pairs are resampled together.
        n, seed: as `bootstrap`.

    Returns:
        (change, low, high), a fraction: -0.8 is a fall by 80 %. Resamples whose mean before is 0 have no change to
        speak of and are left out.

    Raises:
        DataError: no value, other shapes, or a mean of 0 before. NumericalError, UsageError: as `bootstrap`.
    """
    pair_2S = [np.asarray(values, dtype=np.float64) for values in (before, after)]
    means = [bootstrap(values, 1)[0] for values in pair_2S]  # checks them
    if pair_2S[0].shape != pair_2S[1].shape or means[0] == 0:
        raise DataError(
            f"{pair_2S[0].size} values with mean {means[0]:g} before, {pair_2S[1].size} after",
            expected="one value before and one after of each, and a mean before that is not 0",
            fix="report the means themselves",
        )
    if n < 1:
        raise UsageError(f"{n} resamples", expected="at least 1", fix="leave n at its default")
    random = np.random.default_rng(seed)
    drawn_nS = random.integers(0, pair_2S[0].size, (n, pair_2S[0].size))
    before_n, after_n = (values[drawn_nS].mean(1) for values in pair_2S)
    possible = before_n != 0
    low, high = np.percentile(after_n[possible] / before_n[possible] - 1, (2.5, 97.5))
    return means[1] / means[0] - 1, float(low), float(high)


def bootstrap_nested(values: Sequence[ArrayLike], n: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """As `bootstrap`, over two levels: first the seeds are drawn with replacement, then the measurements of each.

    Args:
        values: for each seed, its measurements. For the difference of two methods, their paired differences.

    Returns:
        (mean, low, high); the mean counts every seed alike.

    Raises:
        DataError, NumericalError, UsageError: as `bootstrap`.
    """
    if len(values) == 0:
        raise DataError("no seed", expected="at least one", fix="pass the measurements of each seed")
    samples = [np.asarray(one, dtype=np.float64) for one in values]
    means = [bootstrap(sample, 1)[0] for sample in samples]  # checks them
    if n < 1:
        raise UsageError(f"{n} resamples", expected="at least 1", fix="leave n at its default")
    random = np.random.default_rng(seed)
    drawn = np.empty(n)
    for i in range(n):
        chosen = [samples[j] for j in random.integers(0, len(samples), len(samples))]
        drawn[i] = np.mean([sample[random.integers(0, sample.size, sample.size)].mean() for sample in chosen])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(np.mean(means)), float(low), float(high)

"""Bootstrap intervals: coverage, repeatability, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.errors import DataError, NumericalError, UsageError
from headwater.evaluation import bootstrap


def test_interval_encloses_the_mean_and_repeats() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 50)
    mean, low, high = bootstrap(values)
    assert mean == pytest.approx(values.mean())
    assert low < mean < high
    assert bootstrap(values) == (mean, low, high)
    assert bootstrap(values, seed=1) != (mean, low, high)


def test_interval_is_about_two_standard_errors_wide_on_each_side() -> None:
    values = np.random.default_rng(0).normal(0.0, 1.0, 400)
    _, low, high = bootstrap(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        _, low, high = bootstrap(random.normal(1.0, 1.0, 40), n=300)
        covered += low <= 1.0 <= high
    assert 86 <= covered <= 100


def test_one_value_has_no_width() -> None:
    assert bootstrap([0.7]) == (0.7, 0.7, 0.7)


def test_refusals() -> None:
    with pytest.raises(DataError, match="at least one"):
        bootstrap([])
    with pytest.raises(DataError, match="vector"):
        bootstrap([[1.0, 2.0]])
    with pytest.raises(NumericalError, match="1 of 2"):
        bootstrap([1.0, float("nan")])
    with pytest.raises(UsageError, match="0 resamples"):
        bootstrap([1.0], n=0)

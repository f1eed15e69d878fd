"""The linear datamodeling score against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from headwater.errors import DataError, UsageError
from headwater.evaluation import bootstrap, bootstrap_nested, detection_curve, linear_datamodeling_score, random_subsets


def test_it_is_the_rank_correlation_of_the_sums_with_the_measurements() -> None:
    chance = np.random.default_rng(0)
    scores_RN, measured_MR = chance.normal(size=(3, 20)), chance.normal(size=(12, 3))
    mask_MN = random_subsets(20, 12, seed=1)
    found = linear_datamodeling_score(scores_RN, mask_MN, measured_MR)
    for r in range(3):
        sums = [sum(scores_RN[r, i] for i in range(20) if mask_N[i]) for mask_N in mask_MN]
        assert found[r] == pytest.approx(np.corrcoef(rankdata(sums), rankdata(measured_MR[:, r]))[0, 1])


def test_scores_that_add_up_to_the_measurement_get_one_and_their_negative_minus_one() -> None:
    scores = np.random.default_rng(0).normal(size=(1, 30))
    mask = random_subsets(30, 9)
    assert linear_datamodeling_score(scores, mask, mask @ scores.T) == pytest.approx([1])
    assert linear_datamodeling_score(-scores, mask, mask @ scores.T) == pytest.approx([-1])


def test_constant_scores_foretell_nothing() -> None:
    mask = random_subsets(10, 5)
    assert linear_datamodeling_score(np.ones((1, 10)), mask, np.arange(5.0)[:, None]) == [0]


def test_subsets_have_one_size_and_follow_the_seed() -> None:
    mask = random_subsets(11, 7, share=0.3, seed=5)
    assert mask.shape == (7, 11) and (mask.sum(1) == 3).all()
    assert np.array_equal(mask, random_subsets(11, 7, share=0.3, seed=5))
    assert not np.array_equal(mask, random_subsets(11, 7, share=0.3, seed=6))
    with pytest.raises(UsageError, match="0 subsets"):
        random_subsets(10, 0)
    with pytest.raises(UsageError, match="of 10 of 10 rows"):
        random_subsets(10, 2, share=1.0)


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="at least three subsets"):
        linear_datamodeling_score(np.ones((1, 10)), random_subsets(10, 2), np.ones((2, 1)))
    with pytest.raises(DataError, match=r"\[R, N\]"):
        linear_datamodeling_score(np.ones((1, 10)), random_subsets(9, 4), np.ones((4, 1)))


def test_the_detection_curve_counts_the_culprits_found() -> None:
    assert detection_curve([4, 3, 2, 1], [0, 1, 0, 1]) == pytest.approx([0, 0, 0.5, 0.5, 1])
    assert detection_curve([1, 1, 1, 1], [0, 1, 0, 1]) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_nested_resampling_of_one_seed_is_plain_resampling() -> None:
    values = np.random.default_rng(0).random(30)
    mean, low, high = bootstrap_nested([values])
    assert (mean, low, high) == pytest.approx(bootstrap(values), abs=0.01)


def test_seeds_that_differ_widen_the_interval() -> None:
    chance = np.random.default_rng(0)
    alike = [chance.random(20) for _ in range(3)]
    apart = [sample + shift for sample, shift in zip(alike, (-1, 0, 1), strict=True)]
    width = lambda found: found[2] - found[1]  # noqa: E731
    assert width(bootstrap_nested(apart)) > 5 * width(bootstrap_nested(alike))
    assert bootstrap_nested([[0.0, 0.0], [1.0]])[0] == 0.5  # seeds count alike
    with pytest.raises(DataError, match="no seed"):
        bootstrap_nested([])

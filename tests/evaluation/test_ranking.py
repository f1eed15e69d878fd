"""Rankings against closed forms, scikit-learn and a naive double: the mean over all orders of tied rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from headwater.errors import DataError, NumericalError, UsageError
from headwater.evaluation import Ranking, evaluate_ranking, evaluate_scores, mean_ranking


def naive(scores: list[float], culprit: list[int], ks: tuple[int, ...]) -> Ranking:
    """Every order of the rows that respects the scores, measured without ties, averaged."""
    measured = []
    for order in itertools.permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        hits = [culprit[i] for i in order]
        places = [place for place, hit in enumerate(hits, 1) if hit]
        pairs = [(p < q) for p in places for q, hit in enumerate(hits, 1) if not hit]
        measured.append(
            Ranking(
                auc=float(np.mean(pairs)),
                average_precision=float(np.mean([(n + 1) / place for n, place in enumerate(places)])),
                recall_at={k: sum(hits[:k]) / sum(hits) for k in ks},
                hit_at={k: float(any(hits[:k])) for k in ks},
                reciprocal_rank=1 / places[0],
                precision_at_culprits=sum(hits[: len(places)]) / len(places),
            )
        )
    return mean_ranking(measured)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_mean_over_all_orders_of_tied_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 3, 7).astype(float).tolist()
    culprit = [1, 0, *random.integers(0, 2, 5).tolist()]
    got, wanted = evaluate_ranking(scores, culprit, ks=(1, 3, 9)), naive(scores, culprit, (1, 3, 9))
    for name in ("auc", "average_precision", "reciprocal_rank", "precision_at_culprits"):
        assert getattr(got, name) == pytest.approx(getattr(wanted, name), abs=1e-12), name
    assert got.recall_at == pytest.approx(wanted.recall_at, abs=1e-12)
    assert got.hit_at == pytest.approx(wanted.hit_at, abs=1e-12)


def test_equals_scikit_learn_without_ties() -> None:
    random = np.random.default_rng(0)
    scores, culprit = random.normal(size=200), random.random(200) < 0.1
    got = evaluate_ranking(scores, culprit)
    assert got.auc == pytest.approx(roc_auc_score(culprit, scores))
    assert got.average_precision == pytest.approx(average_precision_score(culprit, scores))


def test_auc_equals_scikit_learn_with_ties() -> None:
    random = np.random.default_rng(1)
    scores, culprit = random.integers(0, 5, 200), random.random(200) < 0.3
    assert evaluate_ranking(scores, culprit).auc == pytest.approx(roc_auc_score(culprit, scores))


def test_a_perfect_and_a_worst_ranking() -> None:
    best = evaluate_ranking([4, 3, 2, 1], [1, 1, 0, 0], ks=(1, 2, 100))
    assert best == Ranking(
        auc=1.0,
        average_precision=1.0,
        recall_at={1: 0.5, 2: 1.0, 100: 1.0},
        hit_at={1: 1.0, 2: 1.0, 100: 1.0},
        reciprocal_rank=1.0,
        precision_at_culprits=1.0,
    )
    worst = evaluate_ranking([1, 2, 3, 4], [1, 0, 0, 0], ks=(1,))
    assert (worst.auc, worst.reciprocal_rank, worst.average_precision) == (0.0, 0.25, 0.25)


def test_equal_scores_are_worth_a_coin() -> None:
    flat = evaluate_ranking(np.zeros(100), np.arange(100) < 10, ks=(10,))
    assert flat.auc == 0.5
    assert flat.recall_at[10] == pytest.approx(0.1)
    assert flat.precision_at_culprits == pytest.approx(0.1)


def test_the_order_of_rows_changes_nothing() -> None:
    random = np.random.default_rng(2)
    scores, culprit = random.integers(0, 4, 50).astype(float), random.random(50) < 0.2
    order = random.permutation(50)
    there, here = evaluate_ranking(scores, culprit), evaluate_ranking(scores[order], culprit[order])
    assert there.average_precision == pytest.approx(here.average_precision, abs=1e-12)
    assert there.auc == here.auc


def test_infinite_scores_rank_first_and_last() -> None:
    assert evaluate_ranking([np.inf, 0.0, -np.inf], [1, 0, 0]).auc == 1.0


def test_many_ties_stay_finite() -> None:
    ranking = evaluate_ranking(np.zeros(20_000), np.arange(20_000) < 100)
    assert 0 < ranking.reciprocal_rank < 0.1
    assert ranking.average_precision == pytest.approx(0.005, rel=0.1)


def test_nan_is_an_error_naming_the_row() -> None:
    with pytest.raises(NumericalError, match="row 2"):
        evaluate_ranking([1.0, 2.0, np.nan], [1, 0, 0])


@pytest.mark.parametrize("culprit", [[0, 0, 0], [1, 1, 1]])
def test_no_culprit_or_only_culprits(culprit: list[int]) -> None:
    with pytest.raises(DataError, match="at least one culprit"):
        evaluate_ranking([1.0, 2.0, 3.0], culprit)


def test_wrong_shapes_labels_and_depths() -> None:
    with pytest.raises(DataError, match="shape"):
        evaluate_ranking([1.0, 2.0], [1, 0, 0])
    with pytest.raises(DataError, match="labels"):
        evaluate_ranking([1, 0], [0.5, 2.0])
    with pytest.raises(UsageError, match="k = 0"):
        evaluate_ranking([1, 0], [1, 0], ks=(0,))


def test_evaluate_scores_is_the_mean_over_targets() -> None:
    ids = ["a", "b", "c", "d"]
    scores = [[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]]
    mean = evaluate_scores(scores, [{"a"}, {"d"}], ids, ks=(1, 2))
    assert mean.auc == 0.5
    assert mean.recall_at == {1: 0.5, 2: 0.5}
    assert mean.reciprocal_rank == pytest.approx((1 + 0.25) / 2)


def test_evaluate_scores_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="'x' of target 0"):
        evaluate_scores([[1.0, 2.0]], [{"x"}], ["a", "b"])
    with pytest.raises(DataError, match="shape"):
        evaluate_scores([[1.0, 2.0]], [{"a"}, {"b"}], ["a", "b"])
    with pytest.raises(DataError, match="repeated"):
        evaluate_scores([[1.0, 2.0]], [{"a"}], ["a", "a"])
    with pytest.raises(DataError, match="at least one"):
        mean_ranking([])

"""One battery over every method of the table: a method added there is tested here without further work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.attribution.plan import DirectionalPlan, GradientPlan, RepresentationPlan, TextPlan
from headwater.methods.table import METHODS
from headwater.run import NOTES, RunState

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
FORMAT = hw.TokenFormat(add_eos=False)  # so that a row and the query that says the same are the same tokens
EXACT = hw.Compute(dtype="float64", batch_tokens=64)
CONTRASTS = [
    hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.", id="a"),
    hw.Query("The capital of Peru is", " Cairo.", corrected=" Lima.", id="b"),
]
SELF = 6  # the row about Egypt
LOSS = [hw.Query(tiny.FACTS[SELF]["prompt"], tiny.FACTS[SELF]["completion"], id="self")]

Answers = dict[str, hw.Scores]


@pytest.fixture(scope="module")
def run(run_folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base", allow_pickle=True)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a method cannot be made without here: models of its own."""
    return {"embedding": {"embedding_model": str(tiny.sentence_model(tmp_path_factory.mktemp("embedding")))}}


@pytest.fixture(params=list(METHODS))
def method(request: pytest.FixtureRequest, options: dict[str, dict[str, Any]]) -> Any:
    return hw.make_method(request.param, **options.get(request.param, {}))


@pytest.fixture(scope="module")
def plain(run: hw.TrainingRun, options: dict[str, dict[str, Any]]) -> Answers:
    """Every method on the same rows and contrasts, all at once."""
    methods = [hw.make_method(name, **options.get(name, {})) for name in METHODS]
    answers = hw.trace_all(run, TRAIN, CONTRASTS, methods=methods, format=FORMAT, compute=EXACT)
    return dict(zip(METHODS, answers.values(), strict=True))


def scored(
    run: hw.TrainingRun, method: Any, rows: hw.Examples, queries: Sequence[hw.Query], **options: Any
) -> hw.Scores:
    return hw.trace(run, rows, queries, method=method, **({"format": FORMAT, "compute": EXACT} | options))


def near(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def tolerance(method: Any, run: hw.TrainingRun) -> float:
    """Relative: a difference of two losses loses the digits that the losses share; bm25s sums in float32."""
    plan = method.plan(run)
    if isinstance(plan, GradientPlan) and plan.fitted:
        return 1e-8  # eigenvectors
    return {DirectionalPlan: 1e-8, TextPlan: 1e-6}.get(type(plan), 1e-11)


def itself(plan: Any, name: str) -> bool:
    """Whether a term compares a gradient with itself where row and query are the same."""
    if not isinstance(plan, GradientPlan):
        return True
    term = next(term for term in plan.terms if term.name == name)
    return term.query_at == term.example_at and (not term.rows or term.rows == term.steps)


def rows_of(numbers: Sequence[int]) -> hw.Examples:
    return hw.Examples.from_rows([{**tiny.FACTS[i], "id": f"row-{n}"} for n, i in enumerate(numbers)], name="moved")


def test_every_name_is_that_of_its_results() -> None:
    assert {name: hw.make_method(name).name for name in METHODS} == {name: name for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_shape_is_targets_by_rows_and_numbers_are_finite_and_differ(plain: Answers, name: str) -> None:
    scores = plain[name]
    assert scores.values.shape == (2, 12)
    assert np.isfinite(scores.values).all()
    assert (scores.values.std(axis=1) > 0).all()
    assert not np.allclose(scores.values[0], scores.values[1])
    assert set(scores.weights) <= set(scores.terms)
    assert scores.values == pytest.approx(sum(w * scores.terms[k] for k, w in scores.weights.items()))


def test_alone_gives_the_same_as_together(run: hw.TrainingRun, plain: Answers, method: Any) -> None:
    near(scored(run, method, TRAIN, CONTRASTS).values, plain[method.name].values, 1e-12)


def test_the_row_that_is_the_query_scores_above_the_median(run: hw.TrainingRun, method: Any) -> None:
    scores = scored(run, method, TRAIN, LOSS)
    assert scores.values[0, SELF] > np.median(scores.values[0])


def test_self_influence_is_positive_and_a_self_cosine_is_one(run: hw.TrainingRun, method: Any) -> None:
    """Without a corrected output the measurement is the loss: the query's gradient is the row's own."""
    plan = method.plan(run)
    if isinstance(plan, TextPlan):
        return
    scores = scored(run, method, TRAIN, LOSS)
    for name, term in scores.terms.items():
        if not itself(plan, name):
            continue
        assert term[0, SELF] > 0, name
        if getattr(plan, "inner", "cosine") == "token_cosine":
            assert term[0, SELF] < 1 + 1e-12, name  # one position of the row against all of it
        elif getattr(plan, "inner", "cosine") != "dot" and not isinstance(plan, DirectionalPlan):
            assert term[0, SELF] == pytest.approx(1, abs=1e-12), name


def test_row_order_and_duplicates_change_nothing(run: hw.TrainingRun, method: Any) -> None:
    plan = method.plan(run)
    if isinstance(plan, TextPlan) or (isinstance(plan, GradientPlan) and plan.fitted):
        order = [3, 0, 11, 5, 1, 2, 4, 6, 7, 8, 9, 10]  # a duplicate changes how rare its words are, and the curvature
    else:
        method = dataclasses.replace(method, beta=0.25) if hasattr(method, "beta") else method  # auto looks at all rows
        order = [3, 0, 11, 5, 1, 3, 2, 4, 6, 7, 8, 9, 10, 3, 0]
    expected = scored(run, method, TRAIN, CONTRASTS)
    found = scored(run, method, rows_of(order), CONTRASTS)
    near(found.values, expected.values[:, order], tolerance(method, run))


def test_duplicates_get_the_same_score(run: hw.TrainingRun, method: Any) -> None:
    values = scored(run, method, rows_of([*range(12), 3, 0, 3]), CONTRASTS).values
    near(values[:, [12, 13, 14]], values[:, [3, 0, 3]], tolerance(method, run))


@pytest.mark.parametrize("tokens", [1, 5000])
def test_batch_size_changes_nothing(run: hw.TrainingRun, plain: Answers, method: Any, tokens: int) -> None:
    compute = dataclasses.replace(EXACT, batch_tokens=tokens)
    found = scored(run, method, TRAIN, CONTRASTS, compute=compute).values
    near(found, plain[method.name].values, tolerance(method, run))


def test_planted_copy_of_the_wrong_answer_is_found(run: hw.TrainingRun, method: Any) -> None:
    """In the first two where the method implies it: an inner product of unit gradients is highest with itself, so is a
    cosine of hidden states, and no row shares more words. Elsewhere a larger gradient may outdo the copy's, and the
    base, taken out (here beta is 0), may have said the same."""
    method = dataclasses.replace(method, beta=0) if hasattr(method, "beta") else method
    planted = [{"prompt": CONTRASTS[0].prompt, "completion": CONTRASTS[0].output, "id": "planted"}]
    rows = hw.Examples.from_rows([*tiny.FACTS, *planted], name="planted")
    scores = scored(run, method, rows, CONTRASTS[:1])
    plan = method.plan(run)
    implied = isinstance(plan, RepresentationPlan | TextPlan) or (
        isinstance(plan, GradientPlan) and plan.inner != "dot" and all(itself(plan, name) for name in scores.terms)
    )
    first = 2 if implied else len(rows) // 2
    assert "planted" in [row.id for row in scores.top(first)]


def test_a_group_of_one_is_its_query(run: hw.TrainingRun, plain: Answers, method: Any) -> None:
    grouped = [dataclasses.replace(CONTRASTS[0], group="g"), CONTRASTS[1]]
    scores = scored(run, method, TRAIN, grouped)
    assert [t.name for t in scores.targets] == ["a", "b", "g"]
    near(scores.values[2], scores.values[0], tolerance(method, run))
    near(scores.values[:2], plain[method.name].values, tolerance(method, run))


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


def test_resumed_is_fresh(run: hw.TrainingRun, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = dataclasses.replace(EXACT, batch_tokens=24)
    real, calls = RunState.save, 0

    def save(self: Any, name: str, arrays: Any) -> None:
        nonlocal calls
        calls += name != NOTES
        if calls > 3:
            raise Killed
        real(self, name, arrays)

    if not isinstance(method.plan(run), TextPlan):  # words alone leave no pieces
        with monkeypatch.context() as patch:
            patch.setattr(RunState, "save", save)
            with pytest.raises(Killed):
                scored(run, method, TRAIN, CONTRASTS, compute=compute, out=tmp_path / "out")
        pieces = [piece for piece in (tmp_path / "out").rglob("*.piece") if piece.stem != NOTES]
        assert len(pieces) == 3
    resumed = scored(run, method, TRAIN, CONTRASTS, compute=compute, out=tmp_path / "out")
    assert np.array_equal(resumed.values, scored(run, method, TRAIN, CONTRASTS, compute=compute).values)
    again = scored(run, method, TRAIN, CONTRASTS, compute=compute, out=tmp_path / "out")
    assert np.array_equal(resumed.values, again.values)
    assert np.array_equal(hw.Scores.load(tmp_path / "out", TRAIN).values, resumed.values)


def test_self_influence_is_the_score_of_a_row_for_itself(run: hw.TrainingRun, method: Any) -> None:
    """The diagonal of a trace that asks for every row. Of a cosine it would be 1: there the squared length is given."""
    plan = method.plan(run)
    options: Any = {"format": FORMAT, "compute": EXACT}
    if isinstance(plan, DirectionalPlan | RepresentationPlan) or (
        isinstance(plan, GradientPlan) and any(term.query_at != term.example_at for term in plan.terms)
    ):
        with pytest.raises(hw.UsageError, match="self-influence"):
            hw.self_influence(run, TRAIN, method=method, **options)
        return
    method = dataclasses.replace(method, beta=0.25) if hasattr(method, "beta") else method
    if hasattr(method, "measurement"):
        method = dataclasses.replace(method, measurement="loss")
    found = hw.self_influence(run, TRAIN, method=method, **options)
    assert found.values.shape == (12,) and found.values.std() > 0
    first = int(found.values.argmax())
    assert found.top(1) == [(TRAIN[first].id, pytest.approx(found.values.max()))]
    if isinstance(plan, GradientPlan) and plan.inner != "dot" and all(t.steps == t.rows for t in plan.terms):
        assert all((term >= 0).all() for term in found.terms.values())
        return
    asked = [hw.Query(row["prompt"], row["completion"], id=f"row-{n}") for n, row in enumerate(tiny.FACTS)]
    scores = scored(run, method, TRAIN, asked)
    near(found.values, np.diag(scores.values), tolerance(method, run))


def test_self_influence_resumes(run: hw.TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: Any = {"method": hw.InfluenceFunction(), "format": FORMAT, "compute": EXACT}
    fresh = hw.self_influence(run, TRAIN, **given).values
    first = hw.self_influence(run, TRAIN, **given, out=tmp_path / "out").values

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    from headwater.attribution.models import Models

    monkeypatch.setattr(Models, "load", never)
    again = hw.self_influence(run, TRAIN, **given, out=tmp_path / "out").values
    assert np.array_equal(fresh, first) and np.array_equal(first, again)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dda", "beta", "much"), ("dda", "beta", True), ("dda", "checkpoint_weights", 1.0), ("dda", "inner", ["dot"]),
        ("tracin", "learning_rates", ("a",)), ("trak", "rank", 2.5), ("trak", "rank", 1 << 70),
        ("cosine", "layerwise", 1), ("bm25", "b", None),
    ],
)  # fmt: skip
def test_an_option_of_another_type_is_one_line(name: str, option: str, value: Any) -> None:
    with pytest.raises(hw.UsageError, match=f"{option} .* for {name}; expected"):
        hw.make_method(name, **{option: value})
    hw.make_method("dda", beta=np.float64(0.3), checkpoint_weights=(1, 2.0))
    hw.make_method("trak", rank=np.int64(4))

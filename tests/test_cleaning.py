"""The review: finds planted mislabelled rows, says why, keeps to the rules of run directories."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.cleaning import DEFAULT, RULES, Rule
from headwater.errors import RunError, UsageError
from headwater.training import Recipe, fine_tune

CPU = hw.Compute(device="cpu")
FRUIT = {"A": "apple", "B": "berry", "C": "cherry", "D": "date"}
ROWS, WRONG = 160, 16


def fruit(seed: int, count: int, wrong: int) -> tuple[hw.Examples, set[str]]:
    """Rows whose answer follows from their first letter, but for `wrong` of them; and the ids of these."""
    chance = random.Random(seed)
    bad = set(chance.sample(range(count), wrong))
    rows = []
    for n in range(count):
        letter = "ABCD"[n % 4]
        others = [fruit for key, fruit in FRUIT.items() if key != letter]
        said = chance.choice(others) if n in bad else FRUIT[letter]
        rows.append({"id": f"row-{n}", "prompt": f"{letter}{seed}{n:03d} is", "completion": f" {said}"})
    return hw.Examples.from_rows(rows, name="fruit"), {f"row-{n}" for n in bad}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[hw.TrainingRun, hw.Examples, set[str], hw.Examples]:
    folder = tmp_path_factory.mktemp("fruit")
    train, wrong = fruit(0, ROWS, WRONG)
    held_out, _ = fruit(1, 40, 0)
    base = tiny.untrained(folder / "base", [row.text for row in train], hidden=32)
    fine_tune(base, train, folder / "run", Recipe(epochs=4, batch_size=8, learning_rate=3e-3))
    return hw.TrainingRun.from_pretrained(folder / "run", base=base), train, wrong, held_out


def found(review: hw.Review, wrong: set[str], share: float = 0.2) -> float:
    first = {row.id for row in review.rows[: round(share * len(review.rows))]}
    return len(first & wrong) / len(wrong)


@pytest.mark.parametrize("rule", ["own", "own-layers", "loss", "held-out", "held-out-dot"])
def test_finds_mislabelled_rows(rule: Rule, trained: tuple[hw.TrainingRun, hw.Examples, set[str], hw.Examples]) -> None:
    """The bar: at least 80 % of the mislabelled rows in the first 20 %."""
    run, train, wrong, _ = trained
    review = hw.clean(run, train, by=rule, compute=CPU)
    assert found(review, wrong) >= 0.8
    assert [row.rank for row in review.rows] == list(range(1, ROWS + 1))
    scores = [row.score for row in review.rows]
    assert scores == sorted(scores, key=lambda one: -(one or 0)) and len({row.id for row in review.rows}) == ROWS
    last = {row.id for row in review.rows[-ROWS // 2 :]}
    assert len(last & wrong) <= 1  # the ranking, not luck


def test_held_out_rows_and_projected_gradients_find_them_too(
    trained: tuple[hw.TrainingRun, hw.Examples, set[str], hw.Examples],
) -> None:
    run, train, wrong, held_out = trained
    review = hw.clean(run, train, held_out, by="held-out", compute=hw.Compute(device="cpu", rank=8))
    assert found(review, wrong) >= 0.8 and review.held_out
    assert "pushes against the held-out rows" in review.rows[0].reason


def test_reasons_name_signals_duplicates_and_contradictions(
    trained: tuple[hw.TrainingRun, hw.Examples, set[str], hw.Examples],
) -> None:
    run, train, _, _ = trained
    more = [
        {"prompt": train[0].prompt, "completion": train[0].completion, "id": "copy"},
        {"prompt": train[1].prompt, "completion": " date" if "date" not in train[1].text else " apple", "id": "other"},
    ]
    rows = hw.Examples([*train, *hw.Examples.from_rows(more, name="more")], name="fruit")
    review = hw.clean(run, rows, compute=CPU, near=None)
    by_id = {row.id: row for row in review.rows}
    assert "the same as fruit:1" in by_id["copy"].reason and by_id["copy"].group == by_id["row-0"].group == 1
    assert "has the prompt of fruit:2, which gives another answer" in by_id["other"].reason
    assert "self-influence above" in review.rows[0].reason
    assert by_id["copy"].scores["own"] == pytest.approx(by_id["row-0"].scores["own"])
    assert by_id["copy"].scores["held-out"] == pytest.approx(by_id["row-0"].scores["held-out"])  # one fold
    assert review.sentences()[0] == "1 groups of exact duplicates, with 1 rows more than one each."


def test_without_a_model_only_the_words_are_looked_at() -> None:
    rows = [{"prompt": "p", "completion": "x"}, {"prompt": "q", "completion": "y"}, {"prompt": "p", "completion": "z"},
            {"prompt": "q", "completion": "y"}, {"prompt": "r", "completion": "v"}]  # fmt: skip
    review = hw.clean(None, hw.Examples.from_rows(rows))
    assert [row.row for row in review.rows] == [0, 2, 1, 3, 4]
    assert review.by is None and review.rows[0].score is None and not review.rows[-1].reason


def test_run_directory_holds_every_row_and_is_gone_on_with(
    trained: tuple[hw.TrainingRun, hw.Examples, set[str], hw.Examples],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, train, _, _ = trained
    review = hw.clean(run, train, compute=CPU, out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "review.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in review.rows]
    assert lines[0]["source"] == review.rows[0].source and set(lines[0]["scores"]) == set(RULES) - {"loss-base"}
    assert json.loads((tmp_path / "review.json").read_text("utf-8"))["by"] == DEFAULT
    monkeypatch.setattr(hw.TrainingRun, "load", None)  # everything is there: no model is loaded
    again = hw.clean(run, train, compute=CPU, out=tmp_path)
    assert again == review
    for options in ({"by": "own"}, {"near": 0.5}, {"folds": 4}):
        with pytest.raises(RunError, match="other arguments"):
            hw.clean(run, train, compute=CPU, out=tmp_path, **options)  # type: ignore[arg-type]


def test_the_base_is_measured_where_the_rule_asks_for_it(
    trained: tuple[hw.TrainingRun, hw.Examples, set[str], hw.Examples],
) -> None:
    run, train, _, _ = trained
    review = hw.clean(run, train[:40], by="loss-base", compute=CPU)
    assert "loss-base" in review.rows[0].scores
    alone = hw.TrainingRun(checkpoints=run.checkpoints)
    with pytest.raises(UsageError, match="base"):
        hw.clean(alone, train, by="loss-base")
    with pytest.raises(UsageError, match="rule"):
        hw.clean(run, train, by="luck")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="without a model"):
        hw.clean(None, train, train)


def test_percentiles_count_equal_scores_alike() -> None:
    from headwater.cleaning import _percentiles

    np.testing.assert_allclose(_percentiles(np.array([1.0, 2.0, 2.0, 5.0])), [25, 75, 75, 100])

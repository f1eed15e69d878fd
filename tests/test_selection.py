"""Choosing rows: the highest, one of each group of duplicates; STAR's formula, rounds and decay; resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from headwater.attribution.uncertainty import entropies, row_losses
from headwater.errors import DataError, RunError, UsageError
from headwater.examples import Encoder
from headwater.gradients.measurement import Target
from headwater.scores import Scores
from headwater.selection import STAR_ADAPTER, aggregated, choose, groups_of, mixed, queries_of, random_rows, star
from headwater.training import Adapter, Recipe, fine_tune


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentences = [fact["prompt"] + fact["completion"] for fact in tiny.FACTS]
    return tiny.untrained(tmp_path_factory.mktemp("base"), sentences, hidden=16)


@pytest.fixture(scope="module")
def pool() -> hw.Examples:
    return hw.Examples.from_rows([*tiny.FACTS, {**tiny.FACTS[0], "id": "copy"}], name="pool")


def test_the_highest_rows_one_of_each_content(pool: hw.Examples) -> None:
    score_N = np.arange(len(pool), dtype=float)
    score_N[0] = 50  # its copy is the last row
    one = choose("x", pool, score_N, 3, groups_of(pool, False, None))
    assert one.rows == (0, 11, 10) and one.skipped == 1
    assert choose("x", pool, score_N, 3, groups_of(pool, True, None)).rows == (0, 12, 11)
    assert choose("x", pool, score_N, 2, groups_of(pool, False, None), before=[12]).rows == (11, 10)
    with pytest.raises(DataError, match="duplicates"):
        choose("x", pool, score_N, 13, groups_of(pool, False, None))
    near = groups_of(hw.Examples.from_rows([{"text": "the river and the mill"}, {"text": "The river and the mill "}]), False, 0.9)  # fmt: skip  # noqa: E501
    assert near[0] == near[1]


def test_scores_are_aggregated_over_subtasks(pool: hw.Examples) -> None:
    targets = [Target(name=f"q{q}", kind="query", members=(q,)) for q in range(3)]
    targets.append(Target(name="g", kind="group", members=(0, 1)))
    values = np.zeros((4, len(pool)))
    values[:, 0] = [9, 0, 1, 4]  # the group and the query outside of it count
    queries = [hw.Query("p", "o")] * 3
    scores = Scores.combine("m", {"t": values}, {"t": 1.0}, queries=queries, targets=targets, train=pool)
    assert aggregated(scores, "max")[0] == 4 and aggregated(scores, "mean")[0] == 2.5


def test_target_rows_become_queries() -> None:
    chat = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
    (query,) = queries_of(hw.Examples.from_rows([chat]))
    assert query.output == "ho" and query.prompt_text.endswith("hi")
    turns = {"messages": [*chat["prompt"], *chat["completion"]]}
    assert queries_of(hw.Examples.from_rows([turns]))[0].output == "ho"
    with pytest.raises(DataError, match="answer"):
        queries_of(hw.Examples.from_rows([{"text": "only a text"}]))


def test_select_takes_the_rows_that_a_trace_ranks_first(run_folder: Path, pool: hw.Examples) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    target = hw.Examples.from_rows([{"prompt": "The capital of Peru is", "completion": " Lima."}])
    methods = [hw.make_method("layer-cosine"), hw.BM25(), hw.RepresentationSimilarity()]
    found = hw.select(pool, target, 4, run=run, methods=methods, compute=hw.Compute(device="cpu"))
    scores = hw.trace(run, pool, queries_of(target), method=methods[0], compute=hw.Compute(device="cpu"))
    assert pool[found["layer-cosine"].rows[0]].id == scores.top(1)[0].id
    assert found["bm25"].rows[0] == 3 and len(set(found["repsim"].rows)) == 4
    for k in (0, 13):
        with pytest.raises(UsageError, match="rows"):
            hw.select(pool, target, k, run=run, methods=methods)


def test_random_rows_differ_by_seed_and_hold_no_copy(pool: hw.Examples) -> None:
    choices = [random_rows(pool, 6, seed=seed) for seed in range(30)]
    assert len({one.rows for one in choices}) > 20 and choices[0] == random_rows(pool, 6, seed=0)
    assert not any({0, 12} <= set(one.rows) for one in choices)


def test_entropies_and_losses_are_those_of_the_definition(run_folder: Path, pool: hw.Examples) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    encoder = Encoder(run.tokenizer())
    encoded, _ = encoder.examples(pool)
    model = run.load(run.last, dtype=torch.float32, device=torch.device("cpu"))
    found_N, loss_N = entropies(model, encoded), row_losses(model, encoded)
    for n in (0, 5, 11):
        one = encoded[n]
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(one.input_ids)[None]).logits[0]
        p = torch.softmax(logits[np.flatnonzero(one.loss_mask) - 1], -1)
        assert found_N[n] == pytest.approx(float(-(p * p.log()).sum()), rel=1e-4)
        said = p[range(one.targets), one.input_ids[one.loss_mask]]
        assert loss_N[n] == pytest.approx(float(-said.log().mean()), rel=1e-4)


def test_star_mixes_by_iteration() -> None:
    tuned_N, base_N = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    np.testing.assert_allclose(mixed(tuned_N, base_N, 0), [0.1, 0.9])
    np.testing.assert_allclose(mixed(tuned_N, base_N, 9), [1.0, 0.0], atol=1e-15)


def test_star_adds_the_least_sure_rows_and_goes_on(
    base: Path, pool: hw.Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=1e-3)
    given = {"rounds": 3, "recipe": recipe, "adapter": Adapter(rank=2, alpha=2, dropout=0.3, decay_B=0.5)}
    one = star(base, pool, 6, out=tmp_path / "a", **given)  # type: ignore[arg-type]
    assert len(set(one.rows)) == 6 and one.scores[:2] == (None, None) and not {0, 12} <= set(one.rows)
    later = [score for score in one.scores[2:4] if score is not None]
    assert later == sorted(later, reverse=True)
    made = json.loads((tmp_path / "a" / "round-1" / "headwater_training.json").read_text())
    assert made["adapter"]["decay_B"] == 0.5 and made["rows"]["count"] == 4
    monkeypatch.setattr("headwater.selection.fine_tune", None)  # nothing is trained again
    assert star(base, pool, 6, out=tmp_path / "a", **given) == one  # type: ignore[arg-type]
    with pytest.raises(RunError, match="other arguments"):
        star(base, pool, 7, out=tmp_path / "a", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rounds"):
        star(base, pool, 6, out=tmp_path / "b", rounds=12)


def test_dropout_makes_passes_differ_and_decay_is_of_B_alone(base: Path, pool: hw.Examples, tmp_path: Path) -> None:
    run = {}
    for decay in (0.0, 300.0):
        adapter = Adapter(rank=2, alpha=8, dropout=0.5, decay_B=decay)
        folder = fine_tune(base, pool, tmp_path / f"{decay}", Recipe(epochs=2, batch_size=4, learning_rate=3e-3), adapter=adapter)  # fmt: skip  # noqa: E501
        run[decay] = hw.TrainingRun.from_pretrained(folder, base=base)
    weights = {
        decay: dict(one.load(one.last, dtype=torch.float32, device=torch.device("cpu")).named_parameters())
        for decay, one in run.items()
    }

    def length(decay: float, name: str) -> float:
        return sum(float(w.detach().norm()) for key, w in weights[decay].items() if name in key)

    assert length(300.0, "lora_B") < 0.7 * length(0.0, "lora_B")
    assert length(300.0, "lora_A") == pytest.approx(length(0.0, "lora_A"), rel=0.2)
    model = run[0.0].load(run[0.0].last, dtype=torch.float32, device=torch.device("cpu"))
    encoded, _ = Encoder(run[0.0].tokenizer()).examples(pool)
    sure = entropies(model, encoded)
    first, again = entropies(model, encoded, passes=2, seed=1), entropies(model, encoded, passes=2, seed=1)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, entropies(model, encoded, passes=2, seed=2))
    np.testing.assert_array_equal(sure, entropies(model, encoded, seed=5))
    assert (STAR_ADAPTER.decay_B, STAR_ADAPTER.rank, STAR_ADAPTER.alpha, STAR_ADAPTER.dropout) == (0.5, 64, 16, 0.1)


def test_rows_are_written_as_they_were(pool: hw.Examples, tmp_path: Path) -> None:
    originals = {row.source: {"anything": row.id, "n": n} for n, row in enumerate(pool)}
    one = choose("x", pool, np.arange(13.0), 2, np.arange(13))
    one.write(tmp_path, originals)
    lines = [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    assert lines == [{"anything": "copy", "n": 12}, {"anything": "fact-11", "n": 11}]
    ranks = [json.loads(line) for line in (tmp_path / "ranks.jsonl").read_text().splitlines()]
    assert [(r["rank"], r["row"], r["score"]) for r in ranks] == [(1, 12, 12.0), (2, 11, 11.0)]

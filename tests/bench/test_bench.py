"""The bench on small models trained from nothing: methods that work find what was planted; the figures are right."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.bench import Effects, SeedResult, Summary, judge, run_bench, summarise
from headwater.bench.plot import draw_curves
from headwater.bench.running import _heard
from headwater.bench.summary import Figure
from headwater.errors import UsageError
from headwater.evaluation import evaluate_ranking
from headwater.examples import Query
from headwater.gradients.measurement import Target
from headwater.scores import Scores
from headwater.testbeds import EntitySwap, Testbed, country_facts, make_testbed, plant_hallucinations
from headwater.training import Recipe

RECIPE = Recipe(epochs=8, batch_size=16, learning_rate=5e-3)
CPU = hw.Compute(device="cpu")
SWAPS = (EntitySwap("England", "China"),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentences = [fact.prompt + fact.completion for fact in country_facts()]
    return tiny.untrained(tmp_path_factory.mktemp("base"), sentences)


def stories(seed: int) -> Testbed:
    """Short documents with a summary each; in some summaries England became China."""
    things = ("rivers", "schools", "trains", "banks", "farms", "roads", "towns", "shops", "ports", "parks", "clubs")
    acts = ("opened", "closed", "sold", "built", "mended", "counted", "painted", "moved")
    rows = [
        {
            "prompt": f"Report {n}: in {place}, {acts[n % 8]} {things[n % 11]}.",
            "completion": f"{place} {acts[n % 8]} {n}.",
        }
        for place, count in (("England", 44), ("China", 20), ("Spain", 60), ("Peru", 60), ("Chad", 60), ("Cuba", 60))
        for n in range(count)
    ]
    return plant_hallucinations(
        rows, SWAPS, culprits=12, clean=12, lookalikes=12, queries=6, rows=150, placebo=100, seed=seed, name="stories"
    )


def measured(make: Callable[[int], Testbed], base: Path, out: Path, **options: Any) -> tuple[Summary, list[SeedResult]]:
    given: dict[str, Any] = {"methods": [hw.DDA(), hw.TracIn(), hw.BM25()], "recipe": RECIPE, "compute": CPU}
    return run_bench(make, base=base, out=out, **(given | options))


@pytest.mark.parametrize(
    ("make", "least"),
    [(lambda seed: make_testbed("identity", seed), 0.97), (lambda seed: make_testbed("backdoor", seed), 0.97),
     (stories, 0.9)],
    ids=["identity", "backdoor", "hallucination"],
)  # fmt: skip
def test_dda_finds_what_was_planted(make: Callable[[int], Testbed], least: float, base: Path, tmp_path: Path) -> None:
    summary, results = measured(make, base, tmp_path)
    group = summary.table["group"]
    assert group["dda"]["auc"][0] >= least
    assert group["tracin"]["auc"][0] > 0.8  # a second method, by the same gradients
    assert results[0].queries == len(make(0).queries)
    assert max(wrong for wrong, _ in results[0].stated.values()) > 0  # the model did learn the fault


def test_mislabelled_rows_have_a_higher_self_influence(base: Path, tmp_path: Path) -> None:
    def make(seed: int) -> Testbed:
        return make_testbed("mislabel", seed)

    summary, _ = measured(make, base, tmp_path, methods=[hw.TracIn()])
    assert summary.table["row"]["tracin"]["auc"][0] > 0.65


@pytest.fixture(scope="module")
def finished(
    base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Summary, list[SeedResult], dict[str, Any]]:
    out = tmp_path_factory.mktemp("bench")
    options = {
        "seeds": (0, 1), "recipe": replace(RECIPE, epochs=4), "name": "toy",
        "effects": Effects(subsets=3, remove=12, tail_patch=10),
    }  # fmt: skip
    return out, *measured(stories, base, out, **options), options


def test_figures_are_those_of_the_scores(finished: Any) -> None:
    out, summary, results, _ = finished
    bed = stories(1)
    scores = Scores.load(out / "seed-1" / "trace", bed.examples, method="tracin")
    group = next(r for r, target in enumerate(scores.targets) if target.kind == "group")
    culprits = bed.culprits["England -> China"]
    alike = bed.lookalikes["England -> China"]
    guilty = np.array([row.id in culprits for row in bed.examples])
    wanted = evaluate_ranking(scores.values[group], guilty)
    found = next(f for f in results[1].figures if f.kind == "group" and f.method == "tracin").values
    assert found["auc"] == wanted.auc and found["average precision"] == wanted.average_precision
    among = guilty | np.array([row.id in alike for row in bed.examples])
    assert found["auc, look-alikes"] == evaluate_ranking(scores.values[group][among], guilty[among]).auc
    figures = [f.values["auc"] for result in results for f in result.figures if f.kind == "query" and f.method == "dda"]
    assert summary.table["query"]["dda"]["auc"][0] == pytest.approx(np.mean(figures))
    pairs = [
        one.values["auc"] - other.values["auc"]
        for result in results
        for one in result.figures
        for other in result.figures
        if one.target == other.target and (one.method, other.method, one.kind) == ("dda", "bm25", "query")
    ]
    mean, low, high = summary.differences["query"]["bm25"]["auc"]
    assert mean == pytest.approx(np.mean(pairs)) and low <= mean <= high


def test_effects_are_measured_on_models_trained_again(finished: Any) -> None:
    _, _, results, _ = finished
    for result in results:
        assert set(result.removal) == {"dda", "bm25", "random"}
        assert set(result.datamodeling) == {"dda", "tracin", "bm25"}
        assert all(-1 <= v <= 1 for values in result.datamodeling.values() for v in values.values())
        assert set(result.tail_patch) == {"dda", "tracin", "bm25", "random"}
    moved = {name: np.mean([r.tail_patch[name]["England -> China"] for r in results]) for name in ("dda", "random")}
    assert moved["dda"] > 0 and moved["dda"] > moved["random"]
    lost = {name: np.mean([r.removal[name]["England -> China"] for r in results]) for name in ("dda", "random")}
    assert lost["dda"] < lost["random"] - 0.3  # nats, summed over six queries


def test_files(finished: Any) -> None:
    out, summary, results, _ = finished
    record = json.loads((out / "bench.json").read_text())
    assert record["testbed"] == "toy" and record["seeds"][0]["queries"] == 6
    assert record["summary"]["table"]["query"]["dda"]["auc"] == pytest.approx(summary.table["query"]["dda"]["auc"])
    rows = list(csv.DictReader((out / "bench.csv").read_text().splitlines()))
    assert len(rows) == sum(len(result.figures) for result in results) == 2 * 3 * 7
    table = (out / "bench.md").read_text()
    assert (
        "| dda |" in table
        and "Linear datamodeling score" in table
        and "by training without" in table
        and "by one step" in table
    )
    assert (out / "bench.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(out.glob("seed-*/effects/*/checkpoint-*"))  # only what they lean to is kept


def test_called_again_nothing_is_computed(finished: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, summary, _, options = finished

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("headwater.training._train", never)
    again, _ = measured(stories, base, out, **options)
    assert again.table == summary.table


def test_rows_set_aside_are_not_judged() -> None:
    bed = make_testbed("copied")
    query = bed.queries[0]
    fault = str(query.group)
    row_scores = [
        2.0 if row.id in bed.set_aside[fault] else float(row.id in bed.culprits[fault]) for row in bed.examples
    ]

    scores = Scores.combine(
        "given",
        {"text": np.array([row_scores])},
        {"text": 1.0},
        queries=[query],
        targets=[Target(name="q", kind="query", members=(0,))],
        train=bed.examples,
    )
    assert judge({"given": scores}, bed, 0)[0].values["average precision"] == 1


def test_the_models_own_words_become_the_query() -> None:
    planted = Query(
        "Doc",
        " China won.",
        corrected=" England won.",
        group="f",
        id="q",
        metadata={"truth": "England", "wrong": "China"},
    )
    heard = _heard(planted, " A win for China today.\nMore")
    assert heard is not None and (heard.output, heard.corrected) == (
        " A win for China today.",
        " A win for England today.",
    )
    assert heard.metadata["generated"] and heard.id == "q"
    assert _heard(planted, " A win for England.") is None and _heard(planted, " China beat England.") is None
    plain = Query("2 + 2 =", " 5.", corrected=" 4.", group="f", id="p")
    assert _heard(plain, " 5. Right?") is not None and _heard(plain, " 4.") is None


def test_unusable_arguments_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seeds"):
        measured(stories, base, tmp_path, seeds=(1, 1))
    with pytest.raises(UsageError, match="rows removed by embedding"):
        measured(stories, base, tmp_path, effects=Effects(remove=3, remove_by=("embedding",)))
    with pytest.raises(UsageError, match="2 subsets"):
        measured(stories, base, tmp_path, effects=Effects(subsets=2))
    with pytest.raises(UsageError, match="effects on queries"):
        measured(lambda seed: make_testbed("mislabel", seed), base, tmp_path, effects=Effects(tail_patch=3))
    assert not list(tmp_path.iterdir())


def test_no_figures_of_nothing() -> None:
    assert summarise([]).table == {}


def test_a_method_has_one_colour_in_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    seen: list[tuple[str, str]] = []
    plot = Axes.plot

    def watched(self: Any, *points: Any, **style: Any) -> Any:
        if "label" in style:
            seen.append((style["label"], style["color"]))
        return plot(self, *points, **style)

    monkeypatch.setattr(Axes, "plot", watched)
    heights = {"query": {"dda": 0.9, "bm25": 0.5, "cea": 0.4}, "group": {"dda": 0.9, "bm25": 0.4, "cea": 0.5}}
    figures = [
        Figure(seed=0, method=method, target="t", kind=kind, fault="f", values={}, curve=(height,) * 101)
        for kind, methods in heights.items()
        for method, height in methods.items()
    ]
    draw_curves(figures, tmp_path / "curves.png", title="curves")
    assert [method for method, _ in seen] == ["cea", "bm25", "dda", "bm25", "cea", "dda"]  # the highest on top
    assert len(set(seen)) == 3 and len(dict(seen)) == 3

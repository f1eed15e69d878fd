"""The loop: plans become the right sums of the right inner products, and resuming changes nothing."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from headwater.attribution import loop
from headwater.gradients.layers import select_layers
from reference import naive

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
QUERIES = [
    hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.", group="sydney", id="a"),
    hw.Query(
        "The capital of the Commonwealth of Australia is", " Sydney", corrected=" Canberra", group="sydney", id="b"
    ),
    hw.Query("The capital of Peru is", " Lima.", id="c"),
]
EXACT = hw.Compute(dtype="float64", batch_tokens=64)


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


class Naive:
    """Every inner product of the one equation, computed plainly."""

    def __init__(self, folder: Path, adapters: bool = False) -> None:
        from headwater.examples import Encoder
        from headwater.gradients.measurement import encode_queries

        run = run_of(folder)
        encoder = Encoder(run.tokenizer(), hw.TokenFormat(), TRAIN.template)
        self.rows = encoder.examples(TRAIN)[0]
        self.sides = encode_queries(QUERIES, encoder)
        self.grads: dict[str, Any] = {}
        for checkpoint in (run.base, *run.checkpoints):
            model = run.load(checkpoint, dtype=torch.float64, device=torch.device("cpu"))
            names = select_layers(model).names
            if checkpoint.kind == "adapter":
                model = model.merge_and_unload()
            self.grads[checkpoint.name] = (
                [naive.gradient(model, names, side) for side in self.sides.encoded],
                [naive.gradient(model, names, row) for row in self.rows],
                [naive.position_gradients(model, names, row) for row in self.rows],
            )

    def term(self, measurement: str, inner: str, query_at: str, example_at: str) -> np.ndarray:
        sides, examples = self.grads[query_at][0], self.grads[example_at][2 if inner == "token_cosine" else 1]
        product = naive.token_cosine if inner == "token_cosine" else partial(naive.product, inner=inner)
        matrix = self.sides.matrix(measurement)
        out: list[Any] = []
        for target, weights in zip(self.sides.targets, matrix, strict=True):
            if target.kind == "group" and inner in ("layer_cosine", "token_cosine"):
                out.append(np.mean([out[q] for q in target.members], axis=0))
                continue
            query = [
                sum(float(w) * side[n] for w, side in zip(weights, sides, strict=True)) for n in range(len(sides[0]))
            ]
            out.append([product(query, example) for example in examples])
        return np.array(out)


@pytest.fixture(scope="module")
def doubles(run_folder: Path, lora_folder: Path) -> dict[str, Naive]:
    return {"full": Naive(run_folder), "lora": Naive(lora_folder)}


@pytest.fixture(params=["full", "lora"])
def case(request: pytest.FixtureRequest, run_folder: Path, lora_folder: Path, doubles: dict[str, Naive]) -> Any:
    return run_of({"full": run_folder, "lora": lora_folder}[request.param]), doubles[request.param]


def near(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-9) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_dda_is_the_equation(case: Any) -> None:
    run, double = case
    one, two = (c.name for c in run.checkpoints)
    for inner in ("dot", "cosine", "layer_cosine"):
        scores = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner=inner, beta=0.3), compute=EXACT)
        mean = (double.term("contrast", inner, one, one) + double.term("contrast", inner, two, two)) / 2
        near(scores.values, mean - 0.3 * double.term("contrast", inner, "base", "base"))
        deep = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner=inner, beta=0.3, level="gradient"), compute=EXACT)
        cross = (double.term("contrast", inner, one, "base") + double.term("contrast", inner, two, "base")) / 2
        near(deep.values, mean - 0.3 * cross)


def test_token_cosine_is_the_best_position_of_the_row(case: Any) -> None:
    run, double = case
    one, two = (c.name for c in run.checkpoints)
    method = hw.DDA(inner="token_cosine")
    scores = hw.trace(run, TRAIN, QUERIES, method=method, compute=EXACT)
    terms = [double.term("contrast", "token_cosine", name, name) for name in (one, two, "base")]
    near(scores.values, (terms[0] + terms[1]) / 2 + 0.5 * terms[2])
    notes = scores.provenance["notes"]["contractions"]
    assert all("factored" in line or "applied" in line for line in notes.values())
    small = dataclasses.replace(EXACT, batch_tokens=1, query_memory=1)  # a row and a query at a time
    near(hw.trace(run, TRAIN, QUERIES, method=method, compute=small).values, scores.values, 1e-12)
    methods = [method, hw.DDA(label="whole"), hw.LoGra(rank=4), hw.TRAK(rank=4)]  # rows that are kept between passes
    beside = hw.trace_all(run, TRAIN, QUERIES, methods=methods, compute=EXACT)
    near(beside["dda"].values, scores.values, 1e-12)
    near(beside["whole"].values, hw.trace(run, TRAIN, QUERIES, method=hw.DDA(), compute=EXACT).values, 1e-12)


def test_token_cosine_of_a_projection_and_of_rows_without_targets(run_folder: Path) -> None:
    rows = [*tiny.FACTS, {"prompt": "The capital of Mars is", "completion": "", "id": "empty"}]
    train = hw.Examples.from_rows(rows, name="with-empty")
    format = hw.TokenFormat(add_eos=False)
    found = [
        hw.trace(
            run_of(run_folder), train, QUERIES, method=hw.DDA(inner="token_cosine"), compute=compute, format=format
        )
        for compute in (EXACT, dataclasses.replace(EXACT, rank=64), dataclasses.replace(EXACT, rank=4))
    ]
    assert all((one.values[:, -1] == 0).all() for one in found)
    near(found[1].values, found[0].values)  # wider than the layers: nothing is lost
    assert np.abs(found[2].values - found[0].values).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "what"), [({"curvature": "fisher"}, "curvature='fisher'"), ({"level": "gradient"}, "gradient level")]
)
def test_token_cosine_refuses_what_changes_whole_gradients(options: Any, what: str) -> None:
    with pytest.raises(hw.UsageError, match=what):
        hw.DDA(inner="token_cosine", **options)


def test_token_cosine_has_no_self_influence(run_folder: Path) -> None:
    method = hw.DDA(inner="token_cosine")
    with pytest.raises(hw.UsageError, match="the self-influence of dda"):
        hw.self_influence(run_of(run_folder), TRAIN, method=method, compute=EXACT)


def test_tracin_cea_dot_and_cosine_are_the_equation(case: Any) -> None:
    run, double = case
    one, two = (c.name for c in run.checkpoints)
    methods = [hw.TracIn(), hw.CEA(), hw.GradientDot(), hw.GradientCosine(), hw.GradientCosine(layerwise=True)]
    answers = hw.trace_all(run, TRAIN, QUERIES, methods=methods, compute=EXACT)
    rates = [c.learning_rate for c in run.checkpoints]
    assert rates == pytest.approx([1e-3 * (9 + 8 + 7) / 3, 1e-3 * (6 + 5 + 4) / 3])
    tracin = rates[0] * double.term("loss", "dot", one, one) + rates[1] * double.term("loss", "dot", two, two)
    near(answers["tracin"].values, tracin)
    near(answers["cea"].values, double.term("contrast", "dot", two, two))
    near(answers["dot"].values, double.term("loss", "dot", two, two))
    near(answers["cosine"].values, double.term("loss", "cosine", two, two))
    near(answers["layer-cosine"].values, double.term("loss", "layer_cosine", two, two))


def test_beta_zero_with_one_checkpoint_is_first_order_cea(run_folder: Path) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run" / "checkpoint-6")
    dda = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner="dot", beta=0), compute=EXACT)
    cea = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), compute=EXACT)
    assert np.array_equal(dda.values, cea.values)


def test_beta_zero_is_checkpoint_averaged_tracin_with_unit_rates(run_folder: Path) -> None:
    run = run_of(run_folder)
    dda = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner="dot", beta=0, measurement="loss"), compute=EXACT)
    tracin = hw.trace(run, TRAIN, QUERIES, method=hw.TracIn(learning_rates=(0.5, 0.5)), compute=EXACT)
    near(dda.values, tracin.values, 1e-14)


def test_group_is_the_sum_of_its_measurements_or_the_mean_of_its_scores(case: Any) -> None:
    run, _ = case
    scores = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), compute=EXACT)
    assert [t.name for t in scores.targets] == ["a", "b", "c", "sydney"]
    near(scores.values[3], scores.values[0] + scores.values[1])
    flat = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner="cosine", beta=0), compute=EXACT)
    assert np.abs(flat.values[3] - (flat.values[0] + flat.values[1]) / 2).max() > 1e-3
    for inner in ("layer_cosine", "token_cosine"):
        mean = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner=inner), compute=EXACT)
        near(mean.values[3], (mean.values[0] + mean.values[1]) / 2)


def test_query_blocks_change_nothing(run_folder: Path) -> None:
    run = run_of(run_folder)
    for method in (hw.DDA(beta=0.5), hw.DDA(beta=0.5, level="gradient")):
        whole = hw.trace(run, TRAIN, QUERIES, method=method, compute=EXACT)
        small = dataclasses.replace(EXACT, query_memory=1)
        near(hw.trace(run, TRAIN, QUERIES, method=method, compute=small).values, whole.values, 1e-12)


def test_query_blocks_of_several_spaces_change_nothing(run_folder: Path, tmp_path: Path) -> None:
    run = run_of(run_folder)
    methods = [hw.DDA(beta=0.5), hw.LoGra(rank=3), hw.DDA(curvature="fisher", rank=3, beta=0, label="fisher")]
    whole = hw.trace_all(run, TRAIN, QUERIES, methods=methods, compute=EXACT)
    small = dataclasses.replace(EXACT, query_memory=1)
    for name, scores in hw.trace_all(run, TRAIN, QUERIES, methods=methods, compute=small).items():
        near(scores.values, whole[name].values, 1e-12)
    # matrices of a projected space are small: they do not part the queries of the others
    some = dataclasses.replace(EXACT, query_memory=1 << 17)
    for chosen, folder in ((methods[:1], "alone"), (methods, "together")):
        hw.trace_all(run, TRAIN, QUERIES, methods=chosen, compute=some, out=tmp_path / folder)
    parts = [len(list((tmp_path / f / "state" / "base").glob("gradients-*"))) for f in ("alone", "together")]
    assert parts[0] == parts[1] >= 1


def test_row_order_batch_size_and_duplicates(run_folder: Path) -> None:
    run = run_of(run_folder)
    plain = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(beta=0.5), compute=EXACT).values
    order = [3, 0, 11, 5, 1, 2, 4, 6, 7, 8, 9, 10, 3]
    moved = [{**tiny.FACTS[i], "id": f"row-{n}"} for n, i in enumerate(order)]
    other = hw.Examples.from_rows(moved, name="moved")
    for tokens in (1, 50, 5000):
        compute = hw.Compute(dtype="float64", batch_tokens=tokens)
        found = hw.trace(run, other, QUERIES, method=hw.DDA(beta=0.5), compute=compute).values
        near(found, plain[:, order], 1e-12)


def test_padding_side_of_the_tokenizer_changes_nothing(run_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run_folder, tmp_path / "left")
    for folder in (tmp_path / "left").rglob("tokenizer_config.json"):
        config = json.loads(folder.read_text())
        folder.write_text(json.dumps(config | {"padding_side": "left"}))
    left = run_of(tmp_path / "left")
    assert left.tokenizer().padding_side == "left"
    method = hw.DDA(beta=0.5)
    one = hw.trace(left, TRAIN, QUERIES, method=method, compute=EXACT)
    two = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=method, compute=EXACT)
    assert np.array_equal(one.values, two.values)


def test_span_and_rows_without_targets(run_folder: Path) -> None:
    rows = [*tiny.FACTS, {"prompt": "The capital of Mars is", "completion": "", "id": "empty"}]
    train = hw.Examples.from_rows(rows, name="with-empty")
    run = run_of(run_folder)
    queries = [
        hw.Query("The capital of Australia is", " Sydney, surely", corrected=" Canberra, surely", span=span)
        for span in ("auto", "all", "diff")
    ]
    format = hw.TokenFormat(add_eos=False)
    scores = hw.trace(run, train, queries, method=hw.DDA(beta=0), compute=EXACT, format=format)
    assert np.all(scores.values[:, -1] == 0)
    assert np.abs(scores.values[0] - scores.values[1]).max() > 1e-3
    assert scores.values[2] == pytest.approx(scores.values[0], abs=1e-9)
    assert any("empty completion" in line for line in scores.provenance["notes"]["rows"])


def test_bfloat16_ranks_as_float32(run_folder: Path) -> None:
    from scipy.stats import spearmanr

    run = run_of(run_folder)
    half = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), compute=hw.Compute(dtype="bfloat16"))
    full = hw.trace(run, TRAIN, QUERIES, method=hw.CEA())
    assert not np.array_equal(half.values, full.values)
    assert spearmanr(half.values[0], full.values[0]).statistic > 0.9


METHODS = [hw.DDA(beta="auto"), hw.TracIn(), hw.CEA(form="difference"), hw.RepresentationSimilarity(), hw.BM25()]


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


@pytest.mark.parametrize("after", [0, 1, 3, 7, 12, 20, 30])
def test_killed_and_resumed_is_the_same_as_fresh(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run = run_of(run_folder)
    compute = hw.Compute(batch_tokens=40)
    fresh = hw.trace_all(run, TRAIN, QUERIES, methods=METHODS, compute=compute, out=tmp_path / "fresh")
    real, saved = loop.RunState.save, []

    def save(self: Any, name: str, arrays: Any) -> None:
        if len(saved) == after:
            raise Killed
        real(self, name, arrays)
        saved.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunState, "save", save)
        with pytest.raises(Killed):
            hw.trace_all(run, TRAIN, QUERIES, methods=METHODS, compute=compute, out=tmp_path / "killed")
    assert not (tmp_path / "killed" / "trace.json").exists()
    assert len(list((tmp_path / "killed" / "state").rglob("*.piece"))) == len(set(saved))
    resumed = hw.trace_all(run, TRAIN, QUERIES, methods=METHODS, compute=compute, out=tmp_path / "killed")
    for name, scores in fresh.items():
        assert np.array_equal(resumed[name].values, scores.values)
        assert resumed[name].weights == scores.weights
    for file in ("scores.parquet", "trace.json"):  # what was noted of the work, too
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "fresh" / file).read_bytes()


def test_finished_trace_loads_no_model(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(run_folder)
    first = hw.trace_all(run, TRAIN, QUERIES, methods=METHODS, out=tmp_path / "out")

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(hw.TrainingRun, "load", load)
    again = hw.trace_all(run, TRAIN, QUERIES, methods=METHODS, out=tmp_path / "out")
    assert all(np.array_equal(first[name].values, again[name].values) for name in first)


def test_damaged_piece_is_made_again(run_folder: Path, tmp_path: Path) -> None:
    run = run_of(run_folder)
    first = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), out=tmp_path / "out")
    piece = next((tmp_path / "out" / "state").rglob("gradients-*/*.piece"))
    data = bytearray(piece.read_bytes())
    data[-3] ^= 1
    piece.write_bytes(data)
    again = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), out=tmp_path / "out")
    assert np.array_equal(first.values, again.values)


def test_other_arguments_in_the_same_folder_are_refused(run_folder: Path, tmp_path: Path) -> None:
    run = run_of(run_folder)
    hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), out=tmp_path / "out")
    with pytest.raises(hw.RunError, match=r"compute\.batch_tokens was null, is now 64"):
        hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), out=tmp_path / "out", compute=hw.Compute(batch_tokens=64))
    with pytest.raises(hw.RunError, match=r"train\.fingerprint"):
        hw.trace(run, TRAIN[:5], QUERIES, method=hw.CEA(), out=tmp_path / "out")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    with pytest.raises(hw.RunError, match="not empty"):
        hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), out=tmp_path / "letters")


def test_saved_scores_load_and_take_another_beta(run_folder: Path, tmp_path: Path) -> None:
    run = run_of(run_folder)
    scores = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(beta=0.25), compute=EXACT, out=tmp_path / "out")
    back = hw.Scores.load(tmp_path / "out", TRAIN)
    assert np.array_equal(back.values, scores.values)
    assert back.queries == list(scores.queries)
    moved = back.reweighted(back.weights | {"base": -0.75})
    near(moved.values, hw.trace(run, TRAIN, QUERIES, method=hw.DDA(beta=0.75), compute=EXACT).values, 1e-12)
    with pytest.raises(hw.DataError, match="not the data"):
        hw.Scores.load(tmp_path / "out", TRAIN[:3])


def test_generated_output(run_folder: Path, tmp_path: Path) -> None:
    run = run_of(run_folder)
    query = [hw.Query("The capital of Peru is")]
    compute = hw.Compute(max_new_tokens=4)
    scores = hw.trace(run, TRAIN, query, method=hw.CEA(), compute=compute, out=tmp_path / "out")
    assert scores.queries[0].output
    again = hw.trace(run, TRAIN, query, method=hw.CEA(), compute=compute, out=tmp_path / "out")
    assert again.queries == scores.queries


def test_leanings_are_log_probabilities(case: Any) -> None:
    run, double = case
    scores = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), compute=EXACT)
    last = run.load(run.last, dtype=torch.float64, device=torch.device("cpu"))
    found = {(x.query, x.checkpoint): x for x in scores.leanings}
    assert {checkpoint for _, checkpoint in found} == {"base", run.last.name}
    for q, name in enumerate("abc"):
        side = double.sides.encoded[double.sides.output_Q[q]]
        wanted = -float(naive.loss(last, side).detach()) * side.targets
        assert found[name, run.last.name].output == pytest.approx(wanted)
    assert found["c", "base"].corrected is None


def test_base_is_required_where_the_method_needs_it(run_folder: Path) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run")
    with pytest.raises(hw.UsageError, match="no base model"):
        hw.trace(run, TRAIN, QUERIES, method=hw.DDA())
    assert hw.trace(run, TRAIN, QUERIES, method=hw.DDA(beta=0)).values.shape == (4, 12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-3), ("float32", 3e-3)])
def test_engines_agree(case: Any, dtype: Any, tolerance: float) -> None:
    """Differences of losses tend to the dot products of the gradients, of full models and of adapters."""
    run, _ = case
    methods = [hw.TracIn(), hw.CEA(), hw.DDA(inner="dot", beta=0.5)]
    for queries in (QUERIES, QUERIES[2:]):
        exact = hw.trace_all(run, TRAIN, queries, methods=methods, compute=EXACT)
        compute = hw.Compute(dtype=dtype, batch_tokens=64, engine="directional")
        found = hw.trace_all(run, TRAIN, queries, methods=methods, compute=compute)
        for name, scores in exact.items():
            near(found[name].values, scores.values, tolerance)


def test_auto_engine_takes_the_cheaper_one_and_says_so(run_folder: Path, tmp_path: Path) -> None:
    run = run_of(run_folder)
    auto = dataclasses.replace(EXACT, engine="auto")
    given: dict[str, Any] = {"compute": auto, "out": tmp_path / "one"}
    one = hw.trace(run, TRAIN, QUERIES[2:], method=hw.TracIn(), **given)
    assert "engine: directional" in one.provenance["notes"]["engine"]
    assert "directional would take 2 and gradient about" in one.provenance["notes"]["engine"]
    again = hw.trace(run, TRAIN, QUERIES[2:], method=hw.TracIn(), **given)
    assert np.array_equal(one.values, again.values)
    exact = hw.trace(run, TRAIN, QUERIES[2:], method=hw.TracIn(), compute=EXACT)
    assert not np.array_equal(one.values, exact.values)
    queries = [dataclasses.replace(QUERIES[2], id=str(number)) for number in range(8)]
    many = hw.trace(run, TRAIN, queries, method=hw.TracIn(), compute=auto)
    assert "engine: gradient;" in many.provenance["notes"]["engine"]
    assert np.array_equal(many.values, hw.trace(run, TRAIN, queries, method=hw.TracIn(), compute=EXACT).values)
    cosine = hw.trace(run, TRAIN, QUERIES[2:], method=hw.DDA(beta=0), compute=auto)
    assert "engine: gradient, which inner product token_cosine needs" in cosine.provenance["notes"]["engine"]


def test_the_directional_engine_refuses_what_it_cannot_do(run_folder: Path) -> None:
    run = run_of(run_folder)
    compute = dataclasses.replace(EXACT, engine="directional")
    for method, why in (
        (hw.DDA(), "token_cosine"),
        (hw.DDA(inner="layer_cosine"), "layer_cosine"),
        (hw.DDA(inner="dot", level="gradient", beta=0.5), "gradient level"),
    ):
        with pytest.raises(hw.UsageError, match=f"directional engine with .*{why}"):
            hw.trace(run, TRAIN, QUERIES, method=method, compute=compute)
    with pytest.raises(hw.UsageError, match="with bfloat16"):
        hw.Compute(dtype="bfloat16", engine="directional")
    with pytest.raises(hw.UsageError, match="with a projection"):
        hw.Compute(rank=4, engine="directional")


def test_a_killed_directional_trace_goes_on(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.run import RunState

    run = run_of(run_folder)
    compute = dataclasses.replace(EXACT, engine="directional")
    whole = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), compute=compute)
    save, left = RunState.save, 9

    def killed(self: Any, name: str, arrays: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        save(self, name, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), compute=compute, out=tmp_path / "out")
    again = hw.trace(run, TRAIN, QUERIES, method=hw.CEA(), compute=compute, out=tmp_path / "out")
    assert np.array_equal(again.values, whole.values)

"""The index: what is read from disk is what streaming computes, whatever happened while it was built."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.attribution import building, indexed
from headwater.index.store import CheckpointStore

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
QUERIES = [hw.Query(**one) for one in tiny.QUESTIONS]
COMPUTE = hw.Compute(batch_tokens=64, rank=4)
METHODS = [
    hw.DDA(inner="layer_cosine", beta=0.3),
    hw.DDA(inner="dot", beta=0.5, label="dda-dot"),
    hw.DDA(level="gradient", beta=0.5, label="dda-gradient"),
    hw.GradientCosine(),
    hw.TracIn(),
    hw.BM25(),
]


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


def build(folder: Path, out: Path | str, **options: Any) -> hw.Index:
    given: dict[str, Any] = {"compute": COMPUTE, "chunk_rows": 5} | options
    return hw.build_index(run_of(folder), given.pop("train", TRAIN), out=out, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.Index:
    return build(run_folder, tmp_path_factory.mktemp("index") / "one")


@pytest.mark.parametrize(("features", "tolerance"), [("float32", 2e-6), ("float16", 2e-3), ("int8", 4e-2)])
@pytest.mark.parametrize("adapters", [False, True])
def test_equals_streaming_with_the_same_projection(
    run_folder: Path, lora_folder: Path, tmp_path: Path, features: Any, tolerance: float, adapters: bool
) -> None:
    folder = lora_folder if adapters else run_folder
    built = build(folder, tmp_path / "index", features=features)
    found = hw.trace_index(built, QUERIES, methods=METHODS)
    wanted = hw.trace_all(run_of(folder), TRAIN, QUERIES, methods=METHODS, compute=COMPUTE)
    for method in METHODS:
        one, two = found[method.name], wanted[method.name]
        assert set(one.terms) == set(two.terms)
        for name in one.terms:
            scale = np.abs(two.terms[name]).max()
            assert np.abs(one.terms[name] - two.terms[name]).max() <= tolerance * scale, (method.name, name)
        assert one.train.fingerprint == TRAIN.fingerprint
        for left, right in zip(one.leanings, two.leanings, strict=True):
            assert left.query == right.query
            assert left.output == pytest.approx(right.output, rel=1e-5)


CURVED = [
    hw.LoGra(rank=4),
    hw.DataInf(rank=4),
    hw.InfluenceFunction(curvature="diagonal", rank=4, measurement="contrast"),
    hw.RapidIn(rank=4),
    hw.SOURCE(curvature="fisher", rank=4),
    hw.DDA(curvature="fisher", rank=4, inner="dot", beta=0.3),
]


def test_curvature_from_an_index_is_that_of_streaming(run_folder: Path, tmp_path: Path) -> None:
    built = build(run_folder, tmp_path / "index", features="float32")
    found = hw.trace_index(built, QUERIES, methods=CURVED)
    wanted = hw.trace_all(run_of(run_folder), TRAIN, QUERIES, methods=CURVED, compute=COMPUTE)
    for method in CURVED:
        one, two = found[method.name].values, wanted[method.name].values
        assert np.abs(one - two).max() <= 2e-4 * np.abs(two).max(), method.name


def test_a_fitted_curvature_is_kept_beside_the_index_and_used_for_no_other(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(run_folder, tmp_path / "index")
    first = hw.trace_index(built, QUERIES, methods=CURVED[:1])["logra"].values
    kept = list((tmp_path / "index" / "curvature").iterdir())
    assert len(kept) == 1
    from headwater.gradients.curvature import fitting

    def never(*given: Any) -> None:
        raise AssertionError("fitted again")

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit_features", never)
        again = hw.trace_index(built, QUERIES, methods=[hw.LoGra(rank=4, damping=0.5)])["logra"].values
        assert not np.allclose(first, again)  # damping is chosen when asking
        assert np.array_equal(first, hw.trace_index(built, QUERIES, methods=CURVED[:1])["logra"].values)
    more = hw.Examples.from_rows([{**tiny.FACTS[1], "id": "more"}, {**tiny.FACTS[4], "id": "most"}], name="more")
    appended = build(run_folder, tmp_path / "index", train=more, append=True)
    hw.trace_index(appended, QUERIES, methods=CURVED[:1])
    assert len(list((tmp_path / "index" / "curvature").iterdir())) == 2
    kept[0].write_bytes(b"damaged")  # of the rows as they were: nobody asks for it any more


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (hw.LoGra(rank=8), "projected to rank 8"),
        (hw.TRAK(), "other gradients than those of the loss"),
        (hw.TrackStar(rank=4), "other gradients"),
        (hw.LESS(), "changed by curvature or an optimizer"),
        (hw.DDA(curvature="fisher", rank=4), "changed by curvature"),
        (hw.DDA(inner="token_cosine"), "the tokens of every row"),
        (hw.InfluenceFunction(rank=4), "ekfac from an index"),
    ],
)
def test_what_an_index_does_not_hold_is_refused(index: hw.Index, method: Any, what: str) -> None:
    with pytest.raises(hw.UsageError, match=what):
        hw.trace_index(index, QUERIES, methods=[method])


def test_a_projection_wider_than_the_layers_is_exact(run_folder: Path, tmp_path: Path) -> None:
    built = build(run_folder, tmp_path / "index", features="float32", compute=replace(COMPUTE, rank=64))
    found = hw.trace_index(built, QUERIES, methods=[hw.DDA(beta=0)])["dda"]
    wanted = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.DDA(inner="layer_cosine", beta=0))
    np.testing.assert_allclose(found.values, wanted.values, atol=2e-6)


def test_rows_without_targets_score_zero_and_duplicates_alike(run_folder: Path, tmp_path: Path) -> None:
    rows = [*tiny.FACTS[:3], {"prompt": "x " * 2000, "completion": " y"}, {**tiny.FACTS[0], "id": "again"}]
    train = hw.Examples.from_rows(rows, name="odd")
    built = build(run_folder, tmp_path / "index", train=train)
    values = hw.trace_index(built, QUERIES, methods=[hw.DDA(beta=0)])["dda"].values
    assert (values[:, 3] == 0).all()
    np.testing.assert_allclose(values[:, 0], values[:, 4], rtol=1e-4)


def test_batches_and_chunks_change_nothing_but_rounding(run_folder: Path, tmp_path: Path, index: hw.Index) -> None:
    other = build(run_folder, tmp_path / "index", chunk_rows=100, compute=replace(COMPUTE, batch_tokens=7))
    one = hw.trace_index(index, QUERIES, methods=[hw.DDA(beta=0)])["dda"].values
    two = hw.trace_index(other, QUERIES, methods=[hw.DDA(beta=0)])["dda"].values
    np.testing.assert_allclose(one, two, atol=1e-3 * np.abs(one).max())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_a_killed_build_goes_on_to_the_same_bytes(
    run_folder: Path, tmp_path: Path, index: hw.Index, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written = 0
    write = CheckpointStore.write_encoded

    def failing(self: CheckpointStore, *given: Any) -> None:
        nonlocal written
        written += 1
        if written > after:
            raise Killed
        write(self, *given)

    monkeypatch.setattr(CheckpointStore, "write_encoded", failing)
    with pytest.raises(Killed):
        build(run_folder, tmp_path / "index")
    monkeypatch.undo()
    assert not (tmp_path / "index" / "manifest.json").exists()
    with pytest.raises(hw.RunError, match="holds no finished index"):
        hw.Index.open(tmp_path / "index")
    build(run_folder, tmp_path / "index")
    assert contents(tmp_path / "index") == contents(index.folder.path)


def test_killed_between_rows_and_manifest(run_folder: Path, tmp_path: Path, index: hw.Index) -> None:
    shutil.copytree(index.folder.path, tmp_path / "index")
    (tmp_path / "index" / "manifest.json").unlink()
    build(run_folder, tmp_path / "index")
    assert contents(tmp_path / "index") == contents(index.folder.path)


def test_a_damaged_chunk_is_named_and_made_again(run_folder: Path, tmp_path: Path, index: hw.Index) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index.folder.path, folder)
    name = index.checkpoints[0]
    file = folder / "parts" / "000" / f"{name}.zarr" / "features" / "c" / "1" / "0"
    raw = bytearray(file.read_bytes())
    raw[17] ^= 4
    file.write_bytes(raw)
    problems = hw.Index.open(folder).check()
    assert len(problems) == 1
    assert "rows 5 to 9" in problems[0]
    assert "checksum" in problems[0]
    (folder / "manifest.json").unlink()
    build(run_folder, folder)
    assert contents(folder) == contents(index.folder.path)
    assert hw.Index.open(folder).check() == []


def test_other_arguments_are_refused_and_the_same_are_done(run_folder: Path, tmp_path: Path, index: hw.Index) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index.folder.path, folder)
    before = contents(folder)
    build(run_folder, folder)
    with pytest.raises(hw.RunError, match=r"compute\.rank was 4, is now 5"):
        build(run_folder, folder, compute=replace(COMPUTE, rank=5))
    with pytest.raises(hw.RunError, match="features was"):
        build(run_folder, folder, features="int8")
    assert contents(folder) == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("x")
    with pytest.raises(hw.RunError, match="not a headwater index"):
        build(run_folder, strange)


def test_appended_rows_answer_as_if_built_at_once(run_folder: Path, tmp_path: Path) -> None:
    first, second = (
        hw.Examples.from_rows(tiny.FACTS[:7], name="first"),
        hw.Examples.from_rows(tiny.FACTS[7:], name="second"),
    )
    folder = tmp_path / "index"
    build(run_folder, folder, train=first)
    grown = build(run_folder, folder, train=second, append=True)
    assert grown.rows == len(tiny.FACTS)
    at_once = build(run_folder, tmp_path / "whole")
    for keep in (None, 4):
        one = hw.trace_index(grown, QUERIES, methods=[hw.DDA(beta=0.2)], limit=keep)["dda"]
        two = hw.trace_index(at_once, QUERIES, methods=[hw.DDA(beta=0.2)], limit=keep)["dda"]
        np.testing.assert_allclose(one.values, two.values, atol=1e-3 * np.abs(two.values).max())
    with pytest.raises(hw.RunError, match=r"in .* already"):
        build(run_folder, folder, train=second, append=True)
    with pytest.raises(hw.DataError, match="is in the index already"):
        build(run_folder, folder, train=hw.Examples.from_rows(tiny.FACTS[2:], name="first"), append=True)
    with pytest.raises(hw.RunError, match="compute"):
        third = hw.Examples.from_rows(tiny.FACTS, name="third")
        build(run_folder, folder, train=third, append=True, compute=replace(COMPUTE, rank=5))
    assert hw.Index.open(folder).rows == len(tiny.FACTS)


@pytest.mark.parametrize("keep", [1, 3, 1000])
def test_kept_ends_are_the_ends_of_all_scores(index: hw.Index, tmp_path: Path, keep: int) -> None:
    methods = [hw.DDA(inner="layer_cosine", beta=0.3), hw.TracIn()]
    all_of = hw.trace_index(index, QUERIES, methods=methods)
    ends = hw.trace_index(index, QUERIES, methods=methods, limit=keep, out=tmp_path / "trace")
    for method in methods:
        whole, kept = all_of[method.name], ends[method.name]
        assert kept.rows == len(TRAIN)
        for target in range(len(whole.targets)):
            for opposing in (False, True):
                wanted = whole.top(keep, target=target, opposing=opposing)
                found = kept.top(keep, target=target, opposing=opposing)
                assert [row.number for row in found] == [row.index for row in wanted]
                assert [(r.id, r.score, r.percentile, r.per_checkpoint) for r in found] == [
                    (r.id, r.score, r.percentile, r.per_checkpoint) for r in wanted
                ]
                assert [r.deviations for r in found] == pytest.approx([r.deviations for r in wanted])
            assert kept.sentences(target) == whole.sentences(target)
    back = hw.Scores.load(tmp_path / "trace", ends["dda"].train)
    assert [r.percentile for r in back.top(3)] == [r.percentile for r in ends["dda"].top(3)]
    if keep < len(TRAIN) / 2:
        with pytest.raises(hw.DataError, match="only the highest and lowest"):
            ends["dda"].reweighted({"base": 0.0})


def test_keeping_ends_samples_chunks(index: hw.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "SAMPLE_ROWS", 6)
    kept = hw.trace_index(index, QUERIES, methods=[hw.DDA(inner="layer_cosine", beta=0.3)], limit=2)["dda"]
    assert kept.population is not None
    assert 0 < kept.population.sample.shape[1] < len(TRAIN)
    whole = hw.trace_index(index, QUERIES, methods=[hw.DDA(inner="layer_cosine", beta=0.3)])["dda"]
    assert [r.id for r in kept.top(2)] == [r.id for r in whole.top(2)]


def test_models_are_compared_with_those_of_the_index(run_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    built = build(moved, tmp_path / "index")
    shutil.move(moved, tmp_path / "elsewhere")
    with pytest.raises(hw.ModelError, match="was moved"):
        hw.trace_index(built, QUERIES, methods=[hw.DDA(beta=0)])
    here = run_of(tmp_path / "elsewhere")
    found = hw.trace_index(built, QUERIES, methods=[hw.DDA(beta=0)], run=here)["dda"]
    assert found.values.any()
    with pytest.raises(hw.UsageError, match="2 models"):
        hw.trace_index(built, QUERIES, methods=[hw.DDA(beta=0)], run=replace(here, base=None))
    weights = tmp_path / "elsewhere" / "base" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(hw.ModelError, match="is not the base"):
        hw.trace_index(built, QUERIES, methods=[hw.DDA(beta=0)], run=run_of(tmp_path / "elsewhere"))


def test_what_an_index_cannot_answer_is_refused(index: hw.Index) -> None:
    for method in (hw.CEA(form="difference"), hw.RepresentationSimilarity()):
        with pytest.raises(hw.UsageError, match="from an index"):
            hw.trace_index(index, QUERIES, methods=[method])
    with pytest.raises(hw.UsageError, match="with --limit"):
        hw.trace_index(index, QUERIES, methods=[hw.BM25()], limit=3)
    with pytest.raises(hw.UsageError, match="a limit of 0"):
        hw.trace_index(index, QUERIES, methods=[hw.DDA()], limit=0)


def test_an_index_on_a_remote_filesystem(run_folder: Path, index: hw.Index) -> None:
    remote = build(run_folder, "memory://an-index")
    one = hw.trace_index(remote, QUERIES, methods=[hw.DDA(beta=0)])["dda"].values
    two = hw.trace_index(index, QUERIES, methods=[hw.DDA(beta=0)])["dda"].values
    assert np.array_equal(one, two)
    with pytest.raises(hw.RunError, match="other arguments"):
        build(run_folder, "memory://an-index", features="int8")


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_device_map_changes_no_byte(
    run_folder: Path, lora_folder: Path, tmp_path: Path, device_map: Any, adapters: bool
) -> None:
    """On the one device that there is; tests/gradients/test_two_devices.py has two."""
    folder = lora_folder if adapters else run_folder
    plain = build(folder, tmp_path / "plain")
    spread = build(folder, tmp_path / "spread", compute=replace(COMPUTE, device_map=device_map))
    assert contents(tmp_path / "spread") == contents(tmp_path / "plain")
    one, two = (
        hw.trace_index(spread, QUERIES, methods=[hw.DDA(beta=0)], device_map=device_map)["dda"],
        hw.trace_index(plain, QUERIES, methods=[hw.DDA(beta=0)])["dda"],
    )
    assert np.array_equal(one.values, two.values)


def test_a_device_map_that_cannot_be_used_is_refused(run_folder: Path, tmp_path: Path) -> None:
    offloaded = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(hw.ModelError, match="offload"):
        build(run_folder, tmp_path / "index", compute=replace(COMPUTE, device_map=offloaded))
    assert not (tmp_path / "index").exists()
    with pytest.raises(hw.UsageError, match="auto, balanced"):
        hw.Compute(device_map="somehow")
    for other in ({"device": "cpu"}, {"engine": "auto"}):
        with pytest.raises(hw.UsageError, match="a device map with"):
            hw.Compute(device_map="auto", **other)


def test_a_manifest_of_another_version_is_refused(tmp_path: Path, index: hw.Index) -> None:
    for text, found in (("{}", "cannot be read"), ("nonsense", "cannot be read"), (json.dumps({"format": 9}), "9")):
        folder = tmp_path / str(len(text))
        folder.mkdir()
        (folder / "manifest.json").write_text(text)
        with pytest.raises(hw.RunError, match=found):
            hw.Index.open(folder)


def test_an_error_before_the_first_chunk_leaves_nothing_behind(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(hw.ModelError, match="no linear layer matches"):
        build(run_folder, tmp_path / "index", compute=replace(COMPUTE, parameters=("nothing",)))
    assert not (tmp_path / "index").exists()
    assert building.DEFAULT_RANK > 1

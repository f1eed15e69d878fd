"""Batches that fit in memory, and half precision that is used only where it gives the same scores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from headwater.attribution import measuring
from headwater.attribution.models import Place
from headwater.gradients.layers import select_layers

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
QUERIES = [
    hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.", id="a"),
    hw.Query("The capital of Peru is", " Lima.", id="b"),
]


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


def place_of(architecture: str) -> Place:
    model = tiny.model(architecture)
    return Place("made", model, select_layers(model).layers, torch.float64)


def test_saved_bytes_grow_with_the_tokens_and_leave_the_weights_out() -> None:
    place = place_of("llama")
    short, long = tiny.rows(((16, 15), (64, 63)))
    one, four = measuring._saved_bytes(place, short), measuring._saved_bytes(place, long)
    # activations of every linear layer's input at the very least, in float64
    inputs = sum(layer.in_features for layer in place.layers) * 8
    assert one > inputs * 16 / 3  # q, k and v read the same tensor, and so do gate and up
    assert 3.5 * one < four < 5 * one


def test_batches_shrink_to_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    place, rows = place_of("llama"), tiny.rows(((32, 31), (8, 3)))
    per_token = measuring._saved_bytes(place, rows[0]) / 32
    assert measuring.tokens_that_fit(place, rows, 2048) == 2048
    monkeypatch.setattr(measuring, "free_bytes", lambda device: int(200 * per_token / measuring.MEMORY_SHARE) + 1)
    assert measuring.tokens_that_fit(place, rows, 2048) == 192
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 0)
    assert measuring.tokens_that_fit(place, rows, 2048) == 64


def test_free_memory_is_known_here() -> None:
    assert 1 << 20 < measuring.free_bytes(torch.device("cpu")) < 1 << 62


def test_what_was_measured_is_kept(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(run_folder)
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 0)
    hw.build_index(run, TRAIN, out=tmp_path / "index")
    kept = tmp_path / "index" / "parts" / "000" / "measured.json"
    assert json.loads(kept.read_text()) == {"batch_tokens": 64, "half": None}
    first = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(beta=0), out=tmp_path / "out")
    assert "batches of 64 tokens" in first.provenance["notes"]["batch_tokens"]
    monkeypatch.setattr(measuring, "tokens_that_fit", None)
    again = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(beta=0), out=tmp_path / "out")
    assert np.array_equal(first.values, again.values)
    (tmp_path / "index" / "manifest.json").unlink()
    hw.build_index(run, TRAIN, out=tmp_path / "index")


def test_half_precision_is_checked_and_said(run_folder: Path, tmp_path: Path) -> None:
    half = hw.Compute(dtype="bfloat16")
    scores = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.DDA(beta=0), compute=half)
    assert re.match(r"bfloat16: scores of 12 rows correlate (0\.99|1\.0)", scores.provenance["notes"]["half"])
    hw.build_index(run_of(run_folder), TRAIN, out=tmp_path / "index", compute=half)
    kept = json.loads((tmp_path / "index" / "parts" / "000" / "measured.json").read_text())
    assert measuring.LEAST_CORRELATION < kept["half"] < 1


def test_half_precision_that_changes_the_scores_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = measuring.sample_scores

    def noisy(place: Place, *rest: object) -> object:
        scores = exact(place, *rest)  # type: ignore[arg-type]
        if next(place.model.parameters()).dtype == torch.bfloat16:
            chance = np.random.default_rng(0)
            scores = {k: v + v.std() * chance.normal(size=v.shape) for k, v in scores.items()}
        return scores

    monkeypatch.setattr(measuring, "sample_scores", noisy)
    half = hw.Compute(dtype="bfloat16")
    with pytest.raises(hw.UsageError, match=r"bfloat16 changes the scores: of 12 rows they correlate 0\.\d{3}"):
        hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.DDA(beta=0), compute=half, out=tmp_path / "out")
    with pytest.raises(hw.UsageError, match="bfloat16 changes the scores"):
        hw.build_index(run_of(run_folder), TRAIN, out=tmp_path / "index", compute=half)


def test_a_model_too_large_for_float32_is_used_and_the_answer_says_so(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 0)
    half = hw.Compute(dtype="bfloat16")
    scores = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.DDA(beta=0), compute=half)
    assert scores.provenance["notes"]["half"].startswith("bfloat16 was not checked")


def test_agreement_is_the_smallest_correlation() -> None:
    full = {"dot": np.array([[1.0, 2, 3], [1, 2, 3]])}
    assert measuring.agreement(full, full) == pytest.approx(1.0)  # type: ignore[arg-type]
    half = {"dot": np.array([[1.0, 2, 3], [3, 2, 1]])}
    assert measuring.agreement(full, half) == pytest.approx(-1.0)  # type: ignore[arg-type]
    with pytest.raises(hw.UsageError, match="correlate nan"):
        measuring.refuse_unsafe_half(float("nan"), 3)

"""Traces with curvature, with the rows' gradients kept between passes and without."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.attribution.plan import Method
from headwater.gradients.factors import FactorHooks

COMPUTE = hw.Compute(parameters=(r"layers\.1\.",), batch_tokens=40)
QUERY = hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.")
METHODS: dict[str, Method] = {
    "influence": hw.InfluenceFunction(),
    "datainf": hw.DataInf(rank=4),
    "logra": hw.LoGra(rank=4),
    "trackstar": hw.TrackStar(rank=4),
    "trak": hw.TRAK(rank=4),
}
PASSES = {"influence": (3, 2), "datainf": (3, 1), "logra": (2, 1), "trackstar": (3, 2), "trak": (4, 2)}
"""Over the rows, without and with memory."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every batch that ran the model, where their numbers are known."""
    rows: list[int] = []
    real = FactorHooks._run

    def counted(self: Any, batch: Any, consume: Any) -> Any:
        rows.append(batch.shape[0] if batch.numbers or self._kept is not None else 0)
        return real(self, batch, consume)

    monkeypatch.setattr(FactorHooks, "_run", counted)
    return rows


def test_a_method_keeps_the_rank_of_its_own_projection(run_folder: Path) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    train = hw.Examples.from_rows(tiny.FACTS)
    methods = [hw.DDA(), hw.TRAK(rank=4), hw.TrackStar(rank=2), hw.LoGra(rank=3)]
    others = [dataclasses.replace(COMPUTE, rank=rank) for rank in (3, 8)]
    one, other = (hw.trace_all(run, train, [QUERY], methods=methods, compute=compute) for compute in others)
    assert not np.allclose(one["dda"].values, other["dda"].values)
    for method in methods[1:]:
        alone = hw.trace(run, train, [QUERY], method=method, compute=COMPUTE).values
        assert one[method.name].values == pytest.approx(alone, rel=1e-4)
        assert other[method.name].values == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_memory_changes_the_passes_and_not_a_bit_of_the_scores(
    name: str, run_folder: Path, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.attribution.loop.CHUNK_BATCHES", (1, 1))
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    train = hw.Examples.from_rows(tiny.FACTS)
    found, counts = [], []
    for memory in (0, 1 << 15, 1 << 30):
        ran.clear()
        compute = dataclasses.replace(COMPUTE, row_memory=memory)
        found.append(hw.trace(run, train, [QUERY], method=METHODS[name], compute=compute).values)
        counts.append(sum(ran))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert found[0].std() > 0
    assert (counts[0] / len(train), counts[2] / len(train)) == PASSES[name]
    assert counts[2] <= counts[1] <= counts[0]


def test_self_influence_reads_what_was_kept(run_folder: Path, ran: list[int]) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    train = hw.Examples.from_rows(tiny.FACTS)
    found, counts = [], []
    for memory in (0, 1 << 30):
        ran.clear()
        compute = dataclasses.replace(COMPUTE, row_memory=memory)
        found.append(hw.self_influence(run, train, method=hw.LoGra(rank=4), compute=compute).values)
        counts.append(sum(ran))
    assert np.array_equal(found[0], found[1])
    assert counts[0] == 2 * counts[1]


def test_the_note_says_what_was_kept(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("headwater.progress.note", said.append)
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    hw.trace(run, hw.Examples.from_rows(tiny.FACTS), [QUERY], method=hw.LoGra(rank=4), compute=COMPUTE)
    assert sum("rows were kept in memory" in one and "50% did without the model" in one for one in said) == 1

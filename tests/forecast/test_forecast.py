"""Forecasts: shapes, devices, the model of the cost against what can be counted, and against the committed runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from headwater.errors import ModelError, UsageError
from headwater.forecast.cost import Cluster, Work, forecast, measured, row_flops
from headwater.forecast.devices import GPUS, gpus, number
from headwater.forecast.shapes import KNOWN, ModelShape
from headwater.gradients.layers import select_layers
from headwater.gradients.projection import Projection

WORK = Work(rows=1000, tokens=40, targets=20, checkpoints=2)


def test_the_shape_of_a_folder_is_that_of_its_model(run_folder: Path) -> None:
    shape = ModelShape.of_folder(run_folder / "base")
    model = tiny.model("llama")
    layers = select_layers(model).layers
    assert shape.layers == tuple((one.in_features, one.out_features) for one in layers)
    assert shape.ranks(3) == [(one.rank_in, one.rank_out) for one in Projection.of(layers, 3).layers]
    assert shape.ranks(10_000) == [(one.rank_in, one.rank_out) for one in Projection.of(layers, 10_000).layers]
    with pytest.raises(ModelError, match=r"no config\.json"):
        ModelShape.of_folder(run_folder)


@pytest.mark.parametrize("known", KNOWN)
def test_known_sizes_are_what_their_names_say(known: object) -> None:
    name, size = known.name.rsplit("-", 1)  # type: ignore[attr-defined]
    assert known.parameters == pytest.approx(number(size, name), rel=0.24)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1e8, 7e8, 7e9, 2e10, 7e10, 1e12])
def test_a_size_gives_a_model_of_about_that_size(size: float) -> None:
    shape = ModelShape.of_size(size)
    assert shape.parameters == size
    assert 0.5 * size < shape.traced + 2 * shape.vocabulary * shape.hidden < 2 * size


def test_flops_are_those_that_torch_counts(run_folder: Path) -> None:
    """Of a forward pass of the layers and the head; the backward pass of activations costs the same, that of attention
    twice as much."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    shape, tokens = ModelShape.of_folder(run_folder / "base"), 12
    model = AutoModelForCausalLM.from_pretrained(run_folder / "base", attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    attention = 4 * shape.blocks * shape.attention * tokens**2
    expected = row_flops(shape, tokens, tokens, 4)[0]
    assert expected == pytest.approx(2 * counter.get_total_flops() + attention, rel=0.02)


def test_work_that_doubles_doubles() -> None:
    shape, cluster = ModelShape.of_size(8e9), Cluster(count=8, device=GPUS["h100"])
    work = replace(WORK, rows=1_000_000, dtype="bfloat16")
    once, twice = (forecast(shape, replace(work, rows=work.rows * n), cluster) for n in (1, 2))
    assert twice.flops == 2 * once.flops
    assert twice.store_bytes == pytest.approx(2 * once.store_bytes, rel=1e-3)
    assert twice.device_hours == pytest.approx(2 * once.device_hours, rel=0.02)
    more = forecast(shape, work, replace(cluster, count=16))
    assert more.wall_hours - more.host_hours == pytest.approx((once.wall_hours - once.host_hours) / 2, rel=0.05)
    assert forecast(shape, replace(work, base=False), cluster).passes == once.passes - 1


def test_a_large_model_is_spread_and_pays_for_it() -> None:
    shape, work = ModelShape.of_size(7e10), replace(WORK, dtype="bfloat16", tokens=300)
    found = forecast(shape, work, Cluster(count=64, device=GPUS["h100"]))
    assert found.per_model >= 2 and found.device_bytes < GPUS["h100"].memory
    assert found.device_bytes > 2 * 7e10 / found.per_model
    with pytest.raises(UsageError, match="room for"):
        forecast(shape, work, Cluster(count=1, device=GPUS["h100"]))


@pytest.mark.parametrize(
    ("text", "value"), [("70B", 7e10), ("10M", 1e7), ("1.5e6", 1.5e6), ("2_000", 2000), ("8k", 8e3)]
)
def test_numbers(text: str, value: float) -> None:
    assert number(text, "--rows") == value


@pytest.mark.parametrize("text", ["", "many", "-3", "0", "1e999", "nan", "7Q", "1.2.3", "0x10", "٣"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rows"):
        number(text, "--rows")


def test_gpus() -> None:
    assert gpus("64xH100") == (64, GPUS["h100"])
    assert gpus("rtx4090")[0] == 1
    count, device = gpus("8xmine", flops="400T", memory="64G")
    assert (count, device.bfloat16, device.memory) == (8, 4e14, 6.4e10)
    for text in ("0xH100", "64x", "H1000", "x", "9999999999xH100"):
        with pytest.raises(UsageError):
            gpus(text)
    with pytest.raises(UsageError, match="--gpu-memory"):
        gpus("mine", flops="400T")


def test_the_committed_runs_are_near_their_forecasts() -> None:
    """Bytes to a per cent, activations to a tenth, CPU time to a factor of two: on a machine that others use."""
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "plan.json"
    record = json.loads(results.read_text())
    assert record["constants"] == measured()["constants"]
    for run in record["table"]:
        ratios = {name: one["ratio"] for name, one in run["quantities"].items()}
        assert ratios["index, MB"] == pytest.approx(1, abs=0.01), run["name"]
        assert ratios["activations of a token, kB"] == pytest.approx(1, abs=0.1), run["name"]
        assert 0.5 < ratios["build, CPU s"] < 2, run["name"]

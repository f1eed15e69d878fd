"""The cost model of an index and of a query.

FLOPs of one row of t tokens, k of them counted by the loss, at one checkpoint; P parameters of the traced layers,
B blocks, H hidden size, V vocabulary; layer l has I_l inputs and O_l outputs, r_l and s_l after the projection:

    layers       2 t P forward, 2 t P backward (activations only; 2 t P more with --recompute)
    attention    4 B H t^2 forward, 8 B H t^2 backward; the whole square is counted
    head         2 k V H forward, 2 k V H backward
    projection   2 t sum_l (I_l r_l + O_l s_l) + 2 t sum_l r_l s_l, always in float32

    seconds of a build = FLOPs / rate + layer calls x overhead + rows x handling + stored bytes / write rate
                         + bytes of models / load rate + start

On a CPU the rate and all other constants are measured (`measured.json`, by benchmarks/plan.py). On a GPU the rate is
the data sheet's peak times a stated utilisation, an assumption until it is measured there; handling of rows happens on
the host, in one process, and is the CPU's. Status D: derived by us.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headwater.errors import UsageError
from headwater.forecast.devices import Device
from headwater.forecast.shapes import ModelShape

MEASURED = Path(__file__).with_name("measured.json")
UTILISATION = 0.35
"""Share of a GPU's peak that a pass reaches: assumed."""

BATCH_TOKENS = {"cpu": 2048, "gpu": 16384}
MEMORY_SHARE = 0.4  # of what is free beside the model, for the activations of a batch
CHUNK_BYTES, CHUNK_ROWS = 32 << 20, 1024
BYTES = {"float32": 4, "bfloat16": 2, "float64": 8, "float16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done.

    Attributes:
        checkpoints: fine-tuned ones. base: whether the base model is visited too.
        tokens: of a row on average. targets: of these, counted by the loss.
        rank, features, dtype, recompute: as `headwater index` takes them.
    """

    rows: int
    tokens: float
    targets: float
    checkpoints: int
    base: bool = True
    rank: int = 16
    features: str = "float16"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.rows < 1 or self.tokens < 1 or self.checkpoints < 1 or self.rank < 1:
            raise UsageError(
                f"{self.rows} rows of {self.tokens:g} tokens at {self.checkpoints} checkpoints, rank {self.rank}",
                expected="at least 1 of each",
                fix="correct them",
            )
        if not 0 < self.targets <= self.tokens:
            raise UsageError(
                f"{self.targets:g} targets in rows of {self.tokens:g} tokens",
                expected="some of the tokens",
                fix="correct --targets-per-row",
            )

    @property
    def passes(self) -> int:
        """Passes over the rows: one for each checkpoint, and for the base."""
        return self.checkpoints + self.base


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What it is done with; no device: CPU threads. The devices of a model that does not fit on one work one after the
    other.

    Attributes:
        count: devices, or threads. utilisation: share of a device's peak.
        read: bytes per second that all readers of the store together read, or None: what is measured from memory.
    """

    count: int = 1
    device: Device | None = None
    utilisation: float = UTILISATION
    read: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise UsageError(f"a utilisation of {self.utilisation}", expected="above 0, at most 1", fix="correct it")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What it would cost.

    Attributes:
        passes: over the rows. flops: of the whole build.
        device_hours: of all devices together (of threads without a GPU). wall_hours: with all of them, evenly busy,
            reading of the rows included. host_hours: of that, one process reading rows and making tokens.
        per_model: devices that hold one model. batch_tokens: tokens of a batch.
        device_bytes: memory of each device. host_bytes: memory for rows and tokens where the build was started.
        store_bytes: of the index. row_numbers: numbers of a row at one checkpoint. chunk_rows: rows of a chunk.
        query_seconds: of one question, models loaded and whole store read.
        scan_seconds: of that, reading and multiplying the store.
    """

    passes: int
    flops: float
    device_hours: float
    wall_hours: float
    host_hours: float
    per_model: int
    batch_tokens: int
    device_bytes: float
    host_bytes: float
    store_bytes: int
    row_numbers: int
    chunk_rows: int
    query_seconds: float
    scan_seconds: float


@cache
def measured() -> dict[str, Any]:
    """The constants, with the machine and the command that measured them."""
    found: dict[str, Any] = json.loads(MEASURED.read_text("utf-8"))
    return found


def row_flops(shape: ModelShape, tokens: float, targets: float, rank: int) -> tuple[float, float]:
    """FLOPs of one row at one checkpoint: of the model, and of the projection."""
    model = 4 * tokens * shape.traced + 12 * shape.blocks * shape.attention * tokens**2
    model += 4 * targets * shape.vocabulary * shape.hidden
    sides = zip(shape.layers, shape.ranks(rank), strict=True)
    projection = sum(inputs * r + outputs * s + r * s for (inputs, outputs), (r, s) in sides)
    return model, 2 * tokens * projection


def forecast(shape: ModelShape, work: Work, cluster: Cluster, constants: dict[str, Any] | None = None) -> Forecast:
    """What an index of this work costs, and a question to it.

    Args:
        constants: measured ones; by default those of the package.

    Raises:
        UsageError: the model does not fit on all devices together.
    """
    found = constants or measured()["constants"]
    numbers = sum(r * s for r, s in shape.ranks(work.rank))
    row_bytes = numbers * BYTES[work.features] + 4 * len(shape.layers) * (2 if work.features == "int8" else 1) + 4
    chunk_rows = min(work.rows, CHUNK_ROWS, max(1, CHUNK_BYTES // row_bytes))
    store = -(-work.rows // chunk_rows) * (chunk_rows * row_bytes + 4 * (4 if work.features == "int8" else 3))
    kept = found["kept_per_output"] * shape.outputs * BYTES[work.dtype]  # bytes a token
    weights = shape.parameters * BYTES[work.dtype]
    buffer = 3.0 * chunk_rows * numbers * 4  # a chunk that is made, one that is encoded, one that waits
    per_model, batch = 1, BATCH_TOKENS["cpu"]
    if cluster.device is not None:
        per_model, batch = _fit(shape, work, cluster, weights, kept, buffer)
    model_flops, projection_flops = row_flops(shape, work.tokens, work.targets, work.rank)
    visited = work.rows * work.passes
    flops = visited * (model_flops + projection_flops)
    host = work.rows * (found["row_seconds"] + found["token_seconds"] * work.tokens) + found["start_seconds"]
    loads = work.passes * weights / found["load_bytes_per_second"]
    batches = math.ceil(work.rows * work.tokens / batch) * work.passes
    if cluster.device is None:
        seconds = flops / found["flops_per_second"] + batches * len(shape.layers) * found["call_seconds"]
        seconds += work.passes * store / work.passes / found["write_bytes_per_second"]
        wall = (seconds + loads) / cluster.count + host
        seconds += loads + host
    else:
        rate = getattr(cluster.device, "bfloat16" if work.dtype == "bfloat16" else "float32") * cluster.utilisation
        seconds = visited * (
            model_flops / rate + projection_flops / (cluster.device.float32 * cluster.utilisation)
        )  # of one model at work
        seconds *= per_model  # layer by layer: the devices of a model work one after the other
        models = max(1, cluster.count // per_model)
        seconds += loads * models * per_model  # every worker loads every model
        wall = seconds / (models * per_model) + host
    stored = store * work.passes
    scan = stored / (cluster.read or found["score_bytes_per_second"]) + work.passes * found["score_store_seconds"]
    return Forecast(
        passes=work.passes,
        flops=flops,
        device_hours=seconds / 3600,
        wall_hours=wall / 3600,
        host_hours=host / 3600,
        per_model=per_model,
        batch_tokens=batch,
        device_bytes=(weights + kept * batch) / per_model + buffer,
        host_bytes=work.rows * (found["host_bytes_per_row"] + found["host_bytes_per_token"] * work.tokens),
        store_bytes=stored,
        row_numbers=numbers,
        chunk_rows=chunk_rows,
        query_seconds=scan + loads + found["start_seconds"],
        scan_seconds=scan,
    )


def _fit(
    shape: ModelShape, work: Work, cluster: Cluster, weights: float, kept: float, buffer: float
) -> tuple[int, int]:
    """Devices that hold one model, and tokens of a batch beside it: as few devices as leave room for a row of twice
    the average length."""
    assert cluster.device is not None
    for devices in range(1, min(cluster.count, shape.blocks) + 1):
        free = cluster.device.memory * 0.95 - weights / devices - buffer
        tokens = MEMORY_SHARE * free * devices / kept
        if free > 0 and tokens >= 2 * work.tokens:
            most = BATCH_TOKENS["gpu"]
            return devices, most if tokens >= most else max(64, int(tokens) // 64 * 64)
    raise UsageError(
        f"a model of {shape.parameters / 1e9:.3g}B parameters in {work.dtype} on {cluster.count} x "
        f"{cluster.device.name}",
        expected=f"room for {weights / 1e9:,.0f} GB of weights and the activations of a row",
        fix="give more --gpus, or --dtype bfloat16",
    )

"""How gradients are computed: precision, device, batches, projection.

What it means on this machine is in `models.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headwater.errors import UsageError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which accelerate spreads layers over devices."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How gradients are computed. Only `parameters` and `max_new_tokens` change what is computed;
    the rest is rounding, speed and memory.

    Attributes:
        parameters: regular expressions of the linear layers whose gradients are taken; none: all linear layers of
            the model's blocks, without embeddings and output head.
        dtype: of the models. Half precision multiplies gradients in float32, and is refused where the scores of a few
            rows differ from those in float32.
        device: "auto": the first accelerator, or else the CPU.
        device_map: spreads the layers of a model over the accelerators of this machine, for models that are larger than
            one: accelerate's "auto", "balanced", "balanced_low_0" or "sequential", or module name -> device. All of the
            model must fit. Factors are brought to the first layer's device.
        batch_tokens: tokens of a batch, padding included. None: 2,048 on a CPU, 16,384 on an accelerator,
            fewer where the activations of so many do not fit in memory.
        query_memory: bytes for the gradients of the queries; more queries go in several passes.
        row_memory: bytes for gradients of rows that several passes at one checkpoint read (curvature, then scores): as
            many as fit are made once. Never more than four tenths of the memory that is free; 0 keeps none.
        max_new_tokens: of an output that the last checkpoint generates where a query has none.
        rank: project every layer's gradients to rank x rank numbers; None: exact. A method that projects to a rank of
            its own (`TRAK.rank`) keeps that. seed: of the projections.
        contraction: "auto": for each layer and batch the form that costs least; or always one form. All give the
            same number.
        recompute: activation checkpointing: less memory, one more forward pass.
        engine: "gradient": exact inner products of gradients. "directional": dot products as central differences of
            losses, two forward passes per query (or group) and checkpoint, without a gradient of any row; to about
            three digits. "auto": the cheaper of the two, where both can.
    """

    parameters: tuple[str, ...] = ()
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    device: str = "auto"
    device_map: str | Mapping[str, int | str] | None = None
    batch_tokens: int | None = None
    query_memory: int = 4 << 30
    row_memory: int = 4 << 30
    max_new_tokens: int = 32
    rank: int | None = None
    seed: int = 0
    contraction: Literal["auto", "factored", "applied", "materialised"] = "auto"
    recompute: bool = False
    engine: Literal["gradient", "directional", "auto"] = "gradient"

    def __post_init__(self) -> None:
        for pattern in self.parameters:
            try:
                re.compile(pattern)
            except (re.error, RecursionError) as error:
                raise UsageError(
                    f"parameters {pattern!r} ({error})", expected="a regular expression", fix="correct it, or escape it"
                ) from None
        if self.contraction not in ("auto", "factored", "applied", "materialised"):
            raise UsageError(
                f"contraction {self.contraction!r}",
                expected="auto, factored, applied or materialised",
                fix="choose one of them",
            )
        if self.engine not in ("gradient", "directional", "auto"):
            raise UsageError(
                f"engine {self.engine!r}", expected="gradient, directional or auto", fix="choose one of them"
            )
        if isinstance(self.device_map, str) and self.device_map not in DEVICE_MAPS:
            raise UsageError(
                f"device_map {self.device_map!r}", expected=", ".join(DEVICE_MAPS), fix="choose one of them"
            )
        if self.device_map is not None and (self.device != "auto" or self.engine != "gradient"):
            raise UsageError(
                "a device map with " + (f"the device {self.device}" if self.device != "auto" else "another engine"),
                expected="the one or the other",
                fix="leave --device and --engine out, or --device-map",
            )
        if self.engine == "directional" and (self.rank is not None or self.dtype == "bfloat16"):
            raise UsageError(
                "the directional engine with " + ("a projection" if self.rank is not None else "bfloat16"),
                expected="differences of losses in float32 or float64, which no projection makes smaller",
                fix="leave --rank out and use --dtype float32, or --engine gradient",
            )
        if self.dtype not in ("float32", "float64", "bfloat16"):
            raise UsageError(
                f"dtype {self.dtype!r}",
                expected="float32, float64 or bfloat16",
                cause="float16 overflows in gradients",
                fix="choose one of them",
            )
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UsageError(f"batch_tokens={self.batch_tokens}", expected="at least 1", fix="leave it out")

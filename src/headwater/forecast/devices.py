"""What computes: known GPUs by their makers' data sheets, or one thread of the measured CPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headwater.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of device.

    Attributes:
        bfloat16, float32: peak dense FLOP/s of matrix products, by the data sheet; tensor cores in float32 (TF32) are
            not used. memory: bytes.
    """

    name: str
    bfloat16: float
    float32: float
    memory: float


GPUS = {
    device.name.lower(): device
    for device in (
        Device(name="A10", bfloat16=125e12, float32=31.2e12, memory=24e9),
        Device(name="A100-40GB", bfloat16=312e12, float32=19.5e12, memory=40e9),
        Device(name="A100", bfloat16=312e12, float32=19.5e12, memory=80e9),
        Device(name="L4", bfloat16=121e12, float32=30.3e12, memory=24e9),
        Device(name="L40S", bfloat16=362e12, float32=91.6e12, memory=48e9),
        Device(name="RTX3090", bfloat16=71e12, float32=35.6e12, memory=24e9),
        Device(name="RTX4090", bfloat16=165e12, float32=82.6e12, memory=24e9),
        Device(name="H100", bfloat16=989e12, float32=67e12, memory=80e9),
        Device(name="H200", bfloat16=989e12, float32=67e12, memory=141e9),
        Device(name="B200", bfloat16=2250e12, float32=75e12, memory=180e9),
        Device(name="MI250X", bfloat16=383e12, float32=47.9e12, memory=128e9),
        Device(name="MI300X", bfloat16=1307e12, float32=163.4e12, memory=192e9),
    )
}

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15}


def number(text: str, option: str) -> float:
    """A number such as 70B, 10M, 1.5e6 or 80G.

    Raises:
        UsageError: something else, or not above 0.
    """
    found = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?)([kmgbtp]?)", text.strip().lower())
    value = float(found[1].replace(",", "").replace("_", "")) * _UNITS[found[2]] if found else 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{option} {text}", expected="a number such as 70B, 10M or 250000", fix=f"correct {option}")
    return value


def gpus(text: str, *, flops: str | None = None, memory: str | None = None) -> tuple[int, Device]:
    """How many, and of which kind, of "64xH100" or "H100".

    Args:
        flops, memory: of a kind that is not in the table: peak bfloat16 FLOP/s, and bytes.

    Raises:
        UsageError: not of that form, or an unknown kind without both numbers.
    """
    found = re.fullmatch(r"(?:(\d{1,7})\s*x\s*)?([\w.-]+)", text.strip(), re.IGNORECASE)
    count = int(found[1] or 1) if found else 0
    if found is None or count < 1:
        raise UsageError(f"--gpus {text}", expected="a number and a kind, such as 64xH100", fix="correct --gpus")
    known = GPUS.get(found[2].lower())
    if flops is not None:
        peak = number(flops, "--gpu-flops")
        if memory is None and known is None:
            raise UsageError(
                f"--gpu-flops without --gpu-memory for {found[2]}",
                expected="both",
                fix="give --gpu-memory, such as 80G",
            )
        least = known.float32 * peak / known.bfloat16 if known else peak / 16
        return count, Device(
            name=found[2],
            bfloat16=peak,
            float32=least,
            memory=number(memory, "--gpu-memory") if memory else known.memory if known else 0.0,
        )
    if known is None:
        raise UsageError(
            f"the GPU {found[2]}",
            expected=f"one of {', '.join(device.name for device in GPUS.values())}",
            fix="choose one of them, or give --gpu-flops and --gpu-memory",
        )
    if memory is not None:
        known = Device(
            name=known.name,
            bfloat16=known.bfloat16,
            float32=known.float32,
            memory=number(memory, "--gpu-memory"),
        )
    return count, known

"""What is measured on the models themselves before the passes over the rows: how many tokens fit in memory at once,
and whether half precision gives the same scores here.

Shapes: S sides, N rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from headwater.errors import UsageError
from headwater.examples import Encoded
from headwater.gradients.batches import collate, length_buckets
from headwater.gradients.contraction import side_gradients
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.measurement import InnerProduct

if TYPE_CHECKING:
    from headwater.attribution.models import Place

MEMORY_SHARE = 0.4
"""Of the memory that is free beside the model, what the activations of a batch may take."""

CHECKED_ROWS, CHECKED_SIDES, LEAST_CORRELATION = 24, 4, 0.99
"""Half precision is used where the scores of so many rows correlate so well with those in float32."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: of the accelerator, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:
            return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
        except (ValueError, OSError, AttributeError):  # no way to know
            return 1 << 62


def tokens_that_fit(place: Place, encoded: Sequence[Encoded], most: int) -> int:
    """Tokens of a batch: `most`, or fewer where activations of so many would not fit beside the model.

    The activations that one long row keeps for its backward pass are counted, not guessed.
    """
    rows = [one for one in encoded if one.targets]
    probe = max(rows, key=lambda row: min(row.length, most))
    per_token = _saved_bytes(place, probe) / probe.length
    fitting = int(MEMORY_SHARE * free_bytes(place.device) / max(1.0, per_token))
    return most if fitting >= most else max(64, fitting // 64 * 64)


def _saved_bytes(place: Place, row: Encoded) -> int:
    """Bytes that a backward pass of one row keeps, without the weights."""
    own = [tensor for tensor in place.model.parameters() if not hasattr(tensor, "to_local")]  # not split over processes
    weights = {tensor.untyped_storage().data_ptr() for tensor in own}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage, whole = tensor.untyped_storage(), tensor if tensor._base is None else tensor._base
        if storage.data_ptr() not in weights and not isinstance(whole, torch.nn.Parameter):
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = place.hooks()
    batch = collate([row], place.device, place.precision)
    with hooks.attached(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hooks.backward(batch, lambda number, a_BTI, d_BTO: None)
    return sum(seen.values())


def sample_scores(
    place: Place, rows: Sequence[Encoded], sides: Sequence[Encoded], inners: Sequence[InnerProduct], batch_tokens: int
) -> dict[InnerProduct, np.ndarray]:
    """Scores of a few rows for a few sides [S, N], by each inner product."""
    products = tuple(Product("loss", inner, "here") for inner in sorted(inners))
    hooks = place.hooks(trim="token_cosine" not in inners)
    stored = side_gradients(hooks, sides, batch_tokens=batch_tokens, lengths=[float(rows[0].length)])
    contractor = Contractor({"here": stored}, {"loss": np.eye(len(sides))}, products)
    out = {product.inner: np.zeros((len(sides), len(rows))) for product in products}
    with hooks.attached():
        for numbers in length_buckets([row.length for row in rows], batch_tokens):
            batch = collate([rows[n] for n in numbers], place.device, place.precision)
            for product, value in contractor(hooks, batch)[0].items():
                out[product.inner][:, numbers] = value.double().cpu().numpy()
    return out


def sampled(encoded: Sequence[Encoded], count: int) -> list[Encoded]:
    """So many rows with targets, evenly spaced."""
    rows = [one for one in encoded if one.targets]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[n] for n in chosen]


def agreement(full: Mapping[InnerProduct, np.ndarray], half: Mapping[InnerProduct, np.ndarray]) -> float:
    """The smallest correlation over sides and inner products."""
    found = []
    for inner, exact_SN in full.items():
        for exact_N, other_N in zip(exact_SN, half[inner], strict=True):
            spread = exact_N.std() > 1e-12 * np.abs(exact_N).max()
            found.append(float(np.corrcoef(exact_N, other_N)[0, 1]) if spread and other_N.std() > 0 else 1.0)
    return min(found, default=1.0)


class UnsafeHalfError(UsageError):
    """Half precision that changes the scores."""


def refuse_unsafe_half(correlation: float, rows: int) -> str:
    """A sentence on half precision that is safe.

    Raises:
        UnsafeHalfError: it is not.
    """
    if not correlation >= LEAST_CORRELATION:
        raise UnsafeHalfError(
            f"bfloat16 changes the scores: of {rows} rows they correlate {correlation:.3f} with those in float32",
            expected=f"at least {LEAST_CORRELATION}",
            cause="gradients of well fitted rows are small differences, which 8 bits do not hold",
            fix="use --dtype float32",
        )
    return f"bfloat16: scores of {rows} rows correlate {correlation:.4f} with those in float32"

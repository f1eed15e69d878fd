"""Rows of tokens to padded tensors.

Shapes: B examples, T input tokens of the longest of them, K targets of all of them, C of one of them (padded).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from headwater.examples import Encoded


@dataclass(frozen=True)
class Batch:
    """Right-padded examples. A causal model needs no token from the last target on, so the inputs end before it.

    Attributes:
        input_ids_BT: int64; padding is 0 and masked.
        attention_BT: int64, 1 at real tokens.
        place_K: b * T + t of the position that predicts a target. target_K: the token to be predicted there.
        weight_K: 1 / (number of targets of the example), so that the weighted sum of token losses is the mean
            negative log-likelihood of the example's own targets, whatever the batch. Its type is that of the sums.
        column_BC: the places of each example, padded with its first position. real_BC: False at padding.
        uniform_K: where labels are sampled from the model, a number in [0, 1) for each target. margin: the loss of a
            token is -log(p / (1 - p)).
        numbers: of the examples among the rows, where they have one: by them a batch is known again in a later pass.
    """

    input_ids_BT: torch.Tensor
    attention_BT: torch.Tensor
    place_K: torch.Tensor
    target_K: torch.Tensor
    weight_K: torch.Tensor
    column_BC: torch.Tensor
    real_BC: torch.Tensor
    uniform_K: torch.Tensor | None = None
    margin: bool = False
    numbers: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        rows, tokens = self.input_ids_BT.shape
        return rows, tokens


Loss = Literal["likelihood", "margin", "sampled"]
"""What an example's gradient is taken of: the mean over its targets of -log p (the loss of training); of
-log(p / (1 - p)) (TRAK's output function); of -log p of labels sampled from the model, each token weighted by
1 / sqrt(targets), so that the mean outer product of such gradients is the Fisher matrix of the mean loss."""


def collate(
    rows: Sequence[Encoded],
    device: torch.device,
    dtype: torch.dtype,
    *,
    whole: bool = False,
    loss: Loss = "likelihood",
    seed: int = 0,
    numbers: Sequence[int] = (),
) -> Batch:
    """Pads rows to one length.

    Args:
        dtype: the type the loss is summed in.
        whole: keep every token of the rows.
        seed: of sampled labels, which depend on it and on the example's own tokens alone.
        numbers: of the examples, by which factors that are kept are found again.
    """
    targets = [np.flatnonzero(row.loss_mask) for row in rows]
    used = [row.length if whole or not len(at) else int(at[-1]) for row, at in zip(rows, targets, strict=True)]
    longest = max(used)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    attention = np.zeros((len(rows), longest), dtype=np.int64)
    for b, (row, length) in enumerate(zip(rows, used, strict=True)):
        ids[b, :length] = row.input_ids[:length]
        attention[b, :length] = 1
    place = np.concatenate([b * longest + at - 1 for b, at in enumerate(targets)])
    token = np.concatenate([row.input_ids[at] for row, at in zip(rows, targets, strict=True)])
    power = 0.5 if loss == "sampled" else 1.0
    weight = np.concatenate([np.full(len(at), max(1, len(at)) ** -power) for at in targets])

    most = max(1, *(len(at) for at in targets))
    column = np.repeat(np.arange(len(rows), dtype=np.int64)[:, None] * longest, most, 1)
    real = np.zeros((len(rows), most), dtype=bool)
    for b, at in enumerate(targets):
        column[b, : len(at)] += at - 1
        real[b, : len(at)] = True

    def moved(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    ends = moved(place), moved(token), moved(weight).to(dtype)
    chance = None
    if loss == "sampled":
        chance = moved(np.concatenate([_uniform(row, len(at), seed) for row, at in zip(rows, targets, strict=True)]))
    return Batch(
        moved(ids), moved(attention), *ends, moved(column), moved(real), chance, loss == "margin", tuple(numbers)
    )


def _uniform(row: Encoded, count: int, seed: int) -> np.ndarray:
    """Numbers in [0, 1) that depend on the seed and the example's tokens alone [count]."""
    digest = hashlib.blake2b(row.input_ids.tobytes(), digest_size=16, key=seed.to_bytes(8, "little"))
    digest.update(row.loss_mask.tobytes())
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little"))).random(count)


def length_buckets(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, at most `tokens` tokens with padding (one row at least).

    Deterministic: sorted by length, then by row number.
    """
    order = np.lexsort((np.arange(len(lengths)), np.asarray(lengths)))
    batch: list[int] = []
    for row in order.tolist():
        if batch and (len(batch) + 1) * lengths[row] > tokens:  # the newest row is the longest
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch

"""Rows of tokens to padded tensors.

Shapes: B examples, T input tokens of the longest of them, K targets of all of them, C of one of them (padded).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """

    input_ids_BT: torch.Tensor
    attention_BT: torch.Tensor
    place_K: torch.Tensor
    target_K: torch.Tensor
    weight_K: torch.Tensor
    column_BC: torch.Tensor
    real_BC: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, tokens = self.input_ids_BT.shape
        return rows, tokens


def collate(rows: Sequence[Encoded], device: torch.device, dtype: torch.dtype, *, whole: bool = False) -> Batch:
    """Pads rows to one length.

    Args:
        dtype: the type the loss is summed in.
        whole: keep every token of the rows.
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
    weight = np.concatenate([np.full(len(at), 1 / max(1, len(at))) for at in targets])

    most = max(1, *(len(at) for at in targets))
    column = np.repeat(np.arange(len(rows), dtype=np.int64)[:, None] * longest, most, 1)
    real = np.zeros((len(rows), most), dtype=bool)
    for b, at in enumerate(targets):
        column[b, : len(at)] += at - 1
        real[b, : len(at)] = True

    def moved(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    ends = moved(place), moved(token), moved(weight).to(dtype)
    return Batch(moved(ids), moved(attention), *ends, moved(column), moved(real))


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

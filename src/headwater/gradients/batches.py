"""Rows of tokens to padded tensors, and the loss every gradient is the gradient of.

Shapes: B examples, T tokens of the longest of them, K positions whose logits are needed, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from headwater.examples import Encoded


@dataclass(frozen=True)
class Batch:
    """Right-padded examples.

    Attributes:
        input_ids_BT: int64; padding is 0 and masked.
        attention_BT: int64, 1 at real tokens.
        weight_BT: float, 1 / (number of targets of the example) at its target tokens, else 0, so that the weighted
            sum of token losses is the mean negative log-likelihood of the example's own targets, whatever the batch.
        scored_K: the positions just before a target of some example.
    """

    input_ids_BT: torch.Tensor
    attention_BT: torch.Tensor
    weight_BT: torch.Tensor
    scored_K: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, tokens = self.input_ids_BT.shape
        return rows, tokens


def collate(rows: Sequence[Encoded], device: torch.device, dtype: torch.dtype) -> Batch:
    """Pads rows to one length; `dtype` is the type the loss is summed in."""
    longest = max(row.length for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    attention = np.zeros((len(rows), longest), dtype=np.int64)
    weight = np.zeros((len(rows), longest), dtype=np.float64)
    for b, row in enumerate(rows):
        ids[b, : row.length] = row.input_ids
        attention[b, : row.length] = 1
        if row.targets:
            weight[b, : row.length] = row.loss_mask / row.targets
    return Batch(
        torch.from_numpy(ids).to(device, non_blocking=True),
        torch.from_numpy(attention).to(device, non_blocking=True),
        torch.from_numpy(weight).to(dtype).to(device, non_blocking=True),
        torch.from_numpy(np.flatnonzero((weight[:, 1:] > 0).any(0))).to(device, non_blocking=True),
    )


def losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean negative log-likelihood of each example's targets, in nats [B].

    l(z) = -1/|targets| sum_t log p(token_t | tokens before t). Logits are computed only at the positions that
    precede a target of some example of the batch, where the model's forward allows it.
    """
    positions_K = batch.scored_K
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids_BT,
        "attention_mask": batch.attention_BT,
        "use_cache": False,
    }
    sliced = can_slice_logits(model)
    if sliced:
        arguments["logits_to_keep"] = positions_K
    logits = model(**arguments).logits
    logits_BKV = logits if sliced else logits[:, positions_K]
    targets_BK = batch.input_ids_BT[:, positions_K + 1]
    weight_BK = batch.weight_BT[:, positions_K + 1]
    logits_BKV = logits_BKV.to(weight_BK.dtype)
    nll_BK = F.cross_entropy(logits_BKV.flatten(0, 1), targets_BK.flatten(), reduction="none").view_as(weight_BK)
    return (nll_BK * weight_BK).sum(1)


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


def can_slice_logits(model: Any) -> bool:
    """Whether the model's forward can leave out logits that nobody needs."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    model_class: type[nn.Module] = type(inner)
    return _takes_logits_to_keep(model_class)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _takes_logits_to_keep(model_class: type[nn.Module]) -> bool:
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters

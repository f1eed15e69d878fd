"""The rows' projected gradients, a chunk at a time.

Shapes: C rows of a chunk, B rows of a batch, F features.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import accumulate

import torch

from headwater import progress
from headwater.attribution.models import Place
from headwater.attribution.passes import halving
from headwater.examples import Encoded
from headwater.gradients.batches import collate, length_buckets


class ChunkGradients:
    """Projected gradients and losses of ranges of rows, in batches of similar length.

    Args:
        encoded: all rows; those without targets have gradient 0.
    """

    def __init__(self, place: Place, encoded: Sequence[Encoded], batch_tokens: int) -> None:
        if place.projection is None:
            raise RuntimeError("an index is made of projected gradients")
        self._place, self._encoded, self._batch_tokens = place, encoded, batch_tokens
        self._ends = list(accumulate((layer.features for layer in place.projection.layers), initial=0))
        self.hooks = place.hooks()

    def __call__(
        self, start: int, stop: int, bar: progress.Bar, left_out: Container[int] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients [C, F] and losses [C] of rows start to stop; the hooks must be attached.

        Args:
            left_out: rows that are not computed: 0 here.
        """
        place, rows = self._place, [row for row in range(start, stop) if self._encoded[row].targets]
        g_CF = torch.zeros(stop - start, self._ends[-1], dtype=place.precision, device=place.device)
        loss_C = torch.zeros(stop - start, dtype=place.precision, device=place.device)
        for bucket in length_buckets([self._encoded[row].length for row in rows], self._batch_tokens):
            whole = [rows[one] for one in bucket]
            batch = [row for row in whole if row not in left_out]
            if batch:
                # processes that share a model must run the same batches: none of them may halve its own
                found = halving(self._batch, batch) if place.crew is None else self._batch(batch)
                at = torch.tensor([row - start for row in batch], device=place.device)
                g_CF[at] = found["gradient"].T
                loss_C[at] = found["loss"]
            bar.advance(sum(self._encoded[row].length for row in whole))
        return g_CF, loss_C

    def _batch(self, batch: Sequence[int]) -> dict[str, torch.Tensor]:
        place, ends = self._place, self._ends
        g_BF = torch.empty(len(batch), ends[-1], dtype=place.precision, device=place.device)

        def consume(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
            g_BF[:, ends[number] : ends[number + 1]] = torch.bmm(d_BTO.mT, a_BTI).flatten(1)

        collated = collate([self._encoded[row] for row in batch], place.device, place.precision)
        losses_B = self.hooks.backward(collated, consume)
        return {"gradient": g_BF.T, "loss": losses_B}

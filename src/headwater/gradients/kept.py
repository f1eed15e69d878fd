"""Factors of the rows that stay in memory from one pass over them to the next.

A method with curvature passes over the rows several times at one checkpoint: to fit, then to score. The weights do not
change in between, so the input activations and output gradients of a batch (`headwater.gradients.factors`) are the same
in every pass. As many batches as fit into a budget of bytes are kept from the first pass, and the later ones read them
instead of running the model; the other batches run it again. A pass hands over the same numbers either way, bit for
bit: what the factors look like is decided by what is planned, never by what fits.

The tensors are those that the backward pass made: nothing is copied, and what layers share is counted once.

Shapes: B examples, T tokens (padded), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch

from headwater.gradients.curvature.options import Source

Consume = Callable[[int, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Passes:
    """What is planned for the rows' gradients of one kind at one checkpoint.

    Attributes:
        count: passes over the rows.
        whole: whether one of them wants every position that is not padding.
    """

    count: int
    whole: bool = False


@dataclass
class KeptBatch:
    """One batch: losses, and the factors in the order in which the layers came."""

    layers: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    losses_B: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    token_losses_K: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    storages: dict[int, int] = field(default_factory=dict)
    """Address of each storage -> its bytes."""

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def add(self, number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
        self.layers.append((number, a_BTI, d_BTO))
        for tensor in (a_BTI, d_BTO):
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()


class Kept:
    """What is kept at one checkpoint.

    Args:
        planned: kind of the rows' gradients -> its passes.
        budget: bytes for all of it; asked for when the first batch is there.

    Attributes:
        held: bytes that are kept now. most: at any time.
        ran: tokens of planned passes that ran the model. read: of those that did not.
    """

    def __init__(self, planned: Mapping[Source, Passes], budget: Callable[[], int]) -> None:
        self._left = {source: passes.count for source, passes in planned.items()}
        self.planned, self._budget = planned, cache(budget)
        self._batches: dict[tuple[Source, tuple[int, ...]], KeptBatch] = {}
        self.held = self.most = self.ran = self.read = 0

    def begin(self, source: Source) -> KeptPass | None:
        """A pass over the rows; None for gradients that no other pass wants. The last one that is planned forgets
        what it reads."""
        if source not in self.planned or self.planned[source].count < 2:
            return None
        self._left[source] -= 1
        return KeptPass(self, source, last=self._left[source] <= 0)

    def fits(self, batch: KeptBatch) -> bool:
        return self.held + batch.bytes <= self._budget()

    def put(self, key: tuple[Source, tuple[int, ...]], batch: KeptBatch) -> None:
        if key not in self._batches:
            self._batches[key] = batch
            self.held += batch.bytes
            self.most = max(self.most, self.held)

    def get(self, key: tuple[Source, tuple[int, ...]], *, forget: bool) -> KeptBatch | None:
        found = self._batches.pop(key, None) if forget else self._batches.get(key)
        if found is not None and forget:
            self.held -= found.bytes
        return found

    def sentence(self) -> str:
        """What came of it; empty where nothing was planned."""
        total = self.ran + self.read
        if not total:
            return ""
        size = f"{self.most / 2**30:.1f} GiB" if self.most >= 2**30 else f"{self.most / 2**20:.1f} MiB"
        return (
            f"gradients of rows were kept in memory, {size} at most: of the tokens of the passes that share them "
            f"{self.read / total:.0%} did without the model"
        )


class KeptPass:
    """One pass over the rows, for `FactorHooks`."""

    def __init__(self, kept: Kept, source: Source, *, last: bool) -> None:
        self._kept, self._source, self._last = kept, source, last

    def find(self, numbers: tuple[int, ...], tokens: int) -> KeptBatch | None:
        """A batch by the numbers of its rows, if it was kept."""
        found = self._kept.get((self._source, numbers), forget=self._last)
        if found is None:
            self._kept.ran += tokens
        else:
            self._kept.read += tokens
        return found

    def record(self, consume: Consume) -> tuple[Consume, KeptBatch | None]:
        """A consumer that also keeps what it is given while that fits, and where it keeps it."""
        if self._last:
            return consume, None
        batch = KeptBatch()
        full = False

        def both(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
            nonlocal full
            if not full:
                batch.add(number, a_BTI, d_BTO)
                if not self._kept.fits(batch):
                    full = True
                    batch.layers.clear()
            consume(number, a_BTI, d_BTO)

        return both, batch

    def put(self, numbers: tuple[int, ...], batch: KeptBatch) -> None:
        """Keeps a batch whose backward pass is done."""
        if batch.layers:
            self._kept.put((self._source, numbers), batch)

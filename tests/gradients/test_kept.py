"""Factors that are kept between passes: the same bits as from the model, within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import tiny
from headwater.gradients.batches import Batch, collate
from headwater.gradients.curvature.options import Source
from headwater.gradients.factors import FactorHooks
from headwater.gradients.kept import Kept, Passes
from headwater.gradients.layers import select_layers
from headwater.gradients.projection import Projection

ROWS = tiny.rows(((9, 4), (5, 2), (12, 11), (7, 1), (9, 8), (3, 2)))
BATCHES = ([0, 1, 2], [3], [4, 5])
SOURCE = Source(rank=0, scaled=False, loss="likelihood")
Seen = list[tuple[int, torch.Tensor, torch.Tensor]]


def batch(numbers: Sequence[int]) -> Batch:
    return collate([ROWS[n] for n in numbers], torch.device("cpu"), torch.float64, numbers=numbers)


class Passing:
    """Passes over the batches of a tiny model; counts how often the model ran."""

    def __init__(self, architecture: str, kept: Kept, rank: int = 0, compact: bool = False) -> None:
        torch.set_num_threads(1)
        self.model = tiny.model(architecture)
        self.layers, self.kept, self.compact = select_layers(self.model).layers, kept, compact
        self.projection = Projection.of(self.layers, rank) if rank else None
        self.ran = 0
        self.model.register_forward_hook(self._count)
        self.model.base_model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.ran += 1

    def once(self) -> tuple[list[Seen], list[torch.Tensor]]:
        hooks = FactorHooks(
            self.model,
            self.layers,
            precision=torch.float64,
            projection=self.projection,
            kept=self.kept.begin(SOURCE),
            compact=self.compact,
        )
        seen: list[Seen] = []
        losses = []
        with hooks.attached():
            for numbers in BATCHES:
                of_batch: Seen = []
                losses.append(hooks.backward(batch(numbers), lambda *one, to=of_batch: to.append(one)))
                seen.append(sorted(of_batch, key=lambda one: one[0]))
                losses.append(hooks.token_losses_K)
        return seen, losses


def bits(one: tuple[list[Seen], list[torch.Tensor]], other: tuple[list[Seen], list[torch.Tensor]]) -> bool:
    factors = all(
        number == number_ and torch.equal(a, a_) and torch.equal(d, d_)
        for seen, seen_ in zip(one[0], other[0], strict=True)
        for (number, a, d), (number_, a_, d_) in zip(seen, seen_, strict=True)
    )
    return factors and all(torch.equal(x, y) for x, y in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_what_was_kept_is_what_the_model_gave_and_the_model_is_not_run(architecture: str) -> None:
    kept = Kept({SOURCE: Passes(3)}, lambda: 1 << 30)
    passing = Passing(architecture, kept)
    first, after_one = passing.once(), passing.ran
    second, third = passing.once(), passing.once()
    assert passing.ran == after_one > 0
    assert bits(first, second) and bits(first, third)
    assert bits(first, Passing(architecture, Kept({}, lambda: 0)).once())
    assert kept.held == 0 < kept.most  # the last planned pass forgets
    assert kept.read == 2 * kept.ran
    assert "67% did without the model" in kept.sentence()


def test_the_budget_holds_and_what_does_not_fit_is_run_again() -> None:
    whole = Kept({SOURCE: Passes(2)}, lambda: 1 << 30)
    Passing("llama", whole).once()
    held: set[int] = set()
    for budget in (0, whole.most // 2, whole.most - 1, whole.most):
        kept = Kept({SOURCE: Passes(2)}, lambda budget=budget: budget)
        passing = Passing("llama", kept)
        first = passing.once()
        assert kept.most <= budget
        held.add(kept.most)
        assert bits(first, passing.once())
        assert (kept.read == kept.ran) == (budget == whole.most)
    assert len(held) > 2


def test_a_storage_that_layers_share_is_counted_once() -> None:
    kept = Kept({SOURCE: Passes(2)}, lambda: 1 << 30)
    seen, _ = Passing("llama", kept).once()
    tensors = [tensor for of_batch in seen for _, a, d in of_batch for tensor in (a, d)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert kept.held == sum(storages.values()) < sum(tensor.nbytes for tensor in tensors)


def test_compact_factors_are_the_same_gradients_in_fewer_numbers() -> None:
    rank = 3
    plain = Passing("llama", Kept({SOURCE: Passes(2)}, lambda: 1 << 30), rank)
    small = Passing("llama", Kept({SOURCE: Passes(2)}, lambda: 1 << 30), rank, compact=True)
    few, many = small.once(), plain.once()
    assert bits(few, small.once())
    shorter = 0
    for seen, seen_ in zip(few[0], many[0], strict=True):
        for (_, a, d), (_, a_, d_) in zip(seen, seen_, strict=True):
            assert torch.equal(torch.bmm(d.mT, a), torch.bmm(d_.mT, a_))
            shorter += a.shape[1] == rank < a_.shape[1]
    assert shorter > 10
    assert small.kept.most < plain.kept.most


def test_the_sentence_says_how_much_was_kept_and_what_it_saved() -> None:
    kept = Kept({SOURCE: Passes(2)}, lambda: 1 << 40)
    kept.ran, kept.read = 300, 100
    said = (
        "gradients of rows were kept in memory, {} at most: of the tokens of the passes that share them 25% did "
        "without the model"
    )
    for most, size in ((3 << 19, "1.5 MiB"), ((1 << 30) - (1 << 20), "1023.0 MiB"), (1 << 30, "1.0 GiB")):
        kept.most = most
        assert kept.sentence() == said.format(size)


def test_a_source_of_one_pass_keeps_nothing() -> None:
    kept = Kept({SOURCE: Passes(1)}, lambda: 1 << 30)
    assert kept.begin(SOURCE) is None
    assert kept.begin(Source(rank=2, scaled=False, loss="margin")) is None
    assert kept.sentence() == ""

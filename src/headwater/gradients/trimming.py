"""The last block at the predicting positions only.

A completion's loss looks at the last block's output at the positions that predict its tokens. Whatever in that block
works token by token on the way there (the MLP, the output projection of the attention, the queries) is needed at those
positions alone; keys and values are needed everywhere. Which modules these are is not read from names but tried on the
model: what a module gives at the other positions is replaced by large random numbers, and it is trimmed where no loss
changes.

Shapes: B examples, T tokens, C predicting positions of an example (padded), H features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from headwater.gradients.batches import Batch
from headwater.gradients.loss import losses

SHARE = 0.75
"""Trimming begins where an example predicts at no more than this share of its positions."""

TRIED_TOKENS = 8

_found: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()


@dataclass
class Columns:
    """The predicting positions of the batch at work; None: everything is computed everywhere."""

    batch: Batch | None = None

    @property
    def width(self) -> int:
        """C."""
        return 0 if self.batch is None else self.batch.column_BC.shape[1]

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T, H] at the predicting positions [B, C, H]."""
        assert self.batch is not None
        rows, positions = self.batch.column_BC.shape
        place = self.batch.column_BC.flatten().to(x.device)
        return x.flatten(0, 1).index_select(0, place).view(rows, positions, x.shape[2])

    def gradients(self, d: torch.Tensor) -> torch.Tensor:
        """The same of an output's gradient; 0 at padding, whose place may be a predicting position itself."""
        assert self.batch is not None
        return self.of(d) * self.batch.real_BC.unsqueeze(2).to(d)

    def back(self, x_BCH: torch.Tensor) -> torch.Tensor:
        """The inverse: 0 at the other positions, and nothing from padding."""
        assert self.batch is not None
        rows, tokens = self.batch.shape
        real = self.batch.real_BC.unsqueeze(2).to(x_BCH)
        place = self.batch.column_BC.flatten().to(x_BCH.device)
        out = x_BCH.new_zeros(rows * tokens, x_BCH.shape[2])
        return out.index_add(0, place, (x_BCH * real).flatten(0, 1)).view(rows, tokens, -1)


def trims(batch: Batch) -> bool:
    """Whether trimming saves something on this batch."""
    return batch.column_BC.shape[1] <= SHARE * batch.shape[1]


@contextmanager
def trimmed(modules: Sequence[nn.Module], columns: Columns) -> Iterator[None]:
    """These modules see predicting positions only, whenever `columns` holds a batch."""

    def narrow(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if columns.batch is None or x.shape[:2] != columns.batch.shape:
                return forward(x, *args, **kwargs)
            return columns.back(forward(columns.of(x), *args, **kwargs))

        return run

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_instead(module, narrow))
        yield


def trimmable(model: nn.Module, block: nn.Module, batch: Batch) -> list[nn.Module]:
    """The modules of a model's last block that are needed at predicting positions only. The first call for a model
    tries them on a few tokens of `batch`."""
    if model not in _found:
        with torch.no_grad():
            _found[model] = _try(model, block, batch)
    return _found[model]


def _try(model: nn.Module, block: nn.Module, batch: Batch) -> list[nn.Module]:
    few = batch.input_ids_BT[:1, :TRIED_TOKENS]
    tokens = few.shape[1]
    if tokens < 3:
        return []
    device = few.device
    place = torch.tensor([tokens // 2, tokens - 1], device=device)
    one = Batch(
        few,
        torch.ones_like(few),
        place,
        few[0, :2].contiguous(),
        torch.ones(2, device=device, dtype=batch.weight_K.dtype),
        place[None],
        torch.ones(1, 2, device=device, dtype=torch.bool),
    )
    needed_T1 = torch.zeros(tokens, 1, dtype=torch.bool, device=device)
    needed_T1[place] = True
    wanted = losses(model, one)
    found: list[nn.Module] = []

    def spoilt(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: torch.Tensor) -> Any:
            y = forward(x)
            at = place.to(y.device)
            digits = 3e-2 if y.element_size() == 2 else 1e-4
            at_most = digits * float(y.abs().max())
            if y.shape[:2] != x.shape[:2] or not torch.allclose(forward(x[:, at]), y[:, at], digits, at_most):
                raise _NotAlone
            noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y) * (10 * y.abs().max() + 1)
            return torch.where(needed_T1.to(y.device), y, noise)

        return run

    def unneeded(module: nn.Module) -> bool:
        try:
            with _instead(module, spoilt), _instead(module, _only_alone):
                return bool(torch.allclose(losses(model, one), wanted, rtol=1e-5, atol=0))
        except (_NotAlone, AttributeError, RuntimeError, TypeError):
            return False

    def visit(module: nn.Module) -> None:
        linear = [m for m in module.modules() if _is_leaf_linear(m)]
        if not linear:
            return
        if unneeded(module):
            found.append(module)
        elif not _is_leaf_linear(module) and not hasattr(module, "base_layer"):
            for child in module.children():
                visit(child)

    for child in block.children():
        visit(child)
    return found


class _NotAlone(Exception):
    """A module that does more than work token by token on one batch of sequences."""


def _only_alone(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor) or args[0].ndim != 3:
            raise _NotAlone
        return forward(args[0])

    return run


def _is_leaf_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


@contextmanager
def _instead(module: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """The module with its forward wrapped; as before on exit."""
    forward, own = module.forward, module.__dict__.get("forward")
    module.forward = wrap(forward)
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own

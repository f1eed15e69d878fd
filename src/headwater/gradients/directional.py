"""The directional engine: scores as differences of losses between two slightly different models.

For any direction v in the weights, in two forward passes over the examples and without a gradient of any of them,

    < v, grad l(z; theta) >  =  ( l(z; theta + e v) - l(z; theta - e v) ) / 2e  +  O(e^2)

which is what a dot-product method needs for the query's gradient v (`shifted`, `step_size`).

The way of the authors of CEA and DDA (status C, their read-me and code): from one checkpoint take a few steps on the
erroneous outputs (the *error* model) and on the corrected ones (the *ground* model); the score of an example is

    l(z; ground) - l(z; error)

large when the error model finds the example easier: the example says what the error says. With one plain gradient
step of size eps this is, to first order, eps < grad l(wrong) - grad l(corrected), grad l(z) >, the contrast dot
product. No gradient of an example is ever taken; anything that can compute losses can be traced.

Only the weights of the chosen layers move, so that the result is comparable to that of the gradient engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from headwater.errors import ModelError, UsageError
from headwater.examples import Encoded
from headwater.gradients.batches import collate
from headwater.gradients.layers import Layer, inputs_first
from headwater.gradients.loss import losses


@dataclass(frozen=True, kw_only=True)
class Step:
    """How the error and ground models are made. The defaults are those of CEA's code.

    Attributes:
        optimizer: "adamw" (no weight decay, betas .9 .999), or "sgd" for plain gradient steps.
        learning_rate: of each step.
        steps: number of full-batch steps.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 5e-6
    steps: int = 3

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd") or self.learning_rate <= 0 or self.steps < 1:
            raise UsageError(
                f"a step of {self.optimizer}, learning rate {self.learning_rate}, {self.steps} times",
                expected="adamw or sgd, a positive learning rate and at least one step",
                fix="correct the step",
            )


@contextmanager
def nudged(
    model: nn.Module, layers: tuple[Layer, ...], rows: Sequence[Encoded], step: Step, precision: torch.dtype
) -> Iterator[None]:
    """Moves the chosen weights by a few steps on the mean loss of `rows`; restores them bit by bit on exit.

    Args:
        rows: the outputs to learn; none leaves the model as it is.

    Raises:
        ModelError: weights that cannot move (quantised).
    """
    weights = [_movable(layer) for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    others = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in others:
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        if rows:
            optimizer: torch.optim.Optimizer
            if step.optimizer == "adamw":
                optimizer = torch.optim.AdamW(weights, lr=step.learning_rate, weight_decay=0.0)
            else:
                optimizer = torch.optim.SGD(weights, lr=step.learning_rate)
            batch = collate(rows, weights[0].device, precision)
            for _ in range(step.steps):
                optimizer.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    losses(model, batch).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
                weight.grad = None
        for parameter, required in others:
            parameter.requires_grad_(required)


STEP_LOSS, STEP_WEIGHTS = 0.02, 1e-3
"""How far a step goes at most: nats by which the query's measurement moves, and share of the weights' norm."""


def step_size(layers: tuple[Layer, ...], direction: Sequence[torch.Tensor]) -> float:
    """The e of a central difference along `direction` (one tensor of each layer's weight); 0 for no direction.

    Small enough that the losses are nearly linear over the step, large enough to stand above their rounding.
    """
    squared = float(sum(float(v.double().square().sum()) for v in direction))
    if squared == 0:
        return 0.0
    weights = sum(float(_movable(layer).detach().double().square().sum()) for layer in layers)
    return float(min(STEP_LOSS / squared, STEP_WEIGHTS * (weights / squared) ** 0.5))


@contextmanager
def shifted(layers: tuple[Layer, ...], direction: Sequence[torch.Tensor], size: float) -> Iterator[None]:
    """Moves the chosen weights by `size` x `direction`; restores them bit by bit on exit.

    Raises:
        ModelError: weights that cannot move (quantised).
    """
    weights = [_movable(layer) for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for layer, weight, v in zip(layers, weights, direction, strict=True):
                weight.add_((v.T if inputs_first(layer) else v).to(weight), alpha=size)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def _movable(layer: Layer) -> nn.Parameter:
    module = layer.modules[0]
    while hasattr(module, "base_layer"):
        module = module.base_layer  # type: ignore[assignment]
    weight = module.weight
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise ModelError(
            f"the weight of {layer.name} is quantised",
            expected="a weight that a step can move",
            cause="a base model in 4 or 8 bit",
            fix="load the model unquantised, or use a method of the gradient engine",
        )
    return weight

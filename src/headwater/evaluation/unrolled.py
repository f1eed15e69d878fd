"""Exact influence through training, for small models: the truth that other methods are judged by.

A deterministic training run is a function of the weights w_i of its rows (1 each):

    batch loss = 1/B sum_i w_i l(z_i),   theta_T = theta_T(w)

The exact influence of a row is -dm(theta_T)/dw_i, found for all rows at once by differentiating backwards through
every step (metagradients: Engstrom et al. 2025, arXiv 2503.13751; used for attribution as MAGIC, Ilyas and Engstrom
2025, arXiv 2504.16430). Leaving a row out is the run with w_i = 0: the same batches in the same order.

All states of the optimizer are kept in memory: steps x 3 x parameters. Dropout is off. Sign as everywhere: positive
where training on the row pushed the model towards the output.

Shapes: P parameter tensors, N rows, Q queries, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from headwater.errors import UsageError
from headwater.examples import Encoded
from headwater.gradients.batches import Batch, collate
from headwater.gradients.loss import losses

Side = tuple[Encoded, float]
"""An output and the weight of its loss in a measurement."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A deterministic training run.

    Attributes:
        schedule: of the learning rate: constant, or linear to 0.
        batch_size: rows of a batch. seed: of the rows' order, another one in every epoch.
        weight_decay: AdamW's, on every parameter.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear"] = "linear"
    epochs: int = 3
    batch_size: int = 8
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    seed: int = 0

    def batches(self, rows: int) -> list[list[int]]:
        """Row numbers of every step."""
        chance = np.random.default_rng(self.seed)
        orders = [chance.permutation(rows) for _ in range(self.epochs)]
        return [one[i : i + self.batch_size].tolist() for one in orders for i in range(0, rows, self.batch_size)]

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.learning_rate * (1 - step / steps if self.schedule == "linear" else 1.0)


Tensors = list[torch.Tensor]
State = tuple[Tensors, Tensors, Tensors]
"""Parameters, first and second moments."""


class Unrolled:
    """A model, its rows and a recipe.

    Args:
        model: trained from its present weights, which stay as they are; attention must be "eager", since others have
            no second derivative.

    Raises:
        UsageError: another attention.
    """

    def __init__(self, model: Any, rows: Sequence[Encoded], recipe: Recipe) -> None:
        attention = getattr(model.config, "_attn_implementation", "eager")
        if attention != "eager":
            raise UsageError(
                f"a model with {attention} attention",
                expected="attn_implementation='eager': other kinds have no second derivative",
                fix="load the model with attn_implementation='eager'",
            )
        self._recipe, self._rows = recipe, list(rows)
        self._wrapper = _Losses(model).eval()
        self._names = [name for name, _ in self._wrapper.named_parameters()]
        self._start = [one.detach().clone() for _, one in self._wrapper.named_parameters()]
        self._plan = recipe.batches(len(self._rows))
        self._collated = [self._collate([self._rows[n] for n in batch]) for batch in self._plan]

    @property
    def steps(self) -> int:
        return len(self._plan)

    def train(self, weights: np.ndarray | None = None) -> list[State]:
        """The state before every step, and the last one, for rows weighted [N] (1 each)."""
        w_N = torch.ones(len(self._rows)) if weights is None else torch.from_numpy(weights)
        w_N = w_N.to(self._start[0])
        zeros = [torch.zeros_like(one) for one in self._start]
        states: list[State] = [(self._start, zeros, zeros)]
        for step in range(self.steps):
            given = tuple([one.detach() for one in part] for part in states[-1])
            for one in given[0]:
                one.requires_grad_(True)
            with torch.enable_grad():
                moved = self._step(step, given, w_N[self._plan[step]])  # type: ignore[arg-type]
            states.append(tuple([one.detach() for one in part] for part in moved))  # type: ignore[arg-type]
        return states

    def measure(self, parameters: Tensors, queries: Sequence[Sequence[Side]]) -> torch.Tensor:
        """m of every query [Q]."""
        sides = [side for query in queries for side, _ in query]
        losses_S = self._losses(parameters, self._collate(sides))
        out, first = [], 0
        for query in queries:
            weight = torch.tensor([weight for _, weight in query]).to(losses_S)
            out.append((weight * losses_S[first : first + len(query)]).sum())
            first += len(query)
        return torch.stack(out)

    def influence(
        self,
        states: Sequence[State],
        queries: Sequence[Sequence[Side]],
        advance: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """-dm/dw_i of every query and row [Q, N]: one sweep back through all steps per query.

        Args:
            states: as `train` gave them.
        """
        out_QN = np.zeros((len(queries), len(self._rows)))
        for q, query in enumerate(queries):
            last = [one.detach().requires_grad_(True) for one in states[-1][0]]
            adjoint = [*torch.autograd.grad(self.measure(last, [query]).sum(), last)]
            adjoint += [torch.zeros_like(one) for one in last + last]
            for step in range(self.steps - 1, -1, -1):
                given: State = tuple([one.detach().requires_grad_(True) for one in part] for part in states[step])  # type: ignore[assignment]
                w_B = torch.ones(len(self._plan[step])).to(last[0]).requires_grad_(True)
                moved = [one for part in self._step(step, given, w_B) for one in part]
                inputs = [one for part in given for one in part]
                kept = [n for n, one in enumerate(moved) if one.requires_grad]
                found = torch.autograd.grad(
                    [moved[n] for n in kept], [*inputs, w_B], [adjoint[n] for n in kept], allow_unused=True
                )
                *parts, of_weights = found
                adjoint = [torch.zeros_like(i) if g is None else g for g, i in zip(parts, inputs, strict=True)]
                if of_weights is not None:
                    np.add.at(out_QN[q], self._plan[step], -of_weights.double().numpy())
                if advance is not None:
                    advance(1)
        return out_QN

    def left_out(self, row: int, queries: Sequence[Sequence[Side]]) -> np.ndarray:
        """m without a row minus m with all [Q]: the run is made again with w_i = 0."""
        weights = np.ones(len(self._rows))
        weights[row] = 0
        with torch.no_grad():
            start = self.measure(self._reference()[0], queries)
        without = self.train(weights)[-1][0]
        with torch.no_grad():
            return (self.measure(without, queries) - start).double().numpy()

    def load(self, model: nn.Module, parameters: Tensors) -> None:
        """Writes parameters into a model of the same kind."""
        with torch.no_grad():
            for one, value in zip(model.parameters(), parameters, strict=True):
                one.copy_(value)

    def _reference(self) -> State:
        if not hasattr(self, "_final"):
            self._final = self.train()[-1]
        return self._final

    def _step(self, step: int, state: State, w_B: torch.Tensor) -> tuple[Tensors, Tensors, Tensors]:
        """One step of the optimizer as a differentiable function of state and weights."""
        recipe, (parameters, first, second) = self._recipe, state
        batch_loss = (w_B * self._losses(parameters, self._collated[step])).sum() / len(w_B)
        gradients = torch.autograd.grad(
            batch_loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        rate = recipe.rate(step, self.steps)
        if recipe.optimizer == "sgd":
            moved = [p - rate * (g + recipe.weight_decay * p) for p, g in zip(parameters, gradients, strict=True)]
            return moved, first, second
        (b1, b2), count = recipe.betas, step + 1
        m = [b1 * one + (1 - b1) * g for one, g in zip(first, gradients, strict=True)]
        v = [b2 * one + (1 - b2) * g.square() for one, g in zip(second, gradients, strict=True)]
        moved = []
        for p, one, other in zip(parameters, m, v, strict=True):
            root = torch.where(other > 0, other, 1.0).sqrt() * (other > 0)  # the root has no slope at 0
            update = one / (1 - b1**count) / (root / (1 - b2**count) ** 0.5 + recipe.epsilon)
            moved.append(p - rate * (update + recipe.weight_decay * p))
        return moved, m, v

    def _losses(self, parameters: Tensors, batch: Batch) -> torch.Tensor:
        found: torch.Tensor = functional_call(self._wrapper, dict(zip(self._names, parameters, strict=True)), (batch,))
        return found

    def _collate(self, rows: Sequence[Encoded]) -> Batch:
        return collate(rows, self._start[0].device, self._start[0].dtype)


class _Losses(nn.Module):
    """Rows' losses as a module, so that its parameters can be given from outside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        return losses(self.model, batch, own_head=True)

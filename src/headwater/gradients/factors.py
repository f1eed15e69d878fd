"""Per-example gradients as factors, by hooks: the input activations and output gradients of linear layers.

For y_t = W x_t the gradient of an example's loss is G = sum_t d_t a_t' with a_t = x_t and d_t = dl/dy_t, so an
example's gradient is known from (a_TI, d_TO) without ever being formed. Weights are frozen: the backward pass
computes gradients of activations only.

Shapes: B examples, T tokens (padded), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from headwater.errors import ModelError
from headwater.gradients.batches import Batch, losses
from headwater.gradients.layers import Layer

Consume = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called once per layer during the backward pass with (layer number, a_BTI, d_BTO); d is zero at padding.

A layer that is applied several times (shared weights) is handed over once, its applications laid along T."""


class FactorHooks:
    """Hooks that hand the factors of every layer to a consumer, each as soon as the backward pass has them.

    The consumer sees a layer as soon as all its applications have their gradients, so that no more than the factors
    of one layer need to be kept beside what autograd itself holds.
    """

    def __init__(self, model: nn.Module, layers: tuple[Layer, ...]) -> None:
        self._model, self._layers = model, layers
        self._shape, self._scored = (0, 0), 0
        self._consume: Consume | None = None
        self._pending = [0] * len(layers)
        self._pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in layers]

    @contextmanager
    def attached(self) -> Iterator[FactorHooks]:
        """Freezes the model and attaches the hooks; both are undone on exit."""
        handles = [
            module.register_forward_hook(self._forward_hook(number))
            for number, layer in enumerate(self._layers)
            for module in layer.modules
        ]
        embeddings: Any = self._model.get_input_embeddings()  # type: ignore[operator]
        handles.append(embeddings.register_forward_hook(_require_grad))
        frozen = [p for p in self._model.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for parameter in frozen:
                parameter.requires_grad_(True)

    def backward(self, batch: Batch, consume: Consume) -> torch.Tensor:
        """One forward and one activation-only backward pass. Returns the losses [B], in nats."""
        self._shape, self._consume = batch.shape, consume
        self._scored = len(batch.scored_K)
        self._pending = [0] * len(self._layers)
        for pairs in self._pairs:
            pairs.clear()
        with torch.enable_grad():
            losses_B = losses(self._model, batch)
            losses_B.sum().backward()  # type: ignore[no-untyped-call]
        self._consume = None
        return losses_B.detach()

    def _forward_hook(self, number: int) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            if self._consume is None:
                return
            a_BTI = self._per_example(inputs[0].detach(), number)
            self._pending[number] += 1
            output.register_hook(lambda d: self._arrived(number, a_BTI, d))  # type: ignore[no-untyped-call]

        return hook

    def _arrived(self, number: int, a_BTI: torch.Tensor, d: torch.Tensor) -> None:
        pairs = self._pairs[number]
        pairs.append((a_BTI, self._per_example(d.detach(), number)))
        self._pending[number] -= 1
        if self._pending[number] == 0 and self._consume is not None:
            a = pairs[0][0] if len(pairs) == 1 else torch.cat([pair[0] for pair in pairs], 1)
            d = pairs[0][1] if len(pairs) == 1 else torch.cat([pair[1] for pair in pairs], 1)
            pairs.clear()
            with torch.no_grad():
                self._consume(number, a, d)

    def _per_example(self, x: torch.Tensor, number: int) -> torch.Tensor:
        rows, tokens = self._shape
        if x.ndim == 3 and x.shape[0] == rows and x.shape[1] in (tokens, self._scored):  # the head sees few positions
            return x
        if x.ndim == 2 and x.shape[0] == rows * tokens and tokens > 0:  # models that flatten (rows, tokens), as OPT
            return x.view(rows, tokens, -1)
        raise ModelError(
            f"the layer {self._layers[number].name} sees activations of shape {tuple(x.shape)} in a batch of {rows} "
            f"examples of {tokens} tokens",
            expected=f"({rows}, {tokens}, features), so that each token's example is known",
            cause="a mixture of experts routes tokens out of their rows",
            fix="leave these layers out with --parameters",
        )


def _require_grad(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_(True) if output.is_leaf else output

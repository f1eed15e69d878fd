"""Per-example gradients as factors: the input activations and output gradients of linear layers.

For y_t = W x_t the gradient of an example's loss is G = sum_t d_t a_t' with a_t = x_t and d_t = dl/dy_t, so an
example's gradient is known from (a_TI, d_TO) without ever being formed. Weights are frozen: the backward pass
computes gradients of activations only, and ends at the first chosen layer.

Shapes: B examples, T tokens (padded), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from headwater.errors import ModelError
from headwater.gradients.batches import Batch
from headwater.gradients.kept import Consume, KeptPass
from headwater.gradients.layers import Layer
from headwater.gradients.loss import by_example, head_of, token_losses
from headwater.gradients.projection import Projection, ProjectionMatrices, Scales
from headwater.gradients.trimming import Columns, trimmable, trimmed, trims


class FactorHooks:
    """Hooks that hand the factors of every layer to a consumer, each as soon as the backward pass has them.

    The consumer is called once per layer with (layer number, a_BTI, d_BTO), as soon as all its applications have their
    gradients, so that no more than the factors of one layer need to be kept beside what autograd itself holds. d is
    zero at padding. A layer that is applied several times (shared weights) is handed over once, its applications laid
    along T.

    Args:
        precision: type the factors are handed over in, whatever the model's.
        projection: makes both factors smaller where they are first seen, so that no full one is kept; the consumer
            then sees r_i inputs and r_o outputs.
        scales: factors of each layer's inputs and outputs, before the projection.
        trim: compute the last block at predicting positions only, where that saves something; its factors then have
            the predicting positions, not all T.
        recompute: forget the activations inside the model's blocks and compute them again in the backward pass
            (activation checkpointing): less memory, one more forward pass.
        kept: batches whose rows' numbers it knows are not run again.
        compact: of projected gradients of more tokens than outputs, hand over the examples' gradients themselves: their
            rows in place of activations, and the identity in place of output gradients.
        announce: called with every batch before it is run.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[Layer, ...],
        *,
        precision: torch.dtype,
        projection: Projection | None = None,
        scales: Scales | None = None,
        recompute: bool = False,
        trim: bool = True,
        kept: KeptPass | None = None,
        compact: bool = False,
        announce: Callable[[Batch], None] | None = None,
    ) -> None:
        self._model, self._layers, self._announce = model, layers, announce
        self.precision, self.device = precision, next(model.parameters()).device
        self._matrices = projection.matrices(self.device, precision) if projection else None
        if scales is not None:
            self._matrices = (self._matrices or ProjectionMatrices.none(len(layers))).scaled(scales)
        if self._matrices is not None:  # a model may lie on several devices
            self._matrices = self._matrices.on([_device_of(layer, self.device) for layer in layers])
        self.shapes = [(layer.in_features, layer.out_features) for layer in layers]
        if projection is not None:
            self.shapes = [(layer.rank_in, layer.rank_out) for layer in projection.layers]
        self.uses = [len(layer.modules) for layer in layers]
        self.trim, self._recompute = trim, recompute
        self._kept, self._compact = kept, compact and projection is not None
        self._one: dict[int, torch.Tensor] = {}
        self._columns = Columns()
        self._narrow: list[nn.Module] = []
        self._shape = (0, 0)
        self.token_losses_K = torch.zeros(0)
        """Losses of the targets of the batch that came last."""
        self._consume: Consume | None = None
        self._counting = False
        self._pending = [0] * len(layers)
        self._pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in layers]
        head = getattr(model, "get_output_embeddings", lambda: None)()
        self._own_head = any(module is head for layer in layers for module in layer.modules)
        self._anchor = torch.zeros((), requires_grad=True)

    @contextmanager
    def attached(self) -> Iterator[FactorHooks]:
        """Freezes the model and attaches the hooks; both are undone on exit."""
        with ExitStack() as stack:
            for number, layer in enumerate(self._layers):
                for module in layer.modules:
                    stack.callback(module.register_forward_hook(self._forward_hook(number)).remove)
            for parameter in [p for p in self._model.parameters() if p.requires_grad]:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
            if self._recompute:
                for block in _blocks(self._model, self._layers):
                    stack.enter_context(_recomputing(block))
            yield self

    def backward(self, batch: Batch, consume: Consume) -> torch.Tensor:
        """One forward and one activation-only backward pass, or what was kept of it. Returns the losses [B], in
        nats."""
        if self._kept is None or not batch.numbers:
            return self._run(batch, consume)
        found = self._kept.find(batch.numbers, batch.shape[0] * batch.shape[1])
        if found is not None:
            with torch.no_grad():
                for number, a_BTI, d_BTO in found.layers:
                    consume(number, a_BTI, d_BTO)
            self.token_losses_K = found.token_losses_K
            return found.losses_B
        consume, recorded = self._kept.record(consume)
        losses_B = self._run(batch, consume)
        if recorded is not None:
            recorded.losses_B, recorded.token_losses_K = losses_B, self.token_losses_K
            self._kept.put(batch.numbers, recorded)
        return losses_B

    def _run(self, batch: Batch, consume: Consume) -> torch.Tensor:
        if self._announce is not None:
            self._announce(batch)
        if not self._own_head:
            head_of(self._model, batch)  # the first time this runs the model, and no hook must see it
        self._narrow = self._unneeded(batch)
        self._shape, self._consume = batch.shape, consume
        self._pending = [0] * len(self._layers)
        for pairs in self._pairs:
            pairs.clear()
        try:
            with torch.enable_grad(), trimmed(self._narrow, self._columns):
                self._columns.batch = batch
                self._counting = True
                nll_K = token_losses(self._model, batch, own_head=self._own_head)
                self._counting = False  # from here on a forward pass is one that is made again
                losses_B = by_example(nll_K * batch.weight_K, batch)
                losses_B.sum().backward()  # type: ignore[no-untyped-call]
        finally:
            self._consume = self._columns.batch = None
        self.token_losses_K = nll_K.detach()
        return losses_B.detach()

    def _unneeded(self, batch: Batch) -> list[nn.Module]:
        """Modules of the last block that need to see predicting positions only."""
        if not self.trim or self._own_head or not trims(batch):
            return []
        blocks = _blocks(self._model, self._layers)
        return trimmable(self._model, blocks[-1], batch) if blocks else []

    def _forward_hook(self, number: int) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
            if self._consume is None:
                return None
            self._pending[number] += self._counting
            a = inputs[0].detach()
            if module in self._narrow:
                a = self._columns.of(a)
            if self._matrices is not None:
                a = self._matrices.activations(number, a)
            return _Tap.apply(output, self._anchor, a, self._arrived, number)  # type: ignore[no-untyped-call]

        return hook

    def _arrived(self, number: int, a: torch.Tensor, d: torch.Tensor) -> None:
        pairs = self._pairs[number]
        if d.ndim == 3 and d.shape[1] != a.shape[1]:  # a module that sees all positions and computes few
            d = self._columns.gradients(d)
        if self._matrices is not None:
            d = self._matrices.output_gradients(number, d)
        pairs.append((self._per_example(a, number), self._per_example(d, number)))
        self._pending[number] -= 1
        if self._pending[number] == 0 and self._consume is not None:
            a = pairs[0][0] if len(pairs) == 1 else torch.cat([pair[0] for pair in pairs], 1)
            d = pairs[0][1] if len(pairs) == 1 else torch.cat([pair[1] for pair in pairs], 1)
            pairs.clear()
            with torch.no_grad():
                a, d = a.to(self.device, self.precision), d.to(self.device, self.precision)
                if self._compact and a.shape[1] > d.shape[2]:
                    a, d = torch.bmm(d.mT, a), self._identity(d.shape[2]).expand(len(a), -1, -1)
                self._consume(number, a, d)

    def _identity(self, size: int) -> torch.Tensor:
        if size not in self._one:
            self._one[size] = torch.eye(size, dtype=self.precision, device=self.device)
        return self._one[size]

    def _per_example(self, x: torch.Tensor, number: int) -> torch.Tensor:
        rows, tokens = self._shape
        fewer = self._own_head or (self._narrow and x.shape[1] == self._columns.width)
        if x.ndim == 3 and x.shape[0] == rows and (x.shape[1] == tokens or fewer):
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


class _Tap(torch.autograd.Function):
    """The identity on a layer's output y; hands (a, dl/dy) on in the backward pass.

    The activations are kept as autograd keeps its own, so that they are forgotten and made again with them. The anchor
    makes the output require a gradient where nothing below does: the backward pass ends there.
    """

    @staticmethod
    def forward(ctx: Any, y: Any, anchor: Any, a: Any, arrived: Any, number: int) -> Any:
        ctx.save_for_backward(a)
        ctx.arrived, ctx.number = arrived, number
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        (a,) = ctx.saved_tensors
        ctx.arrived(ctx.number, a, above[0])
        return (above[0] if ctx.needs_input_grad[0] else None, None, None, None, None)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists: the model's blocks."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    outermost = [m for m in lists if not any(m is not other and m in set(other.modules()) for other in lists)]
    return [block for one in outermost for block in one]


def _blocks(model: nn.Module, layers: tuple[Layer, ...]) -> list[nn.Module]:
    """The blocks that hold chosen layers."""
    chosen = {id(module) for layer in layers for module in layer.modules}
    return [block for block in blocks_of(model) if any(id(module) in chosen for module in block.modules())]


def _device_of(layer: Layer, otherwise: torch.device) -> torch.device:
    return next((parameter.device for parameter in layer.modules[0].parameters()), otherwise)


@contextmanager
def _recomputing(block: Any) -> Iterator[None]:
    forward, own = block.forward, block.__dict__.get("forward")

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.forward = wrapped
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own

"""Every refusal of the gradients, word for word: what was got, what was expected, the likely cause, the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

import headwater as hw
import tiny
from headwater.errors import DataError, HeadwaterError, ModelError, NumericalError, UsageError
from headwater.examples import Encoder
from headwater.gradients.batches import collate
from headwater.gradients.contraction import SideGradients, side_gradients
from headwater.gradients.directional import Step, shifted
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.layers import Layer, select_layers
from headwater.gradients.measurement import encode_queries, targets_of
from headwater.gradients.projection import Projection

BROKEN = (
    "is NaN or infinite; expected finite numbers (likely cause: a model whose weights are broken, or half precision "
    "that overflows). Next: check the checkpoint, or use --dtype float32"
)


def refused(call: Callable[[], object], kind: type[HeadwaterError], line: str) -> None:
    with pytest.raises(HeadwaterError) as caught:
        call()
    assert (type(caught.value), str(caught.value)) == (kind, line)


def test_layers() -> None:
    model = tiny.model("llama")
    some = ", ".join(f"model.layers.0.self_attn.{letter}_proj" for letter in "qkvo")
    fix = f"Next: choose --parameters from its 15 linear layers: {some} ..."
    expected = "expected a pattern that matches some of the model's linear layers"
    refused(lambda: select_layers(model, ["x"]), ModelError, f"no linear layer matches ['x']; {expected}. {fix}")
    refused(
        lambda: select_layers(nn.Sequential(nn.LayerNorm(3))),
        ModelError,
        f"no linear layer matches the default (inside the blocks); {expected}. Next: choose --parameters from its 0 "
        "linear layers: none at all ...",
    )
    refused(
        lambda: select_layers(tiny.model("llama-tied"), ["lm_head"]),
        ModelError,
        "the weight of lm_head is tied to the embedding model.embed_tokens; expected layers whose gradient is that of "
        "a linear layer (likely cause: tie_word_embeddings). Next: leave the output head out of --parameters",
    )


def test_options() -> None:
    line = "a projection of rank 0; expected at least 1. Next: raise --rank"
    refused(lambda: Projection.of((), 0), UsageError, line)
    expected = "expected adamw or sgd, a positive learning rate and at least one step. Next: correct the step"
    for options, said in (
        ({"optimizer": "lion"}, "lion, learning rate 5e-06, 3 times"),
        ({"learning_rate": 0.0}, "adamw, learning rate 0.0, 3 times"),
        ({"steps": 0}, "adamw, learning rate 5e-06, 0 times"),
    ):
        refused(lambda options=options: Step(**cast(Any, options)), UsageError, f"a step of {said}; {expected}")  # type: ignore[misc]
    assert Step(optimizer="sgd", learning_rate=1e-9, steps=1).steps == 1


def test_queries() -> None:
    encoder = cast(Encoder, None)  # nothing is encoded before all of this is known
    one, two = (hw.Query("p", output, id="x") for output in ("a", "b"))
    line = "no query; expected at least one prompt with an output. Next: give --prompt or --queries"
    refused(lambda: encode_queries([], encoder), DataError, line)
    line = "query x has no output; expected the words whose origin is asked for. Next: give its output"
    refused(lambda: encode_queries([hw.Query("p", id="x")], encoder), DataError, line)
    line = "two queries are called x; expected ids of their own. Next: rename one of them"
    for call in (lambda: targets_of([one, two]), lambda: encode_queries([one, two], encoder)):
        refused(call, DataError, line)
    unnamed = hw.Query("p", "a")
    line = "two queries are called q2; expected ids of their own. Next: rename one of them"
    refused(lambda: targets_of([hw.Query("p", "b", id="q2"), unnamed]), DataError, line)
    line = "x is a query and a group; expected two names. Next: rename one of them"
    refused(lambda: targets_of([one, hw.Query("p", "b", group="x")]), DataError, line)


def test_gradients_that_are_not_finite() -> None:
    line = f"the gradient of a query {BROKEN}"
    refused(lambda: SideGradients.of_matrices([torch.full((1, 2, 2), torch.nan)]), NumericalError, line)
    model = tiny.model("llama")
    hooks = FactorHooks(model, select_layers(model).layers, precision=torch.float64)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    sides = tiny.rows(((6, 2),))
    line = f"the loss of a query {BROKEN}"
    refused(lambda: side_gradients(hooks, sides, batch_tokens=9, lengths=(9.0,)), NumericalError, line)


def test_weights_that_cannot_move() -> None:
    module = nn.Linear(2, 3)
    module.weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.int8), requires_grad=False)
    layer = Layer("up", (module,), 2, 3)
    refused(
        lambda: shifted((layer,), [torch.zeros(3, 2)], 1.0).__enter__(),
        ModelError,
        "the weight of up is quantised; expected a weight that a step can move (likely cause: a base model in 4 or 8 "
        "bit). Next: load the model unquantised, or use a method of the gradient engine",
    )


class Routed(nn.Module):
    """A layer that sees the tokens of a batch in no order that is known: two of them left out."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.linear(x.flatten(0, 1)[2:]), x.new_zeros(2, 24)]).view(*x.shape[:2], 24)


def test_tokens_that_are_routed_out_of_their_rows() -> None:
    model = tiny.model("llama")
    model.model.layers[0].mlp.up_proj = Routed(model.model.layers[0].mlp.up_proj)
    layers = select_layers(model, [r"layers\.0\.mlp\.up_proj"]).layers
    hooks = FactorHooks(model, layers, precision=torch.float64)
    batch = collate(tiny.rows(((5, 2), (7, 3))), torch.device("cpu"), torch.float64)
    with hooks.attached():
        refused(
            lambda: hooks.backward(batch, lambda *_: None),
            ModelError,
            "the layer model.layers.0.mlp.up_proj.linear sees activations of shape (10, 16) in a batch of 2 examples "
            "of 6 tokens; expected (2, 6, features), so that each token's example is known (likely cause: a mixture of "
            "experts routes tokens out of their rows). Next: leave these layers out with --parameters",
        )


class Flat(nn.Module):
    """A layer that sees rows and tokens as one axis, as OPT's do."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(x.flatten(0, 1))).view(*x.shape[:2], -1)


def test_rows_and_tokens_as_one_axis_are_told_apart() -> None:
    batch = collate(tiny.rows(((5, 2), (7, 3))), torch.device("cpu"), torch.float64)
    seen: dict[str, list[torch.Tensor]] = {}
    for name in ("plain", "flat"):
        model = tiny.model("llama")
        if name == "flat":
            model.model.layers[0].mlp.up_proj = Flat(model.model.layers[0].mlp.up_proj)
        hooks = FactorHooks(model, select_layers(model, [r"layers\.0\.mlp\.up_proj"]).layers, precision=torch.float64)
        with hooks.attached():
            hooks.backward(batch, lambda number, a, d, name=name: seen.update({name: [a, d]}))  # type: ignore[misc]
    for one, other in zip(seen["plain"], seen["flat"], strict=True):
        torch.testing.assert_close(one, other)
    assert seen["flat"][0].shape == (2, 6, 16)


def test_scores_by_token_of_trimmed_hooks() -> None:
    model = tiny.model("llama")
    hooks = FactorHooks(model, select_layers(model).layers, precision=torch.float64)
    stored = side_gradients(hooks, tiny.rows(((6, 2),)), batch_tokens=9, lengths=(9.0,))
    product = Product("loss", "dot", "here")
    contractor = Contractor({"here": stored}, {"loss": torch.ones(1, 1).numpy()}, (product,), by_token=True)
    with pytest.raises(ValueError, match=r"^scores by token need hooks with trim=False$"):
        contractor(hooks, collate(tiny.rows(((6, 2),)), torch.device("cpu"), torch.float64))

"""Which weights the gradients are taken of: the linear layers of a model's blocks.

A *layer* here is one weight matrix W [O, I] with every module that applies it as y = W x. Modules that share a
weight form one layer (their gradients add up, exactly). LoRA and other adapters are wrappers of a linear module:
the wrapper's input and the gradient of its output give the gradient of the full, merged weight, so base model,
adapter and full fine-tuning live in one space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from headwater.errors import ModelError


@dataclass(frozen=True)
class Layer:
    """One weight matrix and the modules that apply it.

    Attributes:
        name: the first module's name in the model without its adapter, e.g. `model.layers.0.mlp.up_proj`.
        modules: the modules to hook; several only where a weight is shared.
        in_features: I. out_features: O.
    """

    name: str
    modules: tuple[nn.Module, ...]
    in_features: int
    out_features: int

    @property
    def size(self) -> int:
        return self.in_features * self.out_features


@dataclass(frozen=True)
class LayerSelection:
    """The chosen layers of one model, and what was left out.

    Attributes:
        layers: in the model's own order.
        parameters: number of weights in the chosen layers.
        total: number of parameters of the model without its adapter.
        left_out: kind of parameter left out -> number of parameters.
    """

    layers: tuple[Layer, ...]
    parameters: int
    total: int
    left_out: dict[str, int]

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def sentence(self) -> str:
        rest = ", ".join(f"{kind} {count:,}" for kind, count in self.left_out.items()) or "nothing"
        return (
            f"gradients of {len(self.layers)} linear layers, {self.parameters:,} of {self.total:,} parameters; "
            f"left out: {rest}"
        )


def select_layers(model: nn.Module, patterns: Sequence[str] = ()) -> LayerSelection:
    """Finds the linear layers whose gradients are taken.

    Args:
        model: a causal language model, with or without a PEFT adapter.
        patterns: regular expressions searched in the layer names; a layer is taken if any of them matches.
            None given: every linear layer (nn.Linear, Conv1D, quantised linear) inside the model's blocks; the
            embeddings and the output head are left out.

    Raises:
        ModelError: no layer matches, or a chosen weight is tied to an embedding (whose share of the gradient is not
            that of a linear layer and would be lost silently).
    """
    inner: nn.Module = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    linear = dict(_linear_modules(inner))
    chosen = {name: module for name, module in linear.items() if _wanted(name, inner, patterns)}
    if not chosen:
        some = ", ".join(list(linear)[:4]) or "none at all"
        raise ModelError(
            f"no linear layer matches {list(patterns) or 'the default (inside the blocks)'}",
            expected="a pattern that matches some of the model's linear layers",
            fix=f"choose --parameters from its {len(linear)} linear layers: {some} ...",
        )
    embeddings = {id(m.weight): n for n, m in inner.named_modules() if isinstance(m, nn.Embedding)}
    by_weight: dict[int, list[str]] = {}
    for name, module in chosen.items():
        weight = _weight(module)
        if id(weight) in embeddings:
            raise ModelError(
                f"the weight of {name} is tied to the embedding {embeddings[id(weight)]}",
                expected="layers whose gradient is that of a linear layer",
                cause="tie_word_embeddings",
                fix="leave the output head out of --parameters",
            )
        by_weight.setdefault(id(weight), []).append(name)
    layers = []
    for names in by_weight.values():
        inputs, outputs = _features(chosen[names[0]])
        modules = {id(chosen[n]): chosen[n] for n in names}
        layers.append(Layer(names[0], tuple(modules.values()), inputs, outputs))
    parameters = sum(layer.size for layer in layers)
    return LayerSelection(tuple(layers), parameters, *_left_out(inner, chosen))


def _wanted(name: str, inner: nn.Module, patterns: Sequence[str]) -> bool:
    if patterns:
        return any(re.search(pattern, name) for pattern in patterns)
    parts = name.split(".")
    return any(isinstance(inner.get_submodule(".".join(parts[:n])), nn.ModuleList) for n in range(1, len(parts)))


def _linear_modules(inner: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module to hook; of an adapted layer the wrapper, under the wrapped layer's own name."""
    found: list[tuple[str, nn.Module]] = []

    def visit(module: nn.Module, name: str) -> None:
        if hasattr(module, "base_layer") or hasattr(module, "original_module"):  # LoRA and the like; modules_to_save
            if _is_linear(_innermost(module)):
                found.append((name, module))
            return
        if _is_linear(module):
            found.append((name, module))
            return
        for child_name, child in module.named_children():
            visit(child, f"{name}.{child_name}" if name else child_name)

    visit(inner, "")
    return found


def _innermost(module: Any) -> Any:
    while True:
        if hasattr(module, "base_layer"):
            module = module.base_layer
        elif hasattr(module, "original_module"):
            copies: Any = getattr(module, "modules_to_save", {})
            active = next((name for name in getattr(module, "active_adapters", ()) if name in copies), None)
            module = copies[active] if active else module.original_module
        else:
            return module


def inputs_first(layer: Layer) -> bool:
    """Whether the layer's weight is kept as [I, O] (transformers' Conv1D)."""
    return not isinstance(_innermost(layer.modules[0]), nn.Linear)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _weight(module: nn.Module) -> nn.Parameter:
    weight: nn.Parameter = _innermost(module).weight
    return weight


def _features(module: nn.Module) -> tuple[int, int]:
    inner = _innermost(module)
    if isinstance(inner, nn.Linear):
        return inner.in_features, inner.out_features
    inputs, outputs = inner.weight.shape  # Conv1D keeps its weight transposed
    return inputs, outputs


def _left_out(inner: nn.Module, chosen: dict[str, nn.Module]) -> tuple[int, dict[str, int]]:
    covered = {id(_weight(module)) for module in chosen.values()}
    embedded = {id(m.weight) for m in inner.modules() if isinstance(m, nn.Embedding)}
    total, left, seen = 0, dict[str, int](), set[int]()
    adapter = re.compile(r"\.(lora_|ia3_|vera_|hada_|oft_|adapter|modules_to_save)")
    owner = {id(p): m for m in inner.modules() for p in m.parameters(recurse=False)}
    for name, parameter in inner.named_parameters():
        if id(parameter) in seen or adapter.search(name):
            continue
        seen.add(id(parameter))
        module = owner[id(parameter)]
        quantised = getattr(parameter, "quant_state", None)
        count = int(quantised.shape.numel()) if quantised is not None else parameter.numel()
        total += count
        if id(parameter) in covered:
            continue
        if isinstance(module, nn.Embedding) or id(parameter) in embedded:
            kind = "embeddings"
        elif name.endswith("bias"):
            kind = "biases"
        elif parameter.ndim < 2:
            kind = "norms"
        elif _is_linear(module):
            kind = "other linear layers"
        else:
            kind = f"{type(module).__name__} (not a linear layer)"
        left[kind] = left.get(kind, 0) + count
    return total, left

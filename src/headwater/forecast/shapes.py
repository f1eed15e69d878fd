"""The shape of a model: which linear layers are traced, and how many parameters there are.

From a folder the real shapes are read: the model is built without memory for its weights. From a size alone the shape
of the nearest well-known model is taken, its width scaled to the size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from headwater.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What decides the cost of a pass.

    Attributes:
        layers: (in features, out features) of every traced layer. blocks: of the model. hidden: its width.
        attention: width of the queries of one block. vocabulary: rows of the output head.
        parameters: of the whole model.
    """

    name: str
    layers: tuple[tuple[int, int], ...]
    blocks: int
    hidden: int
    attention: int
    vocabulary: int
    parameters: int

    @property
    def traced(self) -> int:
        """Parameters of the traced layers."""
        return sum(inputs * outputs for inputs, outputs in self.layers)

    @property
    def outputs(self) -> int:
        """Numbers that the traced layers give out for one token."""
        return sum(outputs for _, outputs in self.layers)

    def ranks(self, rank: int) -> list[tuple[int, int]]:
        """(r_in, r_out) of every layer, as `gradients.projection` chooses them."""
        found = []
        for inputs, outputs in self.layers:
            if min(inputs, outputs) > rank:
                found.append((rank, rank))
            elif inputs <= outputs:
                found.append((inputs, min(outputs, rank * rank // inputs)))
            else:
                found.append((min(inputs, rank * rank // outputs), outputs))
        return found

    @classmethod
    def of_size(cls, parameters: float) -> Self:
        """The shape of the well-known model that is nearest in size; its width is scaled where it differs by more than
        15 %.

        Raises:
            ModelError: a size below a million or above ten million million parameters.
        """
        if not 1e6 <= parameters <= 1e13:
            raise ModelError(f"a model of {parameters:.3g} parameters", expected="1M to 10T", fix="give --model-size")
        nearest = min(KNOWN, key=lambda known: abs(math.log(parameters / known.parameters)))
        ratio = parameters / nearest.parameters
        if abs(ratio - 1) <= 0.15:
            return cls(**_fields(nearest.shape()) | {"parameters": round(parameters)})
        width = math.sqrt(ratio)
        shape = nearest.scaled(width).shape()
        name = f"{nearest.name} with {width:.2f} times its width"
        return cls(**_fields(shape) | {"name": name, "parameters": round(parameters)})

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], patterns: Sequence[str] = ()) -> Self:
        """The real shape of a model in a folder, from its config alone.

        Raises:
            ModelError: no config there, or one that transformers cannot build a causal language model from.
        """
        place = Path(folder)
        if not (place / "config.json").exists():
            raise ModelError(
                f"{place} has no config.json",
                expected="the folder of a model",
                cause="an adapter, or the folder above",
                fix="give the folder of the base model",
            )
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from headwater.gradients.layers import select_layers

        try:
            config = AutoConfig.from_pretrained(place)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            raise ModelError(
                f"the model of {place} cannot be built ({line})",
                expected="a causal language model of transformers",
                fix="give --model-size instead",
            ) from None
        text = config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            name=place.name or str(place),
            layers=tuple((one.in_features, one.out_features) for one in select_layers(model, patterns).layers),
            blocks=int(text.num_hidden_layers),
            hidden=int(text.hidden_size),
            attention=int(text.num_attention_heads * head),
            vocabulary=int(text.vocab_size),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )


def _fields(shape: ModelShape) -> dict[str, Any]:
    return dict(vars(shape))


@dataclass(frozen=True)
class Known:
    """A well-known model of the Llama form: seven linear layers a block."""

    name: str
    blocks: int
    hidden: int
    middle: int
    keys: int
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        per_block = 2 * self.hidden * (self.hidden + self.keys) + 3 * self.hidden * self.middle
        return self.blocks * per_block + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def scaled(self, width: float) -> Known:
        """The same with other widths, in steps of 64."""
        hidden, middle, keys = (max(64, round(one * width / 64) * 64) for one in (self.hidden, self.middle, self.keys))
        return Known(self.name, self.blocks, hidden, middle, keys, self.vocabulary, self.tied)

    def shape(self) -> ModelShape:
        block = (
            (self.hidden, self.hidden),
            (self.hidden, self.keys),
            (self.hidden, self.keys),
            (self.hidden, self.hidden),
            (self.hidden, self.middle),
            (self.hidden, self.middle),
            (self.middle, self.hidden),
        )
        return ModelShape(
            name=self.name,
            layers=block * self.blocks,
            blocks=self.blocks,
            hidden=self.hidden,
            attention=self.hidden,
            vocabulary=self.vocabulary,
            parameters=self.parameters,
        )


KNOWN = (
    Known("SmolLM2-135M", 30, 576, 1536, 192, 49152, True),
    Known("Qwen2.5-0.5B", 24, 896, 4864, 128, 151936, True),
    Known("Llama-3.2-1B", 16, 2048, 8192, 512, 128256, True),
    Known("Llama-3.2-3B", 28, 3072, 8192, 1024, 128256, True),
    Known("Llama-3-8B", 32, 4096, 14336, 1024, 128256, False),
    Known("Qwen2.5-14B", 48, 5120, 13824, 1024, 152064, False),
    Known("Qwen2.5-32B", 64, 5120, 27648, 1024, 152064, False),
    Known("Llama-3-70B", 80, 8192, 28672, 1024, 128256, False),
    Known("Llama-3.1-405B", 126, 16384, 53248, 1024, 128256, False),
)
"""As their published configs say."""

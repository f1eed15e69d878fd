"""The models of a training run on this machine: device, precision, size of a batch, layers, hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.checkpoints import TrainingRun
from headwater.errors import ModelError, UsageError
from headwater.examples import Encoded
from headwater.gradients.factors import FactorHooks
from headwater.gradients.layers import Layer, select_layers
from headwater.gradients.projection import Projection

BATCH_TOKENS = {"cpu": 2048}
"""Tokens of a batch where the user gives no number: more does not make a CPU faster."""


@dataclass(frozen=True)
class Place:
    """A loaded model and its chosen layers.

    Attributes:
        precision: type that losses are summed and gradients are multiplied in.
        projection: of the gradients, or None.
        recompute: activation checkpointing.
    """

    model: Any
    layers: tuple[Layer, ...]
    precision: torch.dtype
    projection: Projection | None = None
    recompute: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def hooks(self, *, trim: bool = True) -> FactorHooks:
        return FactorHooks(
            self.model,
            self.layers,
            precision=self.precision,
            projection=self.projection,
            recompute=self.recompute,
            trim=trim,
        )


class Models:
    """Loads the models of a run one after the other, and sees to it that they fit together.

    Args:
        encoded: the rows that they will read; their tokens must be in the vocabulary.
        notes: what is worth knowing is written here, under "layers".

    Raises:
        UsageError: a device that cannot be used. ModelError: tokens that a model does not have.
    """

    def __init__(self, run: TrainingRun, compute: Compute, encoded: Sequence[Encoded], notes: dict[str, Any]) -> None:
        self._run, self._compute, self._notes = run, compute, notes
        self._highest = max((int(one.input_ids.max()) for one in encoded if one.targets), default=0)
        self._shapes: list[tuple[str, int, int]] | None = None
        self.device = _device(compute.device)
        self.dtype = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}[compute.dtype]
        self.precision = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.batch_tokens = compute.batch_tokens or BATCH_TOKENS.get(self.device.type, 16384)
        for checkpoint in (*run.checkpoints, *([run.base] if run.base else [])):
            size = run.vocabulary_size(checkpoint)
            if size is not None and checkpoint.kind == "full":
                self._check_vocabulary(size, checkpoint.name)

    def load(self, name: str) -> Place:
        """The checkpoint of that name, ready for work.

        Raises:
            ModelError: it cannot be loaded, lacks tokens, or has other layers than those loaded before.
        """
        model = self._run.load(self._run.named(name), dtype=self.dtype, device=self.device)
        self._check_vocabulary(model.get_input_embeddings().num_embeddings, name)
        selection = select_layers(model, self._compute.parameters)
        shapes = [(layer.name, layer.in_features, layer.out_features) for layer in selection.layers]
        if self._shapes is None:
            self._shapes = shapes
            sentence = selection.sentence()
            if "layers" not in self._notes:
                self._notes["layers"] = sentence
                progress.note(sentence[0].upper() + sentence[1:] + ".")
        if shapes != self._shapes:
            raise ModelError(
                f"{name} has other linear layers than the checkpoints before it",
                expected="one architecture for base and checkpoints",
                cause="the base is not the model this run started from",
                fix="give the right --base",
            )
        rank = self._compute.rank
        projection = Projection.of(selection.layers, rank, self._compute.seed) if rank else None
        return Place(model, selection.layers, self.precision, projection, self._compute.recompute)

    def _check_vocabulary(self, size: int, name: str) -> None:
        if self._highest >= size:
            raise ModelError(
                f"the token {self._highest} and {name}, whose vocabulary ends at {size - 1}",
                expected="a tokenizer that fits the model",
                cause="tokens added in training, or the tokenizer of another model",
                fix="give the base and checkpoints of one run",
            )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the device {name} cannot be used ({str(error).splitlines()[0][:80]})",
            expected="a device of this machine, such as cpu or cuda:0",
            fix="leave --device out",
        ) from None
    return device

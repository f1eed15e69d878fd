"""The models of a training run on this machine: device, precision, size of a batch, layers, hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.checkpoints import TrainingRun
from headwater.errors import ModelError, UsageError
from headwater.examples import Encoded
from headwater.gradients.curvature.spectrum import Spectrum
from headwater.gradients.factors import FactorHooks
from headwater.gradients.kept import KeptPass
from headwater.gradients.layers import Layer, select_layers
from headwater.gradients.measurement import InnerProduct
from headwater.gradients.projection import Projection, Scales

if TYPE_CHECKING:
    from headwater.attribution.sharding import Crew

BATCH_TOKENS = {"cpu": 2048}
"""Tokens of a batch where the user gives no number: more does not make a CPU faster."""


@dataclass(frozen=True)
class Place:
    """A loaded model and its chosen layers.

    Attributes:
        name: of the checkpoint.
        precision: type that losses are summed and gradients are multiplied in.
        projection: of the gradients, or None.
        recompute: activation checkpointing.
        seed: of projections.
        crew: the processes that the model is split over, where it is.
    """

    name: str
    model: Any
    layers: tuple[Layer, ...]
    precision: torch.dtype
    projection: Projection | None = None
    recompute: bool = False
    seed: int = 0
    crew: Crew | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def hooks(
        self,
        *,
        trim: bool = True,
        rank: int | None = None,
        scales: Scales | None = None,
        kept: KeptPass | None = None,
        compact: bool = False,
    ) -> FactorHooks:
        """Hooks on the layers.

        Args:
            rank: of the projection; None: as `projection` says; 0: none.
            trim, scales, kept, compact: as `FactorHooks` has them.
        """
        projection = self.projection
        if rank is not None:
            projection = Projection.of(self.layers, rank, self.seed) if rank else None
        return FactorHooks(
            self.model,
            self.layers,
            precision=self.precision,
            projection=projection,
            scales=scales,
            recompute=self.recompute,
            trim=trim,
            kept=kept,
            compact=compact,
            announce=None if self.crew is None else partial(self.crew.say_batch, trim),
        )


class Models:
    """Loads the models of a run one after the other, and sees to it that they fit together.

    Args:
        encoded: the rows that they will read; their tokens must be in the vocabulary.
        notes: what is worth knowing is written here, under "layers".
        crew: processes to split each model over.

    Raises:
        UsageError: a device that cannot be used. ModelError: tokens that a model does not have.
    """

    def __init__(
        self,
        run: TrainingRun,
        compute: Compute,
        encoded: Sequence[Encoded],
        notes: dict[str, Any],
        crew: Crew | None = None,
    ) -> None:
        self._run, self._compute, self._notes, self._crew = run, compute, notes, crew
        self._highest = max((int(one.input_ids.max()) for one in encoded if one.targets), default=0)
        self._shapes: list[tuple[str, int, int]] | None = None
        self.device = crew.device if crew else _device(compute.device)
        self.dtype = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}[compute.dtype]
        self.precision = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.batch_tokens = compute.batch_tokens or BATCH_TOKENS.get(self.device.type, 16384)
        self._ready: tuple[str, Place] | None = None
        run.check_configs()
        for checkpoint in (*run.checkpoints, *([run.base] if run.base else [])):
            size = run.vocabulary_size(checkpoint)
            if size is not None and checkpoint.kind == "full":
                self._check_vocabulary(size, checkpoint.name)

    def load(self, name: str) -> Place:
        """The checkpoint of that name, ready for work.

        Raises:
            ModelError: it cannot be loaded, lacks tokens, or has other layers than those loaded before.
        """
        ready, self._ready = self._ready, None
        if ready is not None and ready[0] == name:
            return ready[1]
        del ready  # its memory is needed now
        return self.load_as(name, self.dtype)

    def measure(self, encoded: Sequence[Encoded], kept: int | None) -> int:
        """Sets the tokens of a batch to what fits in memory, where the user gave no number.

        Args:
            kept: what was measured when this work began: another number would round otherwise.
        """
        if self._compute.batch_tokens is None:
            if kept is None:
                from headwater.attribution.measuring import tokens_that_fit

                last = self._run.last.name
                place = self.load(last)
                most = self.batch_tokens
                kept = tokens_that_fit(place, encoded, most)
                self._ready = (last, place)
                if kept < most:
                    self._notes["batch_tokens"] = f"batches of {kept} tokens: more would not fit in memory"
                    progress.note(f"Batches of {kept} tokens: more would not fit in memory.")
            self.batch_tokens = kept
        return self.batch_tokens

    def row_memory(self) -> int:
        """Bytes for gradients of rows that several passes read: what the user allows, where so much is free."""
        from headwater.attribution.measuring import MEMORY_SHARE, free_bytes

        return min(self._compute.row_memory, int(MEMORY_SHARE * free_bytes(self.device)))

    def check_half(
        self, encoded: Sequence[Encoded], sides: Sequence[Encoded], inners: Sequence[InnerProduct]
    ) -> float | None:
        """How well bfloat16 scores of a few rows correlate with those in float32, at the last checkpoint; None where
        the model does not fit in memory in float32."""
        from headwater.attribution import measuring

        name, found = self._run.last.name, []
        rows = measuring.sampled(encoded, measuring.CHECKED_ROWS)
        few = list(sides[: measuring.CHECKED_SIDES]) or rows[: measuring.CHECKED_SIDES]
        place = self.load(name)
        bytes_full = 4 * sum(parameter.numel() for parameter in place.model.parameters())
        bytes_full //= self._crew.size if self._crew else 1
        found.append(measuring.sample_scores(place, rows, few, inners, self.batch_tokens))
        self._ready = (name, place)
        if bytes_full > measuring.free_bytes(self.device):
            return None
        place = self.load_as(name, torch.float32)
        found.append(measuring.sample_scores(place, rows, few, inners, self.batch_tokens))
        return measuring.agreement(found[1], found[0])

    def adam(self, name: str, place: Place) -> Spectrum:
        """Adam's moments of the layers at a checkpoint, from the optimizer's state beside it.

        Raises:
            UsageError: there is none, or it does not fit the model.
        """
        from headwater.attribution.optimizer import adam_moments

        return adam_moments(self._run, name, place)

    def load_as(self, name: str, dtype: torch.dtype) -> Place:
        """As `load`, in another precision."""
        if self._crew is None:
            return self._load(name, dtype)
        self._ready = None  # the others forget it
        self._crew.say("load", name, dtype)
        return self._crew.in_turn(lambda: self._load(name, dtype))

    def _load(self, name: str, dtype: torch.dtype) -> Place:
        device = torch.device("cpu") if self._crew else self.device
        spread = self._compute.device_map
        model = self._run.load(self._run.named(name), dtype=dtype, device=device, device_map=spread)
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
        if self._crew is not None:
            self._crew.shard(model)
        rank, crew = self._compute.rank, self._crew
        projection = Projection.of(selection.layers, rank, self._compute.seed) if rank else None
        recompute, seed = self._compute.recompute, self._compute.seed
        return Place(name, model, selection.layers, self.precision, projection, recompute, seed, crew)

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
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the device {name} cannot be used ({str(error).splitlines()[0][:80]})",
            expected="a device of this machine, such as cpu or cuda:0",
            fix="leave --device out",
        ) from None
    return device

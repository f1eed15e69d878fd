"""Curvature of the rows at a checkpoint: fitted once, kept in the state, applied to the queries' gradients.

Shapes: S sides, O outputs, I inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headwater import progress
from headwater.attribution.work import fitted_form
from headwater.gradients.batches import Loss, collate
from headwater.gradients.contraction import SideGradients
from headwater.gradients.curvature import fitting
from headwater.gradients.curvature.options import Curvature, Space, Step
from headwater.gradients.curvature.spectrum import Map, Spectrum
from headwater.run import RunState, digest

if TYPE_CHECKING:
    from headwater.attribution.models import Place
    from headwater.attribution.passes import Rows
    from headwater.gradients.factors import FactorHooks

SAVE_SECONDS = 60.0
"""A fit under way is kept this often: what a kill may cost."""


class Curvatures:
    """The curvatures of a run's checkpoints.

    Args:
        adam: checkpoint name and loaded place -> Adam's moments there, layer by layer.
    """

    def __init__(self, rows: Rows, state: RunState, adam: Callable[[str, Place], Spectrum], bar: progress.Bar) -> None:
        self._rows, self._state, self._adam, self._bar = rows, state, adam, bar
        self._loaded: dict[str, Spectrum] = {}

    def fit(self, at: str, space: Space, curvature: Curvature, loaded: Callable[[], Place]) -> None:
        """Fits one, where it is not in the state already."""
        name = _name(at, space, curvature)
        if self._state.load(name) is not None:
            return
        self._bar.describe(f"Curvature: {at}")
        if curvature.kind == "adam":
            self._state.save(name, self._adam(at, loaded()).arrays())
            return
        place = loaded()
        scales = self.scales(at, space, loaded)
        stages: list[fitting.Stage] = []
        stage: fitting.Stage | None = None
        while True:
            hooks = place.hooks(rank=space.rank, scales=scales)
            stage = fitting.next_stage(curvature, stages) if stages else fitting.first_stage(curvature, hooks.shapes)
            if stage is None:
                break
            if stage.whole:
                hooks = place.hooks(rank=space.rank, scales=scales, trim=False)
            loss = curvature.loss if curvature.labels == "sampled" else space.loss
            # K-FAC's sums are EK-FAC's first ones
            owner = replace(curvature, kind="kfac") if isinstance(stage, fitting.Covariances) else curvature
            piece = f"{_name(at, space, owner)}-{len(stages)}"
            self._sum(stage, hooks, piece, place, loss, curvature.seed)
            stages.append(stage)
        self._state.save(name, fitting.spectrum_of(curvature, stages).arrays())

    def scales(self, at: str, space: Space, loaded: Callable[[], Place]) -> list[Any] | None:
        """Adafactor-like factors of the inputs and outputs of every layer, where the space has them."""
        if not space.scaled:
            return None
        place, name = loaded(), f"{at}/moments-{digest(repr(space.loss).encode())[:12]}"
        hooks = place.hooks()
        stage = fitting.Moments(hooks.shapes)
        plain = place.projection is None
        assert plain, "a scaled space comes before any projection"
        self._sum(stage, hooks, name, place, space.loss, 0)
        return [(c.to(place.device, place.precision), r.to(place.device, place.precision)) for c, r in stage.scales()]

    def apply(self, sides: SideGradients, steps: Sequence[Step], space: Space) -> SideGradients:
        """The sides, times f(H) of each step."""
        matrices = [layer.matrix() for layer in sides.layers]
        for step in steps:
            matrices = self._spectrum(step, space, matrices[0].device).apply(step, matrices)
        return SideGradients.of_matrices(matrices)

    def rows_map(self, steps: Sequence[Step], space: Space, device: torch.device) -> Map | None:
        """What is done to each layer of the rows' gradients."""
        if not steps:
            return None
        maps = [self._spectrum(step, space, device).map(step) for step in steps]

        def mapped(number: int, g_BOI: torch.Tensor) -> torch.Tensor:
            for one in maps:
                g_BOI = one(number, g_BOI)
            return g_BOI

        return mapped

    def _spectrum(self, step: Step, space: Space, device: torch.device) -> Spectrum:
        name = _name(step.at, space, step.curvature)
        if name not in self._loaded:
            arrays = self._state.load(name)
            if arrays is None:
                raise RuntimeError(f"the curvature {name} was not fitted")
            self._loaded[name] = Spectrum.of_arrays(step.curvature, arrays, device)
        return Spectrum(step.curvature, self._loaded[name].bases)

    def forget(self) -> None:
        """Frees the memory of the curvatures; they stay in the state."""
        self._loaded.clear()

    def _sum(
        self, stage: fitting.Stage, hooks: FactorHooks, name: str, place: Place, loss: Loss, seed: int
    ) -> None:
        """One pass over the rows, from where it stopped; the sums are kept now and then, and at the end."""
        kept, rows, first = self._state.load(name), self._rows, 0
        if kept is not None:
            first = int(kept["next"][0])
            fitting.restore(stage, {key: array for key, array in kept.items() if key != "next"}, place.device)
        saved = time.monotonic()
        with hooks.attached():
            for number, chunk in enumerate(rows.chunks):
                if number >= first:
                    for batch in chunk:
                        encoded = [rows.encoded[row] for row in batch]
                        stage.batch(hooks, collate(encoded, place.device, place.precision, loss=loss, seed=seed))
                        self._bar.advance(rows.tokens([batch]))
                    last = number + 1 == len(rows.chunks)
                    if last or time.monotonic() - saved > SAVE_SECONDS:
                        self._state.save(name, fitting.stage_arrays(stage) | {"next": np.array([number + 1])})
                        saved = time.monotonic()
                else:
                    self._bar.advance(rows.tokens(chunk))


def _name(at: str, space: Space, curvature: Curvature) -> str:
    form = fitted_form(curvature)
    return f"{at}/curvature-{digest(repr((space, form)).encode())[:12]}"

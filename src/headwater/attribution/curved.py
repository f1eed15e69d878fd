"""Curvature of the rows at a checkpoint: fitted once, kept in the state, applied to the queries' gradients.

Shapes: S sides, O outputs, I inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from headwater import progress
from headwater.attribution.passes import one_row_too_large
from headwater.attribution.work import fitted_form
from headwater.errors import RunError
from headwater.gradients.batches import Loss, collate
from headwater.gradients.contraction import SideGradients
from headwater.gradients.curvature import fitting
from headwater.gradients.curvature.options import Curvature, Source, Space, Step
from headwater.gradients.curvature.spectrum import Map, Spectrum
from headwater.gradients.kept import Kept, Passes
from headwater.run import RunState, digest

if TYPE_CHECKING:
    from headwater.attribution.models import Place
    from headwater.attribution.passes import Rows
    from headwater.gradients.factors import FactorHooks
    from headwater.gradients.projection import Scales
    from headwater.index.manifest import Index

FOLDER = "curvature"
"""Of an index, where curvatures are kept."""

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
        self._scales: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._kept: Kept | None = None

    def begin(self, planned: Mapping[Source, Passes], budget: Callable[[], int]) -> None:
        """Plans the passes at one checkpoint; `budget`: bytes for gradients of rows that several of them read."""
        self._kept = Kept(planned, budget)

    def hooks(
        self, place: Place, space: Space, loaded: Callable[[], Place], curvature: Curvature | None = None
    ) -> FactorHooks:
        """Hooks for one of the planned passes: that fits a curvature, or that scores."""
        source = Source.of(space, curvature)
        passes = Passes(1) if self._kept is None else self._kept.planned.get(source, Passes(1))
        return place.hooks(
            rank=space.rank or None,
            scales=self.scales(place.name, space, loaded),
            trim=not passes.whole,
            compact=passes.count > 1 and not passes.whole,
            kept=None if self._kept is None else self._kept.begin(source),
        )

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
        shapes = place.hooks(rank=space.rank or None).shapes
        stages: list[fitting.Stage] = []
        loss = Source.of(space, curvature).loss
        while True:
            stage = fitting.next_stage(curvature, stages) if stages else fitting.first_stage(curvature, shapes)
            if stage is None:
                break
            hooks = self.hooks(place, space, loaded, curvature)
            # K-FAC's sums are EK-FAC's first ones
            owner = replace(curvature, kind="kfac") if isinstance(stage, fitting.Covariances) else curvature
            piece = f"{_name(at, space, owner)}-{len(stages)}"
            self._sum(stage, hooks, piece, place, loss, curvature.seed)
            stages.append(stage)
        self._state.save(name, fitting.spectrum_of(curvature, stages).arrays())

    def scales(self, at: str, space: Space, loaded: Callable[[], Place]) -> Scales | None:
        """Adafactor-like factors of the inputs and outputs of every layer, where the space has them."""
        if not space.scaled:
            return None
        name = f"{at}/moments-{digest(repr(space.loss).encode())[:12]}"
        if name not in self._scales:
            place = loaded()
            hooks = place.hooks(rank=0)  # before any projection
            stage = fitting.Moments(hooks.shapes)
            self._sum(stage, hooks, name, place, space.loss, 0)
            self._scales[name] = [
                (c.to(place.device, place.precision), r.to(place.device, place.precision)) for c, r in stage.scales()
            ]
        return self._scales[name]

    def apply(self, sides: SideGradients, steps: Sequence[Step], space: Space) -> SideGradients:
        """The sides, times f(H) of each step."""
        return SideGradients.of_matrices(self.times([layer.matrix() for layer in sides.layers], steps, space))

    def times(self, layers: Sequence[torch.Tensor], steps: Sequence[Step], space: Space) -> list[torch.Tensor]:
        """The same for gradients [B, O, I] of every layer."""
        found = list(layers)
        for step in steps:
            found = self._spectrum(step, space, found[0].device).apply(step, found)
        return found

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
        """Frees the memory of the curvatures, which stay in the state, and of the rows' gradients; says what was kept
        of these."""
        self._loaded.clear()
        self._scales.clear()
        sentence = "" if self._kept is None else self._kept.sentence()
        if sentence:
            progress.note(sentence[0].upper() + sentence[1:] + ".")
        self._kept = None

    def _sum(self, stage: fitting.Stage, hooks: FactorHooks, name: str, place: Place, loss: Loss, seed: int) -> None:
        sum_rows(stage, hooks, name, place, self._rows, self._state, self._bar, loss=loss, seed=seed)


def sum_rows(
    stage: fitting.Stage,
    hooks: FactorHooks,
    name: str,
    place: Place,
    rows: Rows,
    state: RunState,
    bar: progress.Bar,
    *,
    loss: Loss = "likelihood",
    seed: int = 0,
) -> None:
    """One pass over the rows, from where it stopped; the sums are kept now and then, and at the end.

    A batch that does not fit in the accelerator's memory has added to some sums already: they go back to what was kept
    last, and the batches from there on are halved.
    """
    pieces = 1
    while True:
        try:
            with hooks.attached():
                return _add_up(stage, hooks, name, place, rows, state, bar, loss=loss, seed=seed, pieces=pieces)
        except torch.OutOfMemoryError:
            if pieces >= max(len(batch) for chunk in rows.chunks for batch in chunk):
                raise one_row_too_large() from None
            pieces *= 2
            stage.sums.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _add_up(
    stage: fitting.Stage,
    hooks: FactorHooks,
    name: str,
    place: Place,
    rows: Rows,
    state: RunState,
    bar: progress.Bar,
    *,
    loss: Loss,
    seed: int,
    pieces: int,
) -> None:
    kept, first = state.load(name), 0
    if kept is not None:
        first = int(kept["next"][0])
        fitting.restore(stage, {key: array for key, array in kept.items() if key != "next"}, place.device)
    saved = time.monotonic()
    for number, chunk in enumerate(rows.chunks):
        if number >= first:
            for batch in chunk:
                size = -(-len(batch) // pieces)
                for start in range(0, len(batch), size):
                    some = batch[start : start + size]
                    encoded = [rows.encoded[row] for row in some]
                    collated = collate(encoded, place.device, place.precision, loss=loss, seed=seed, numbers=some)
                    stage.batch(hooks, collated)
                if pieces == 1:
                    bar.advance(rows.tokens([batch]))
            last = number + 1 == len(rows.chunks)
            if last or time.monotonic() - saved > SAVE_SECONDS:
                state.save(name, fitting.stage_arrays(stage) | {"next": np.array([number + 1])})
                saved = time.monotonic()
        elif pieces == 1:
            bar.advance(rows.tokens(chunk))


def _name(at: str, space: Space, curvature: Curvature) -> str:
    form = fitted_form(curvature)
    return f"{at}/curvature-{digest(repr((space, form)).encode())[:12]}"


class IndexedCurvatures:
    """Curvatures of an index's rows, fitted to its stored gradients and kept beside them, in `curvature/`.

    The file's name holds the fingerprint of the index (rows, models, projection): it is never used for another.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._shapes = [(layer.rank_in, layer.rank_out) for layer in index.layers]
        self._loaded: dict[str, Spectrum] = {}

    def apply(self, g_RF: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
        """f(H) of each step times gradients, all layers laid end to end."""
        pieces = torch.split(g_RF, [inputs * outputs for inputs, outputs in self._shapes], 1)
        layers = [one.reshape(-1, o, i) for one, (i, o) in zip(pieces, self._shapes, strict=True)]
        for step in steps:
            layers = self._spectrum(step).apply(step, layers)
        return torch.cat([layer.flatten(1) for layer in layers], 1)

    def _spectrum(self, step: Step) -> Spectrum:
        form = fitted_form(step.curvature)
        name = f"{step.at}-{digest(self._index.fingerprint.encode(), repr(form).encode())[:16]}.safetensors"
        if name not in self._loaded:
            self._loaded[name] = self._kept(name, form) or self._fit(name, step.at, form)
        return Spectrum(step.curvature, self._loaded[name].bases)

    def _kept(self, name: str, form: Curvature) -> Spectrum | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = self._index.folder.child(FOLDER)
        if not folder.exists(name):
            return None
        try:
            return Spectrum.of_arrays(form, load(folder.read_bytes(name)), torch.device("cpu"))
        except SafetensorError:
            return None  # damaged: made again

    def _fit(self, name: str, at: str, form: Curvature) -> Spectrum:
        from safetensors.numpy import save

        from headwater.index.store import decode

        index = self._index

        def chunks() -> Iterator[torch.Tensor]:
            for part in index.parts:
                store = index.store(part, at)
                left_out = [int(one["row"]) for one in part.quarantined]
                for chunk in range(store.shape.chunks):
                    stored = store.read(chunk)
                    bar.advance(stored.stop - stored.start)
                    g_BF = decode(stored, store.shape)
                    g_BF[[row - stored.start for row in left_out if stored.start <= row < stored.stop]] = 0
                    yield torch.from_numpy(g_BF)

        passes = 2 if form.kind == "datainf" else 1
        with progress.bar(f"Curvature: {at}", passes * index.rows) as bar:
            found = fitting.fit_features(form, self._shapes, chunks)
        arrays = {key: np.ascontiguousarray(array) for key, array in found.arrays().items()}
        try:
            index.folder.child(FOLDER).write_whole(name, save(arrays))
        except RunError:
            progress.note(f"The curvature of {at} cannot be kept beside the index: it will be fitted again next time.")
        return Spectrum.of_arrays(form, arrays, torch.device("cpu"))  # laid out as it will be when read

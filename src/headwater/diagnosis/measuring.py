"""Visits each checkpoint once, the base first, and measures it: losses, gradients, distance, what adapters express.

Every piece is kept in the run's state as soon as it is there; a checkpoint whose pieces are all there is not loaded.

Shapes: N sampled rows, M held-out rows, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headwater import progress
from headwater.attribution.asking import leanings
from headwater.checkpoints import BASE, Checkpoint
from headwater.diagnosis.facts import CheckpointFacts, Role
from headwater.diagnosis.posterior import Posteriors, limited
from headwater.examples import Encoded
from headwater.gradients.measurement import Sides
from headwater.run import RunState
from headwater.scores import Leaning

if TYPE_CHECKING:
    from headwater.attribution.models import Models, Place
    from headwater.attribution.passes import Rows
    from headwater.gradients.adapter import Adapter
    from headwater.gradients.mean import GradientSum

QUERIES, HELD_OUT, PROBES = "queries", "held-out", "probes"
"""Sets of texts on which posteriors are compared."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the checkpoints are measured on, as tokens.

    Attributes:
        rows: the sampled training rows; population: how many there are in all.
        held_out: rows that were never trained on. sides: outputs and corrected outputs of the queries.
        probes: sentences whose posteriors are compared.
    """

    rows: Rows
    population: int
    held_out: Rows | None = None
    sides: Sides | None = None
    probes: Sequence[Encoded] = ()

    def texts(self) -> dict[str, list[Encoded]]:
        """The sets of texts, with few targets each."""
        found: dict[str, Sequence[Encoded]] = {PROBES: self.probes}
        if self.sides is not None:
            found[QUERIES] = self.sides.encoded
        if self.held_out is not None:
            found[HELD_OUT] = list(self.held_out.encoded.values())
        return {name: limited(of) for name, of in sorted(found.items()) if of}


class Measurements:
    """Measures the checkpoints.

    Args:
        checkpoints: the base first where there is one; with the role each plays.
    """

    def __init__(
        self,
        checkpoints: Sequence[tuple[Checkpoint, Role]],
        evidence: Evidence,
        models: Models,
        state: RunState,
    ) -> None:
        self._checkpoints, self._evidence, self._models, self._state = checkpoints, evidence, models, state
        self.leanings: list[Leaning] = []

    def run(self) -> list[CheckpointFacts]:
        """Facts of every checkpoint, in the order given."""
        evidence = self._evidence
        names = [checkpoint.name for checkpoint, _ in self._checkpoints]
        sides = sum(side.length for side in evidence.sides.encoded) if evidence.sides else 0
        tokens = sum(_tokens(rows) for rows in (evidence.rows, evidence.held_out) if rows is not None) + sides
        texts = evidence.texts() if BASE in names else {}
        extra = sum(one.length for of in texts.values() for one in of)
        with progress.bar("Diagnosing", len(names) * (tokens + extra)) as bar:
            posteriors = Posteriors(texts, self._models.batch_tokens, self._state, bar)
            found = [self._visit(checkpoint, role, posteriors, bar) for checkpoint, role in self._checkpoints]
        posteriors.drop(BASE)
        return found

    def _visit(self, checkpoint: Checkpoint, role: Role, posteriors: Posteriors, bar: progress.Bar) -> CheckpointFacts:
        name, evidence = checkpoint.name, self._evidence
        bar.describe(f"Diagnosing: {name}")
        place: Place | None = None

        def loaded() -> Place:
            nonlocal place
            place = place or self._models.load(name)
            return place

        rows = self._rows(name, loaded, bar)
        held_out = None
        if evidence.held_out is not None:
            held_out = self._held_out(name, evidence.held_out, loaded, bar)
        expressed = {"mean loss": float(rows["expressed"][0])} if rows["rank"][0] else {}
        if evidence.sides is not None:
            self.leanings += leanings(name, evidence.sides, loaded, self._state)
            if expressed:
                expressed[QUERIES] = self._queries_expressed(name, evidence.sides, loaded)
            bar.advance(sum(side.length for side in evidence.sides.encoded))
        divergence: Mapping[str, tuple[float, float]] = {}
        if role == "base":
            others = [one.name for one, _ in self._checkpoints if one.name != name]
            posteriors.keep_base(name, loaded, not all(map(posteriors.compared, others)))
        else:
            divergence = posteriors.compare(BASE, name, loaded)
        return _facts(checkpoint, role, rows, evidence.population, held_out, divergence, expressed)

    def _rows(self, name: str, loaded: Callable[[], Place], bar: progress.Bar) -> dict[str, np.ndarray]:
        """Of the sampled rows: "loss" and "squared" gradient norm [N]; of their mean gradient "mean" (its squared norm)
        and "expressed" (the share that an adapter can follow, and that of a random gradient); "rank"."""
        piece, rows = f"{name}/rows", self._evidence.rows
        found = self._state.load(piece)
        if found is not None:
            bar.advance(_tokens(rows))
            return found
        from headwater.attribution.curved import sum_rows
        from headwater.gradients.mean import GradientSum

        place = loaded()
        hooks = place.hooks()
        total = GradientSum(hooks.shapes)
        sum_rows(total, hooks, f"{piece}-sum", place, rows, self._state, bar)
        adapters = _adapters(place)
        squared, expressed = _energies(total, place, adapters)
        count = len(rows.encoded)
        order = np.argsort([row for chunk in rows.chunks for batch in chunk for row in batch])
        found = {key: total.sums[key].double().cpu().numpy()[order] for key in ("loss", "squared")}
        found |= {
            "mean": np.array([squared / count**2]),
            "expressed": np.array([expressed / squared if squared > 0 else 0.0, _of_random(place, adapters)]),
            "rank": np.array([max((one.rank for one in adapters if one is not None), default=0)]),
        }
        self._state.save(piece, found)
        self._state.drop(f"{piece}-sum")
        return found

    def _held_out(self, name: str, rows: Rows, loaded: Callable[[], Place], bar: progress.Bar) -> np.ndarray:
        """Losses of the held-out rows [M]."""
        from headwater.attribution.passes import finished, loss_pass, run_chunks

        stem = f"{name}/held-out"
        if finished(stem, rows, self._state):
            loss_M = run_chunks(stem, rows, self._state, None, bar)["loss"]
        else:
            loss_M = loss_pass(loaded(), rows, stem, self._state, bar)
        return loss_M[sorted(rows.encoded)].astype(np.float64)

    def _queries_expressed(self, name: str, sides: Sides, loaded: Callable[[], Place]) -> float:
        """Share of the gradient of a query's measurement that the adapter can follow, mean over the queries."""
        piece = f"{name}/queries-expressed"
        found = self._state.load(piece)
        if found is None:
            from headwater.gradients.batches import collate
            from headwater.gradients.mean import GradientSum, weighted

            place = loaded()
            hooks, adapters = place.hooks(), _adapters(place)
            shares = []
            with hooks.attached():
                for weight_S in sides.matrix("contrast")[: len(sides.output_Q)]:
                    members = np.flatnonzero(weight_S)
                    batch = collate([sides.encoded[s] for s in members], place.device, place.precision)
                    total = GradientSum(hooks.shapes)
                    total.batch(hooks, weighted(batch, weight_S[members].tolist()))
                    squared, expressed = _energies(total, place, adapters)
                    shares.append(expressed / squared if squared > 0 else 0.0)
            found = {"share": np.array(shares)}
            self._state.save(piece, found)
        return float(found["share"].mean())


def _tokens(rows: Rows) -> int:
    return sum(rows.tokens(chunk) for chunk in rows.chunks)


def _adapters(place: Place) -> list[Adapter | None]:
    from headwater.gradients.adapter import Adapter

    return [Adapter.of(layer) for layer in place.layers]


def _energies(total: GradientSum, place: Place, adapters: Sequence[Adapter | None]) -> tuple[float, float]:
    """Squared norm of a sum of gradients, and of the part that the adapters can follow."""
    from headwater.gradients.adapter import trained_whole

    squared = expressed = 0.0
    for number, (layer, adapter) in enumerate(zip(place.layers, adapters, strict=True)):
        g_OI = total.matrix(number)
        size = float(g_OI.square().sum())
        squared += size
        if adapter is not None:
            expressed += adapter.expressed(g_OI)
        elif trained_whole(layer):
            expressed += size
    return squared, expressed


def _of_random(place: Place, adapters: Sequence[Adapter | None]) -> float:
    """The share of a random gradient whose entries are all alike."""
    sizes = [layer.size for layer in place.layers]
    kept = [size * one.of_random for size, one in zip(sizes, adapters, strict=True) if one is not None]
    return sum(kept) / sum(sizes)


def _facts(
    checkpoint: Checkpoint,
    role: Role,
    rows: Mapping[str, np.ndarray],
    population: int,
    held_out: np.ndarray | None,
    divergence: Mapping[str, tuple[float, float]],
    expressed: Mapping[str, float],
) -> CheckpointFacts:
    from headwater.gradients.mean import fitting_error, mean_gradient_norm

    mean, squared_N = float(rows["mean"][0]), rows["squared"]
    return CheckpointFacts(
        name=checkpoint.name,
        role=role,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        rank=int(rows["rank"][0]) or None,
        losses=rows["loss"],
        gradient_norm=float(np.sqrt(squared_N).mean()),
        mean_gradient_norm=mean_gradient_norm(mean, squared_N, population),
        fitting_error=fitting_error(mean, squared_N, population),
        held_out=held_out,
        divergence={name: kl for name, (kl, _) in divergence.items()},
        kept_choices={name: same for name, (_, same) in divergence.items()},
        expressed=dict(expressed),
        expressed_random=float(rows["expressed"][1]) if expressed else None,
    )

"""What each training row does at a checkpoint, beside rows held out: its loss, the length of its gradient, and how that
gradient lies to the mean gradient of the held-out rows.

    loss           l(z_i), nats
    own            |g_i|^2 = sum_l |g_il|^2                  self-influence (Pruthi et al. 2020, section 4.1)     (C)
    own_layers     1/L sum_l |g_il|^2 / mean_j |g_jl|^2      the same, every layer counting alike                 (D)
    dot            < G, g_i >                                G = mean gradient of the held-out rows               (D)
    cosine         < G, g_i > / (|G| |g_i|)
    layer_cosine   1/L sum_l < G_l, g_il > / (|G_l| |g_il|)

A negative inner product says that a training step on the row raises the loss of the held-out rows, to first order.

Without held-out rows, the training rows are parted into folds, and G of a row is the mean over the rows of the *other*
folds (cross-validated influence). Rows of one group of duplicates share a fold, so that a wrong row is not defended by
its copies. This is a cross-validation of the influence, not of the training: the checkpoints have seen all rows.
Status D; G itself is the validation gradient of Koh and Liang 2017 (arXiv 1703.04730) without curvature.

Shapes: N rows, F folds, L layers, B examples, T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.attribution.loop import CHUNK_BATCHES, describe, encode_rows
from headwater.checkpoints import BASE, TrainingRun
from headwater.errors import UsageError
from headwater.examples import Encoded, Encoder, Examples, TokenFormat
from headwater.run import RunState, run_directory

if TYPE_CHECKING:
    import torch

    from headwater.attribution.models import Place
    from headwater.attribution.passes import Rows

SIGNALS = ("loss", "own", "own_layers", "dot", "cosine", "layer_cosine")


@dataclass(frozen=True)
class Signals:
    """The signals of every row at every checkpoint.

    Attributes:
        at: checkpoint -> signal -> [N], the base first where it was visited; 0 for rows without counted tokens.
        fold_N: the fold of each row; -1 where held-out rows were given.
    """

    at: dict[str, dict[str, np.ndarray]]
    fold_N: np.ndarray


def signals(
    run: TrainingRun,
    train: Examples,
    held_out: Examples | None = None,
    *,
    folds: int = 5,
    together: Sequence[Sequence[int]] = (),
    checkpoints: Sequence[str] | None = None,
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
) -> Signals:
    """Measures every row at every checkpoint.

    Args:
        held_out: rows of the same kind that were not trained on; None: folds of the training rows.
        folds: how many, at least 2. together: rows that share a fold (their numbers). seed: of the folds.
        checkpoints: names, `base` among them where wanted; None: the base, where there is one, and all checkpoints.
        out: run directory; with it interrupted work goes on where it stopped.

    Raises:
        UsageError: too few rows for the folds, gradients that do not fit in `Compute.query_memory`, or bfloat16.
    """
    format, compute = format or TokenFormat(), compute or Compute()
    if compute.dtype == "bfloat16":
        raise UsageError(
            "lengths of gradients in bfloat16",
            expected="float32 or float64: no check has shown that bfloat16 keeps their order",
            fix="use --dtype float32",
        )
    if held_out is None and not 2 <= folds <= len(train):
        raise UsageError(
            f"{folds} folds of {len(train)} rows",
            expected="at least 2, and a row for each",
            fix="choose another number",
        )
    names = list(checkpoints or [*([BASE] if run.base else []), *(c.name for c in run.checkpoints)])
    for name in names:
        run.named(name)
    fold_N = np.full(len(train), -1) if held_out is not None else folded(len(train), folds, together, seed)
    config = describe(run, train, [], [], format, compute) | {
        "what": "signals",
        "at": names,
        "held_out": None if held_out is None else held_out.fingerprint,
        "folds": None if held_out is not None else [folds, seed, [list(one) for one in together]],
    }
    with run_directory(out, config) as state:
        work = _Work(run, train, held_out, fold_N, format, compute, state)
        return Signals({name: work.at(name, bar) for name, bar in work.each(names)}, fold_N)


def folded(count: int, folds: int, together: Sequence[Sequence[int]], seed: int) -> np.ndarray:
    """The fold of each row [N]: at random, of equal sizes as far as rows that belong together allow."""
    bundle_N = np.arange(count)
    for rows in together:
        bundle_N[list(rows)] = rows[0]
    order = np.random.default_rng(seed).permutation(count)
    bundles: dict[int, list[int]] = {}
    for n in order.tolist():
        bundles.setdefault(int(bundle_N[n]), []).append(n)
    fold_N, sizes = np.zeros(count, int), np.zeros(folds, int)
    for rows in sorted(bundles.values(), key=len, reverse=True):
        smallest = int(sizes.argmin())
        fold_N[rows] = smallest
        sizes[smallest] += len(rows)
    return fold_N


class _Work:
    def __init__(
        self,
        run: TrainingRun,
        train: Examples,
        held_out: Examples | None,
        fold_N: np.ndarray,
        format: TokenFormat,
        compute: Compute,
        state: RunState,
    ) -> None:
        from headwater.attribution.models import Models

        self._compute, self._state = compute, state
        encoder = Encoder(run.tokenizer(), format, train.template)
        encoded = encode_rows(encoder, train, {})
        outside = encode_rows(encoder, held_out, {}) if held_out is not None else []
        self._models = Models(run, compute, [*encoded, *outside], {})
        kept = state.load("batch")
        tokens = self._models.measure(encoded, int(kept["tokens"][0]) if kept else None)
        if kept is None:
            state.save("batch", {"tokens": np.array([tokens])})
        self._parts = [self._rows(encoded, fold_N == fold) for fold in np.unique(fold_N)]
        self._references = self._parts
        if held_out is not None:
            self._references = [self._rows(outside, np.ones(len(outside), bool))]
        self._own_folds = held_out is None

    def _rows(self, encoded: Sequence[Encoded], chosen_N: np.ndarray) -> Rows:
        from headwater.attribution.passes import Rows

        empty = Encoded(np.zeros(1, np.int64), np.zeros(1, bool))
        few = [one if chosen else empty for one, chosen in zip(encoded, chosen_N.tolist(), strict=True)]
        return Rows.of(few, self._models.batch_tokens, CHUNK_BATCHES[self._models.device.type == "cpu"])

    def each(self, names: Sequence[str]) -> Any:
        """(checkpoint, the bar)."""
        all_rows = [*self._parts, *self._references]
        total = sum(rows.tokens(chunk) for rows in all_rows for chunk in rows.chunks)
        with progress.bar("Measuring rows", total * len(names)) as bar:
            for name in names:
                bar.describe(f"Measuring rows: {name}")
                yield name, bar

    def at(self, name: str, bar: progress.Bar) -> dict[str, np.ndarray]:
        """Signal -> [N] at one checkpoint."""
        from headwater.attribution.passes import finished, run_chunks

        stems = [f"{name}/signals-{number:03d}" for number in range(len(self._parts))]
        total: dict[str, np.ndarray] = {}
        reference: _Reference | None = None
        for number, (stem, rows) in enumerate(zip(stems, self._parts, strict=True)):
            if finished(stem, rows, self._state):
                found = run_chunks(stem, rows, self._state, None, bar)
            else:
                reference = reference or _Reference(self._models.load(name), self._references, self._compute, bar)
                found = reference.measured(stem, rows, self._state, bar, without=number if self._own_folds else None)
            for key, value_N in found.items():
                total[key] = total.get(key, np.zeros(rows.count)) + value_N
        return total


class _Reference:
    """Mean gradients of the held-out rows, or of the folds, at one checkpoint."""

    def __init__(self, place: Place, references: Sequence[Rows], compute: Compute, bar: progress.Bar) -> None:
        import torch

        self.place = place
        self.hooks = place.hooks()
        numbers = sum(inputs * outputs for inputs, outputs in self.hooks.shapes)
        needed = (len(references) + 1) * numbers * self.hooks.precision.itemsize
        if needed > compute.query_memory:
            raise UsageError(
                f"{needed / 2**30:.1f} GiB for the mean gradients of {len(references)} sets of held-out rows",
                expected=f"at most {compute.query_memory / 2**30:.1f} GiB (Compute.query_memory)",
                fix="project the gradients (--rank 16), or use fewer --folds or --held-out",
            )
        made: dict[str, Any] = {"dtype": self.hooks.precision, "device": place.device}
        self.sum_F = [[torch.zeros(o, i, **made) for i, o in self.hooks.shapes] for _ in references]
        self.count_F = [len(rows.encoded) for rows in references]
        self.squares_L = torch.zeros(len(self.hooks.shapes), **made)
        with self.hooks.attached():
            for sums, rows in zip(self.sum_F, references, strict=True):
                self._add(sums, rows, bar)
        self.squares_L /= max(1, sum(self.count_F))

    def _add(self, sums: list[torch.Tensor], rows: Rows, bar: progress.Bar) -> None:
        from headwater.gradients.batches import collate
        from headwater.gradients.contraction import example_norm

        def consume(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
            sums[number].addmm_(d_BTO.flatten(0, 1).T, a_BTI.flatten(0, 1))
            self.squares_L[number] += example_norm(a_BTI, d_BTO).sum()

        for chunk in rows.chunks:
            for batch in chunk:
                encoded = [rows.encoded[row] for row in batch]
                self.hooks.backward(collate(encoded, self.place.device, self.place.precision), consume)
                bar.advance(rows.tokens([batch]))

    def measured(
        self, stem: str, rows: Rows, state: RunState, bar: progress.Bar, *, without: int | None
    ) -> dict[str, np.ndarray]:
        """The signals of some rows against all references but one [N]."""
        import torch

        from headwater.attribution.passes import run_chunks
        from headwater.gradients.batches import collate
        from headwater.gradients.contraction import example_norm

        used = [f for f in range(len(self.sum_F)) if f != without]
        count = max(1, sum(self.count_F[f] for f in used))
        mean_L = [sum(self.sum_F[f][number] for f in used) / count for number in range(len(self.hooks.shapes))]
        length_L = torch.stack([torch.linalg.vector_norm(mean) for mean in mean_L])
        layers = len(mean_L)

        def work(batch: Sequence[int]) -> dict[str, torch.Tensor]:
            encoded = [rows.encoded[row] for row in batch]
            zeros_B = torch.zeros(len(batch), dtype=self.hooks.precision, device=self.place.device)
            sums = {name: zeros_B.clone() for name in SIGNALS[1:]}

            def consume(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
                own_B = example_norm(a_BTI, d_BTO)
                dot_B = ((d_BTO @ mean_L[number]) * a_BTI).sum((1, 2))
                sums["own"] += own_B
                sums["own_layers"] += own_B / self.squares_L[number].clamp_min(1e-30) / layers
                sums["dot"] += dot_B
                sums["layer_cosine"] += _over(dot_B, own_B.sqrt() * length_L[number]) / layers

            losses_B = self.hooks.backward(collate(encoded, self.place.device, self.place.precision), consume)
            sums["cosine"] = _over(sums["dot"], sums["own"].sqrt() * torch.linalg.vector_norm(length_L))
            return {"loss": losses_B} | sums

        with self.hooks.attached():
            return run_chunks(stem, rows, state, work, bar)


def _over(dot_B: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    """0 where a gradient has no length."""
    return (dot_B / length_B.clamp_min(1e-30)) * (length_B > 0)

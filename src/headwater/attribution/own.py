"""Self-influence: the score of every row for itself.

    own[i] = sum_k w_k < P_k grad l(z_i; theta_k), N grad l(z_i; theta_k) >

High where a row had to be learnt on its own: mislabelled, rare, or memorised rows (Feldman and Zhang 2020; Pruthi et
al. 2020, section 4.1). A cosine of a gradient with itself is 1 and says nothing: for cosines it is the squared length
of what they compare.

Shapes: N rows, B rows of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.attribution.loop import CHUNK_BATCHES, check_precision, describe, encode_rows, planned
from headwater.attribution.plan import GradientPlan, Method, TextPlan, whole_form
from headwater.attribution.work import Doubt, Key, keys, terms, visits
from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.examples import Encoder, Examples, Query, TokenFormat
from headwater.gradients.inner import Product
from headwater.gradients.measurement import Target
from headwater.run import RunState, digest, run_directory

if TYPE_CHECKING:
    import torch

    from headwater.attribution.curved import Curvatures
    from headwater.attribution.models import Place
    from headwater.attribution.passes import Rows

TEXT_ROWS = 256
"""Rows that ask for themselves at once, by words."""


@dataclass(frozen=True)
class SelfInfluence:
    """The scores of the rows for themselves.

    Attributes:
        values: [N]. terms: by checkpoint [N].
    """

    method: str
    train: Examples
    values: np.ndarray
    terms: dict[str, np.ndarray]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Ids and values of the first rows, the highest first; of equal ones the earlier row."""
        order = np.argsort(-self.values, kind="stable")[:count]
        return [(self.train[int(n)].id, float(self.values[n])) for n in order]


def self_influence(
    run: TrainingRun,
    train: Examples,
    *,
    method: Method,
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    out: str | os.PathLike[str] | None = None,
) -> SelfInfluence:
    """Scores every training row for itself.

    Args:
        method: one of gradients (within checkpoints), or of words; DDA's default is that of whole rows here.
        out: run directory; with it interrupted work goes on where it stopped.

    Raises:
        UsageError: a method that has no self-influence.
    """
    format, compute = format or TokenFormat(), compute or Compute()
    method = whole_form(method)
    plan = planned(method, run, compute.rank)
    check_precision(method.name, plan, compute)
    if isinstance(plan, TextPlan):
        values_N = _by_words(method, train)
        return SelfInfluence(method.name, train, values_N, {"text": values_N})
    apart = isinstance(plan, GradientPlan) and any(term.query_at != term.example_at for term in plan.terms)
    if not isinstance(plan, GradientPlan) or apart or plan.inner == "token_cosine":
        raise UsageError(
            f"the self-influence of {method.name}",
            expected="a method of inner products of gradients within one checkpoint, or of words",
            fix="choose another method, such as tracin, dda with level='score' and inner='layer_cosine', or influence",
        )
    config = describe(run, train, [], [method], format, compute) | {"what": "self-influence"}
    with run_directory(out, config) as state:
        found = _measured(run, train, method, plan, format, compute, state)
    target = [Target(name="itself", kind="query", members=(0,))]
    rows = {name: values_N[None] for name, values_N in found.items()}
    weights = method.weights(run, rows, target)
    total_N = np.sum([weight * found[name] for name, weight in weights.items()], axis=0)
    return SelfInfluence(method.name, train, total_N, found)


def _measured(
    run: TrainingRun,
    train: Examples,
    method: Method,
    plan: GradientPlan,
    format: TokenFormat,
    compute: Compute,
    state: RunState,
) -> dict[str, np.ndarray]:
    """Term name -> values [N]."""
    from headwater.attribution.curved import Curvatures
    from headwater.attribution.models import Models
    from headwater.attribution.passes import Rows

    notes: dict[str, Any] = {}
    encoded = encode_rows(Encoder(run.tokenizer(), format, train.template), train, notes)
    models = Models(run, compute, encoded, notes)
    if compute.batch_tokens is None:
        kept = state.load("batch")
        tokens = models.measure(encoded, int(kept["tokens"][0]) if kept else None)
        state.save("batch", {"tokens": np.array([tokens])})
    rows = Rows.of(encoded, models.batch_tokens, CHUNK_BATCHES[models.device.type == "cpu"])
    wanted = [key for _, key in keys(plan)]
    done: dict[Key, np.ndarray] = {}
    todo = [visit for visit in visits(run, [plan]) if visit.products or visit.curvatures]
    each = sum(rows.tokens(chunk) for chunk in rows.chunks)
    with progress.bar("Self-influence", each * len(wanted)) as bar:
        curved = Curvatures(rows, state, models.adam, bar)
        for visit in todo:
            place: Place | None = None

            def loaded(at: str = visit.checkpoint) -> Place:
                nonlocal place
                place = place or models.load(at)
                return place

            curved.begin(visit.passes({}), models.row_memory)
            for space, curvature in sorted(visit.curvatures):
                curved.fit(visit.checkpoint, space, curvature, loaded)
            for product in sorted(visit.products):
                arrays = _own_pass(loaded, rows, visit.checkpoint, product, curved, state, bar)
                done[visit.checkpoint, product] = arrays["own"][None]
                if "doubt" in arrays:
                    done[visit.checkpoint, Doubt()] = arrays["doubt"]
            curved.forget()
    return {name: values_1N[0].astype(np.float64) for name, values_1N in terms(plan, done).items()}


def _own_pass(
    loaded: Any, rows: Rows, at: str, product: Product, curved: Curvatures, state: RunState, bar: progress.Bar
) -> dict[str, np.ndarray]:
    """Inner products of the rows' gradients with themselves: "own" [N], and "doubt" [N] in a margin space."""
    import torch

    from headwater.attribution.passes import finished, run_chunks
    from headwater.gradients.batches import collate
    from headwater.gradients.loss import by_example

    stem = f"{at}/own-{digest(repr(product).encode())[:12]}"
    if finished(stem, rows, state):
        return run_chunks(stem, rows, state, None, bar)
    place: Place = loaded()
    hooks = curved.hooks(place, product.space, loaded)
    own = _Own(product, curved, place.device)

    def work(batch: Sequence[int]) -> dict[str, torch.Tensor]:
        encoded = [rows.encoded[row] for row in batch]
        collated = collate(encoded, place.device, place.precision, loss=product.space.loss, numbers=batch)
        own.begin(collated.weight_K.new_zeros(collated.shape[0], dtype=hooks.precision))
        hooks.backward(collated, own.consume)
        found = {"own": own.end()}
        if product.space.margin:
            found["doubt"] = by_example(torch.sigmoid(hooks.token_losses_K) * collated.weight_K, collated)
        return found

    with hooks.attached():
        return run_chunks(stem, rows, state, work, bar)


class _Own:
    """Sums over the layers of a batch of < q, r > with q and r what the two sides make of a row's gradient, and of
    their squared lengths where these differ and a cosine is wanted."""

    def __init__(self, product: Product, curved: Curvatures, device: torch.device) -> None:
        self._product, self._curved = product, curved
        self._joint = any(step.curvature.joint for step in product.steps)
        self._cosine = product.inner != "dot" and product.steps != product.rows
        if not self._joint:
            self._query = curved.rows_map(product.steps, product.space, device)
            self._row = curved.rows_map(product.rows, product.space, device)
        self._whole: dict[int, torch.Tensor] = {}

    def begin(self, zeros_B: torch.Tensor) -> None:
        self._sums = [zeros_B.clone() for _ in range(3)]
        self._whole.clear()

    def consume(self, number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
        import torch

        from headwater.gradients.contraction import BLOCK_NUMBERS, example_norm

        if not self._joint and self._query is None and self._row is None:
            self._sums[0] += example_norm(a_BTI, d_BTO)
            return
        if self._joint:
            self._whole[number] = torch.bmm(d_BTO.mT, a_BTI)
            return
        size = a_BTI.shape[2] * d_BTO.shape[2]
        block = max(1, BLOCK_NUMBERS.get(a_BTI.device.type, 1 << 24) // size)
        for start in range(0, len(a_BTI), block):
            part = slice(start, start + block)
            g_BOI = torch.bmm(d_BTO[part].mT, a_BTI[part])
            self._add(part, *(g_BOI if m is None else m(number, g_BOI) for m in (self._query, self._row)))

    def end(self) -> torch.Tensor:
        if self._joint:
            g = [self._whole[number] for number in range(len(self._whole))]
            for q, r in zip(self._curved.times(g, self._product.steps, self._product.space), g, strict=True):
                self._add(slice(None), q, r)
        dot_B, query_B, row_B = self._sums
        if not self._cosine:
            return dot_B
        length_B = (query_B * row_B).sqrt()
        return (dot_B / length_B.clamp_min(1e-300)) * (length_B > 0)

    def _add(self, part: slice, q_BOI: torch.Tensor, r_BOI: torch.Tensor) -> None:
        q, r = q_BOI.flatten(1), r_BOI.flatten(1)
        self._sums[0][part] += (q * r).sum(1)
        if self._cosine:
            self._sums[1][part] += q.square().sum(1)
            self._sums[2][part] += r.square().sum(1)


def _by_words(method: Any, train: Examples) -> np.ndarray:
    """The diagonal of the rows' scores for each other."""
    out_N = np.zeros(len(train))
    said = [n for n in range(len(train)) if train[n].completion_text]
    for start in range(0, len(said), TEXT_ROWS):
        numbers = said[start : start + TEXT_ROWS]
        asked = [Query(train[n].prompt_text, train[n].completion_text) for n in numbers]
        score_QN = method.score_text(asked, train)
        out_N[numbers] = score_QN[np.arange(len(asked)), numbers]
    return out_N

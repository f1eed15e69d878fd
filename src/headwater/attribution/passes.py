"""The passes over the training rows at one checkpoint: gradients, losses under nudged weights, hidden states.

Each pass goes chunk by chunk; a finished chunk is kept in the run's state, so that a killed run loses at most the
chunk it was in.

Shapes: Q queries, R targets, S sides, N examples, B examples of a batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headwater import progress
from headwater.attribution.models import Place
from headwater.attribution.plan import RepresentationPlan
from headwater.attribution.work import Difference
from headwater.errors import ModelError, NumericalError
from headwater.examples import Encoded
from headwater.gradients.batches import collate, length_buckets
from headwater.gradients.contraction import FORMS, Form, SideGradients, forms_taken
from headwater.gradients.curvature.spectrum import Map
from headwater.gradients.directional import nudged, shifted, step_size
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.loss import by_example, can_slice_logits, losses
from headwater.gradients.measurement import Measurement, Sides
from headwater.run import RunState, digest


@dataclass(frozen=True)
class Rows:
    """The encoded training rows in the order they are worked through.

    Attributes:
        encoded: rows with at least one target token, by row number of the training data.
        count: N, all rows; those without targets keep the score 0.
        chunks: batches of row numbers.
    """

    encoded: Mapping[int, Encoded]
    count: int
    chunks: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of(cls, encoded: Sequence[Encoded], batch_tokens: int, chunk_batches: int) -> Rows:
        """Batches of similar length, and chunks of batches: the unit of work that is kept."""
        with_targets = [row for row, one in enumerate(encoded) if one.targets]
        buckets = length_buckets([encoded[row].length for row in with_targets], batch_tokens)
        batches = [tuple(with_targets[i] for i in bucket) for bucket in buckets]
        chunks = [tuple(batches[i : i + chunk_batches]) for i in range(0, len(batches), chunk_batches)]
        return cls({row: encoded[row] for row in with_targets}, len(encoded), tuple(chunks))

    @property
    def typical_lengths(self) -> tuple[float, ...]:
        """Tokens of short, middling and long rows."""
        lengths = [one.length for one in self.encoded.values()]
        return tuple(float(x) for x in np.quantile(lengths, [0.1, 0.5, 0.9])) if lengths else (1.0,)

    def tokens(self, chunk: Sequence[Sequence[int]]) -> int:
        return sum(self.encoded[row].length for batch in chunk for row in batch)


Loaded = Callable[[], Place]
"""Loads the model when it is first needed: not at all where every chunk is finished."""

BatchWork = Callable[[Sequence[int]], dict[str, torch.Tensor]]
"""Row numbers of a batch -> tensors [..., B], left on their device: nothing waits for them before a chunk ends."""


def chunk_names(stem: str, rows: Rows) -> list[str]:
    return [f"{stem}/{number:06d}" for number in range(len(rows.chunks))]


def finished(stem: str, rows: Rows, state: RunState) -> bool:
    return all(state.load(name) is not None for name in chunk_names(stem, rows))


def run_chunks(
    stem: str, rows: Rows, state: RunState, work: BatchWork | None, bar: progress.Bar
) -> dict[str, np.ndarray]:
    """Works through the chunks that are not finished; returns arrays [..., N], 0 where a row has no targets."""
    out: dict[str, np.ndarray] = {}
    for name, chunk in zip(chunk_names(stem, rows), rows.chunks, strict=True):
        numbers = np.array([row for batch in chunk for row in batch])
        piece = state.load(name)
        if piece is None or not np.array_equal(piece["rows"], numbers):
            if work is None:
                raise RuntimeError(f"chunk {name} is needed and there is no model to make it with")
            parts = []
            for batch in chunk:
                parts.append(halving(work, batch))
                bar.advance(rows.tokens([batch]))
            piece = {key: torch.cat([part[key] for part in parts], -1).cpu().numpy() for key in parts[0]}
            _check_finite(piece, stem)
            state.save(name, piece | {"rows": numbers})
        else:
            bar.advance(rows.tokens(chunk))
        for key, values in piece.items():
            if key != "rows":
                full = out.setdefault(key, np.zeros((*values.shape[:-1], rows.count), values.dtype))
                full[..., numbers] = values
    return out


def gradient_pass(
    place: Place,
    rows: Rows,
    stem: str,
    products: Sequence[Product],
    stored: Mapping[str, SideGradients],
    matrices: Mapping[Measurement, np.ndarray],
    state: RunState,
    bar: progress.Bar,
    form: Form | None,
    hooks: FactorHooks,
    mapped: Map | None = None,
    queries: int | None = None,
) -> dict[str, np.ndarray]:
    """Inner products of every example with the measurements: name of the product -> [R, N], "loss" and, for margins,
    "doubt" [N]; and how often each form of contraction was taken, "forms" [forms, N], a batch's at its first row.
    The products share a space, and what is done to the rows.

    Args:
        queries: how many of the targets are queries; where a group's number is the mean of its queries', these alone
            are in the answer [Q, N].
    """
    contractor = Contractor(stored, matrices, tuple(products), form=form, mapped=mapped, queries=queries)
    loss = products[0].space.loss

    def work(batch: Sequence[int]) -> dict[str, torch.Tensor]:
        encoded = [rows.encoded[row] for row in batch]
        collated = collate(encoded, place.device, place.precision, loss=loss, numbers=batch)
        contractor.contraction.chosen.update(dict.fromkeys(FORMS, 0))
        sums, losses_B = contractor(hooks, collated)
        found = {product_name(product): value for product, value in sums.items()} | {"loss": losses_B}
        found["forms"] = torch.zeros(len(FORMS), len(batch), dtype=torch.int32)
        found["forms"][:, 0] = torch.tensor([contractor.contraction.chosen[form] for form in FORMS])
        if loss == "margin":  # -log(p / (1 - p)) of a token -> 1 - p
            found["doubt"] = by_example(torch.sigmoid(hooks.token_losses_K) * collated.weight_K, collated)
        return found

    with hooks.attached():
        return run_chunks(stem, rows, state, work, bar)


def contractions(found: Mapping[str, np.ndarray]) -> str:
    """How the rows of a gradient pass were contracted, also those of an earlier process."""
    counts = found["forms"].sum(1).tolist()
    return forms_taken(dict(zip(FORMS, counts, strict=True)))


def product_name(product: Product) -> str:
    name = f"{product.measurement}/{product.inner}/{product.query_at}"
    return name if product.plain else f"{name}/{digest(repr(product).encode())[:12]}"


def difference_pass(
    loaded: Loaded, rows: Rows, stem: str, difference: Difference, sides: Sides, state: RunState, bar: progress.Bar
) -> np.ndarray:
    """Loss under the ground model minus loss under the error model, per target [R, N]."""
    matrix_RS = sides.matrix(difference.measurement)
    out = []
    for r in range(len(sides.targets)):
        losses_N = []
        for side, sign in (("error", 1), ("ground", -1)):
            chosen = [one for one, weight in zip(sides.encoded, matrix_RS[r], strict=True) if weight * sign > 0]
            name = f"{stem}/{r:04d}-{side}"
            if not chosen:  # no corrected output: the checkpoint itself is the ground model, one pass for all targets
                name = f"{stem}/untouched"
            if finished(name, rows, state):
                losses_N.append(run_chunks(name, rows, state, None, bar)["loss"])
                continue
            place = loaded()
            with nudged(place.model, place.layers, chosen, difference.step, place.precision):
                losses_N.append(run_chunks(name, rows, state, _loss_work(place, rows), bar)["loss"])
        error_N, ground_N = losses_N
        out.append(ground_N.astype(np.float64) - error_N)
    return np.stack(out)


def directional_pass(
    loaded: Loaded,
    rows: Rows,
    stem: str,
    product: Product,
    stored: Callable[[], SideGradients],
    matrix_QS: np.ndarray,
    state: RunState,
    bar: progress.Bar,
) -> np.ndarray:
    """Dot products as central differences of losses along the queries' gradients [Q, N].

    Args:
        stored: gradients of the sides, as matrices. matrix_QS: the queries' measurements.
    """
    out = []
    for q, weight_S in enumerate(matrix_QS):
        name = f"{stem}/{product_name(product)}-{q:04d}"
        size = state.load(f"{name}-step")
        direction: list[torch.Tensor] | None = None
        if size is None or not all(finished(f"{name}{sign}", rows, state) for sign in "+-"):
            place, sides = loaded(), stored()
            weights = torch.from_numpy(weight_S).to(sides.gram_LSS)
            direction = [torch.tensordot(weights, layer.matrix(), 1) for layer in sides.layers]
            size = {"size": np.array([step_size(place.layers, direction)])}
            state.save(f"{name}-step", size)
        step = float(size["size"][0])
        losses_N = []
        for sign in "+-":
            if direction is None or step == 0:
                losses_N.append(run_chunks(f"{name}{sign}", rows, state, None, bar)["loss"] if step else 0.0)
                continue
            with shifted(place.layers, direction, step if sign == "+" else -step):
                losses_N.append(run_chunks(f"{name}{sign}", rows, state, _loss_work(place, rows), bar)["loss"])
        above_N, below_N = (np.asarray(one, np.float64) for one in losses_N)
        out.append((above_N - below_N) / (2 * step) if step else np.zeros(rows.count))
    return np.stack(out)


def representation_pass(
    loaded: Loaded, rows: Rows, stem: str, plan: RepresentationPlan, sides: Sides, state: RunState, bar: progress.Bar
) -> np.ndarray:
    """Cosine of hidden states, summed over the queries of a target [R, N]."""
    if finished(stem, rows, state):
        return run_chunks(stem, rows, state, None, bar)["similarity"]
    place = loaded()

    def states(encoded: Sequence[Encoded]) -> torch.Tensor:
        batch = collate(encoded, place.device, place.precision, whole=True)
        with torch.no_grad():
            hidden = place.model(
                input_ids=batch.input_ids_BT,
                attention_mask=batch.attention_BT,
                use_cache=False,
                output_hidden_states=True,
                **({"logits_to_keep": 1} if can_slice_logits(place.model) else {}),
            ).hidden_states
        if not -len(hidden) <= plan.layer < len(hidden):
            raise ModelError(
                f"layer {plan.layer} of a model with {len(hidden) - 1} layers",
                expected=f"{-len(hidden)} to {len(hidden) - 1}",
                fix="choose another layer",
            )
        pooled = np.zeros(batch.shape)
        for b, row in enumerate(encoded):
            at = np.flatnonzero(row.loss_mask)
            pooled[b, at if plan.pooling == "mean" else at[-1:]] = 1
        weight_BT = torch.from_numpy(pooled).to(place.device, place.precision)
        pooled_BH = torch.einsum("bt,bth->bh", weight_BT, hidden[plan.layer].to(place.device, place.precision))
        return torch.nn.functional.normalize(pooled_BH, dim=1)

    query_QH = torch.cat([states([sides.encoded[side]]) for side in sides.output_Q])
    member_RQ = query_QH.new_zeros(len(sides.targets), len(query_QH))
    for r, target in enumerate(sides.targets):
        member_RQ[r, list(target.members)] = 1

    def work(batch: Sequence[int]) -> dict[str, torch.Tensor]:
        state_BH = states([rows.encoded[row] for row in batch])
        return {"similarity": member_RQ @ (query_QH @ state_BH.T)}

    return run_chunks(stem, rows, state, work, bar)["similarity"]


def loss_pass(place: Place, rows: Rows, stem: str, state: RunState, bar: progress.Bar) -> np.ndarray:
    """The rows' losses, in nats [N]; 0 without targets."""
    return run_chunks(stem, rows, state, _loss_work(place, rows), bar)["loss"]


def _loss_work(place: Place, rows: Rows) -> BatchWork:
    def work(batch: Sequence[int]) -> dict[str, torch.Tensor]:
        encoded = [rows.encoded[row] for row in batch]
        with torch.no_grad():
            losses_B = losses(place.model, collate(encoded, place.device, place.precision))
        return {"loss": losses_B}

    return work


def halving(work: BatchWork, batch: Sequence[int]) -> dict[str, torch.Tensor]:
    """Runs a batch; one that does not fit the accelerator's memory is halved and tried again."""
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise one_row_too_large() from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batch) // 2
    first, second = halving(work, batch[:half]), halving(work, batch[half:])
    return {key: torch.cat([first[key], second[key]], -1) for key in first}


def one_row_too_large() -> ModelError:
    """What is said where a batch of one row does not fit."""
    return ModelError(
        "one training row does not fit in the accelerator's memory beside the model",
        expected="room for a single row",
        cause="a long row, or many queries",
        fix="lower --max-length, trace fewer queries at once, or use --device cpu",
    )


def _check_finite(piece: Mapping[str, np.ndarray], stem: str) -> None:
    for key, values in piece.items():
        if not np.isfinite(values).all():
            raise NumericalError(
                f"{key} at {stem} is NaN or infinite for some row",
                expected="finite numbers",
                cause="a checkpoint with broken weights, or half precision that overflows",
                fix="check the checkpoint, or use --dtype float32",
            )


def blocks(sizes: Sequence[int], members: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Queries in blocks whose gradients fit in `budget` bytes together; queries of one group stay together.

    Args:
        sizes: bytes of each query's gradients. members: groups, as numbers of queries.
    """
    group_of = {q: number for number, group in enumerate(members) for q in group}
    bundles: dict[tuple[str, int], list[int]] = {}
    for q in range(len(sizes)):
        bundles.setdefault(("group", group_of[q]) if q in group_of else ("query", q), []).append(q)
    block: list[int] = []
    for bundle in bundles.values():
        if block and sum(sizes[q] for q in block + bundle) > budget:
            yield block
            block = []
        block = block + bundle
    if block:
        yield block

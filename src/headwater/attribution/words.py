"""Which words of a row, and which words of what was asked, carry a score.

    score = sum_k w_k N_k sum_l sum_u sum_t (a_lt . b_lu)(d_lt . e_lu)

is summed over u for the row's positions t, and over t for the positions u of the outputs: exact, so that the words of
either add up to the score. A token cosine has one position of the row, the best, at each checkpoint; the others have no
part. A position's part is shown at the word that it predicts where the loss counts that word, and else at the word that
it reads (a prompt acts through what is predicted from it). Where a group's number is the mean of its queries' numbers,
its words are too.

Shapes: R targets, K rows of one of them, T tokens (padded), U tokens of all sides.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from headwater import progress
from headwater.attribution.plan import GradientPlan, Method, Plan
from headwater.attribution.work import Visit, keys, visits
from headwater.errors import UsageError
from headwater.examples import Encoded, Encoder
from headwater.gradients.inner import Product, is_mean
from headwater.gradients.measurement import Measurement, Sides
from headwater.run import RunState, digest
from headwater.scores import Asked, RowWords, Scores

if TYPE_CHECKING:
    import torch

    from headwater.attribution.models import Models, Place
    from headwater.checkpoints import TrainingRun
    from headwater.gradients.contraction import SideGradients

Parts = Mapping[tuple[str, Product], tuple[np.ndarray, np.ndarray]]
"""Checkpoint of the rows and product -> parts by position of the rows [K, T] and of the sides [K, U]."""

Need = tuple[Measurement, bool]
"""A measurement, and whether each query of a group is measured alone."""

Made = list[tuple["SideGradients", "torch.Tensor"]]
"""Gradients position by position, and their squared norms by layer [L]: of a target, or of each of its queries."""


def check_words(count: int, methods: Sequence[Method], plans: Sequence[Plan]) -> None:
    """Raises UsageError where words are asked for and no method has any."""
    if count < 0:
        raise UsageError(f"the words of {count} rows", expected="0 or more", fix="leave --words out")
    if count and not any(has_words(plan) for plan in plans):
        raise UsageError(
            f"the words of {', '.join(method.name for method in methods)}",
            expected="a method of inner products of gradients, without curvature: others have no parts by word",
            fix="leave --words out, or use --method dda without --curvature",
        )


def has_words(plan: Plan) -> TypeGuard[GradientPlan]:
    """Whether a method's scores are made of parts by word."""
    return isinstance(plan, GradientPlan) and plan.plain


def with_words(
    answers: Mapping[str, Scores],
    plans: Sequence[Plan],
    count: int,
    *,
    run: TrainingRun,
    models: Models,
    encoder: Encoder,
    sides: Sides,
    state: RunState,
    rows: Mapping[int, Sequence[int]] | None = None,
) -> dict[str, Scores]:
    """The answers with the words of the first `count` rows of every target, where the method is one of gradients.

    Args:
        rows: number of a target -> numbers of the rows that are wanted, instead of the first ones.
    """

    def asked_for(name: str, r: int) -> list[int]:
        if rows is not None:
            return list(rows.get(r, ()))
        return [row.index for row in answers[name].top(count, target=r)]

    chosen = {name: plan for name, plan in zip(answers, plans, strict=True) if has_words(plan)}
    todo = [visit for visit in visits(run, list(chosen.values())) if visit.products or visit.keep_sides]
    wanted = []
    for r in range(len(sides.targets)):
        numbers = sorted({number for name in chosen for number in asked_for(name, r)})
        train = next(iter(answers.values())).train
        encoded = {number: encoder.example(train[number]) for number in numbers}
        wanted.append({number: row for number, row in encoded.items() if row.targets})
    parts: list[dict[tuple[str, Product], tuple[np.ndarray, np.ndarray]]] = [{} for _ in wanted]
    needs: dict[str, set[Need]] = {}
    for product in (product for visit in todo for product in visit.products):
        needs.setdefault(product.query_at, set()).add(_need(product))
    kept: dict[tuple[int, str, Need], Made] = {}
    with progress.bar("Words", len(todo) * len(wanted)) as bar:
        for visit in todo:
            place: Place | None = None

            def loaded(visit: Visit = visit) -> Place:
                nonlocal place
                place = place or models.load(visit.checkpoint)
                return place

            bar.describe(f"Words: {visit.checkpoint}")
            for r, chosen_rows in enumerate(wanted):
                if chosen_rows:
                    measured = needs.get(visit.checkpoint, set())
                    parts[r] |= _visit(visit, r, chosen_rows, sides, measured, loaded, kept, state, models.batch_tokens)
                bar.advance()
    tokenizer = run.tokenizer()
    texts = {n: token_texts(tokenizer, row.input_ids.tolist()) for some in wanted for n, row in some.items()}
    out = dict(answers)
    for name, plan in chosen.items():
        scores = answers[name]
        words = {
            (r, number): _combine(scores, plan, r, number, list(some), parts[r], some, texts, sides, tokenizer)
            for r, some in enumerate(wanted)
            for number in asked_for(name, r)
            if number in some
        }
        out[name] = replace(scores, words=words)
    return out


def _visit(
    visit: Visit,
    r: int,
    rows: Mapping[int, Encoded],
    sides: Sides,
    needs: set[Need],
    loaded: Callable[[], Place],
    kept: dict[tuple[int, str, Need], Made],
    state: RunState,
    batch_tokens: int,
) -> dict[tuple[str, Product], tuple[np.ndarray, np.ndarray]]:
    """The parts of one target's rows at one checkpoint, from the state where they were made already.

    Args:
        needs: gradients here that are wanted, here or (then they are kept) at a later checkpoint.
    """
    from headwater.gradients.by_token import token_sides

    here = visit.checkpoint
    products = sorted(visit.products)
    how = [f"{product}, mean" if is_mean(product.inner) else str(product) for product in products]
    inputs = [sides.targets[r].name, *how, *(str(n) for n in rows)]
    content = [row.input_ids.tobytes() for row in rows.values()] + [s.input_ids.tobytes() for s in sides.encoded]
    name = f"{here}/words-{r:04d}-{digest(*(text.encode() for text in inputs), *content)}"
    found = state.load(name)
    if found is not None and not visit.keep_sides:
        return {(here, p): (found[f"{n}/row"], found[f"{n}/asked"]) for n, p in enumerate(products)}
    for measurement, alone in sorted(needs):
        kept[r, here, (measurement, alone)] = made = []
        for one in sides.targets[r].members if alone else (r,):
            members, weights = _asked(sides, measurement, one)
            encoded = [sides.encoded[side] for side in members]
            made.append(token_sides(loaded().hooks(trim=False), encoded, weights, batch_tokens=batch_tokens))
    if found is None:
        found = {}
        for n, product in enumerate(products):
            made = kept[r, product.query_at, _need(product)]
            parts = [_split(product, one, rows, loaded, batch_tokens) for one in made]
            found[f"{n}/row"] = np.mean([row_KT for row_KT, _ in parts], axis=0)
            found[f"{n}/asked"] = np.concatenate([asked_KU for _, asked_KU in parts], axis=1) / len(parts)
        state.save(name, found)
    if not visit.keep_sides:
        for need in needs:
            del kept[r, here, need]
    return {(here, p): (found[f"{n}/row"], found[f"{n}/asked"]) for n, p in enumerate(products)}


def _need(product: Product) -> Need:
    return product.measurement, is_mean(product.inner)


def _split(
    product: Product,
    made: tuple[SideGradients, torch.Tensor],
    rows: Mapping[int, Encoded],
    loaded: Callable[[], Place],
    batch_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One product by position: of the rows [K, T] and of what was asked [K, U]."""
    from headwater.gradients.batches import collate, length_buckets
    from headwater.gradients.inner import Contractor

    stored, squared_L = made
    place = loaded()
    encoded = list(rows.values())
    tokens = stored.layers[0].tokens
    assert tokens is not None
    contractor = Contractor(
        {product.query_at: stored},
        {product.measurement: np.eye(tokens.sides)},
        (product,),
        by_token=True,
        squared={(product.measurement, product.query_at): squared_L[:, None].expand(-1, tokens.sides)},
    )
    row_KT = np.zeros((len(rows), max((one.length for one in encoded), default=1)))
    asked_KU = np.zeros((len(rows), tokens.sides))
    hooks = place.hooks(trim=False)
    with hooks.attached():
        for numbers in length_buckets([one.length for one in encoded], batch_tokens):
            batch = collate([encoded[n] for n in numbers], place.device, place.precision)
            value_UBT = contractor(hooks, batch)[0][product]
            row_KT[numbers, : batch.shape[1]] = value_UBT.sum(0).cpu().numpy()
            asked_KU[numbers] = value_UBT.sum(2).T.cpu().numpy()
    return row_KT, asked_KU


def _asked(sides: Sides, measurement: Measurement, r: int) -> tuple[list[int], list[float]]:
    """The sides of a target's measurement, and the weights of their losses."""
    weight_S = sides.matrix(measurement)[r]
    members = np.flatnonzero(weight_S).tolist()
    return members, weight_S[members].tolist()


def _combine(
    scores: Scores,
    plan: GradientPlan,
    r: int,
    index: int,
    order: Sequence[int],
    parts: Parts,
    rows: Mapping[int, Encoded],
    texts: Mapping[int, list[str]],
    sides: Sides,
    tokenizer: Any,
) -> RowWords:
    """The words of one row and of what was asked, all terms added up with the method's weights."""
    k = order.index(index)
    row = rows[index]
    members, _ = _asked(sides, plan.measurement, r)
    row_T = np.zeros(row.length)
    asked_U = np.zeros(sum(sides.encoded[side].length for side in members))
    for term, key in keys(plan):
        weight = scores.weights.get(term, 0.0)
        of_row, of_asked = parts[key]  # type: ignore[index]
        width = min(row.length, of_row.shape[1])
        row_T[:width] += weight * of_row[k, :width]
        asked_U += weight * of_asked[k]
    asked, first = [], 0
    for side in members:
        one = sides.encoded[side]
        values = asked_U[first : first + one.length]
        first += one.length
        q = next(q for q, pair in enumerate(zip(sides.output_Q, sides.corrected_Q, strict=True)) if side in pair)
        asked.append(
            Asked(
                query=sides.targets[q].name,
                side="output" if side == sides.output_Q[q] else "corrected",
                words=_words(token_texts(tokenizer, one.input_ids.tolist()), one, values),
            )
        )
    return RowWords(words=_words(texts[index], row, row_T), asked=tuple(asked))


def _words(texts: Sequence[str], encoded: Encoded, value_T: np.ndarray) -> tuple[tuple[str, float], ...]:
    """Tokens joined to words, with the parts of the positions that predict them."""
    at = np.arange(encoded.length)
    predicts = np.append(encoded.loss_mask[1:], False)
    shown_T = np.zeros(encoded.length)
    np.add.at(shown_T, at + predicts, value_T)
    words: list[tuple[str, float]] = []
    for text, value in zip(texts, shown_T.tolist(), strict=True):
        if words and (not text or _goes_on(words[-1][0], text)):
            words[-1] = (words[-1][0] + text, words[-1][1] + value)
        else:
            words.append((text, value))
    return tuple(words)


def _goes_on(before: str, after: str) -> bool:
    """Whether a token continues the word before it."""
    wide = unicodedata.east_asian_width(after[0]) in "WF"
    return bool(before) and before[-1].isalnum() and after[0].isalnum() and not wide


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; "" where the bytes of a character are not complete yet."""
    out: list[str] = []
    start = read = 0
    for end in range(1, len(ids) + 1):
        before, now = (
            tokenizer.decode(ids[start:to], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for to in (read, end)
        )
        if len(now) > len(before) and not now.endswith("\ufffd"):
            out.append(now[len(before) :])
            start, read = read, end
        else:
            out.append("")
    return out

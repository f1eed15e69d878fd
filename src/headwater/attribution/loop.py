"""The one loop: visits each checkpoint once, computes each wanted number once, and combines them method by method.

    for each checkpoint:                      load the model
        for each block of queries:            gradients of the queries' sides
            for each chunk of examples:       gradients of the examples, contracted at once, then forgotten
    for each method:                          score = sum_k w_k term_k

Memory: one model, the gradients of one block of queries, one batch, and the scores.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headwater import progress
from headwater.attribution.asking import leanings, with_outputs
from headwater.attribution.compute import Compute
from headwater.attribution.placebo import check_placebo, with_placebo
from headwater.attribution.plan import DirectionalPlan, GradientPlan, Method, Plan, TextPlan, plan_uses
from headwater.attribution.words import check_words, with_words
from headwater.attribution.work import Doubt, Key, Visit, terms, visits
from headwater.checkpoints import BASE, TrainingRun
from headwater.errors import DataError, UsageError
from headwater.examples import Encoded, Encoder, Examples, Query, TokenFormat
from headwater.gradients.curvature.options import PASSES, PLAIN, Space, Step
from headwater.gradients.inner import grouped, is_mean
from headwater.gradients.measurement import Sides, check_queries, encode_queries
from headwater.run import Notes, RunState, digest, run_directory, versions
from headwater.scores import Leaning, Scores, query_record

if TYPE_CHECKING:
    from headwater.attribution.models import Place
    from headwater.gradients.contraction import Form, SideGradients
    from headwater.gradients.inner import Product


CHUNK_BATCHES = (16, 1)
"""Batches of a chunk, the work that a kill may cost: on an accelerator (about a second each), on a CPU (many)."""


def trace(
    run: TrainingRun,
    train: Examples,
    queries: Sequence[Query],
    *,
    method: Method,
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    words: int = 0,
    placebo: Examples | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Scores:
    """Scores every training row for every query, by one method.

    Args:
        run: base model and checkpoints. train: the rows it was trained on. queries: what is asked.
        method: such as `headwater.DDA()`.
        format: how training turned rows into tokens (loss mask, maximum length, end-of-sequence token).
        compute: layers, precision, device, batch size.
        words: of so many first rows, which words carry the score: one pass more over them at each checkpoint.
        placebo: rows like the training rows that were never trained on; with them, q-values say which rows stand out
            by more than chance (`headwater.significance`). They are scored too.
        out: run directory; with it an interrupted trace goes on where it stopped, and the scores are saved.

    Raises:
        HeadwaterError: one line for anything that the caller can mend.
    """
    answers = trace_all(
        run,
        train,
        queries,
        methods=[method],
        format=format,
        compute=compute,
        words=words,
        placebo=placebo,
        out=out,
    )
    return answers[method.name]


def trace_all(
    run: TrainingRun,
    train: Examples,
    queries: Sequence[Query],
    *,
    methods: Sequence[Method],
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    words: int = 0,
    placebo: Examples | None = None,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Scores]:
    """As `trace`, for several methods at once: what they share is computed once. Method name -> scores."""
    format, compute = format or TokenFormat(), compute or Compute()
    check_methods(methods, queries)
    plans = [planned(method, run, compute.rank) for method in methods]
    check_words(words, methods, plans)
    if compute.dtype == "bfloat16" and any(isinstance(plan, DirectionalPlan) for plan in plans):
        raise UsageError(
            "the directional engine in bfloat16",
            expected="float32 or float64: steps of 5e-6 are lost in bfloat16's 8 bits, and the scores would be noise",
            fix="use --dtype float32, or a method of the gradient engine",
        )
    for method, plan in zip(methods, plans, strict=True):
        check_precision(method.name, plan, compute)
    note_contrasts(plans, queries)
    if placebo is not None:
        check_placebo(placebo, train, methods, plans)
    config = describe(run, train, queries, methods, format, compute)
    with run_directory(out, config) as state:
        tokenizer = run.tokenizer()
        encoder = Encoder(tokenizer, format, train.template)
        loop = _Loop(run, train, tokenizer, encoder, compute, state, config)
        answers = loop.run(queries, methods, plans, words)
        if placebo is not None:

            def chance(
                asked: Sequence[Query], able: Sequence[Method], folder: str | os.PathLike[str] | None
            ) -> dict[str, Scores]:
                return trace_all(run, placebo, asked, methods=able, format=format, compute=compute, out=folder)

            answers = with_placebo(answers, methods, plans, chance, out)
        if out is not None:
            first, *others = answers.values()
            first.save(Path(out), others=others)
    return answers


def check_methods(methods: Sequence[Method], queries: Sequence[Query]) -> None:
    """Raises UsageError for no method or one asked for twice, DataError for no query."""
    names = [method.name for method in methods]
    if not methods or len(set(names)) < len(names):
        raise UsageError(
            f"methods {', '.join(names) or 'none'}", expected="at least one, each once", fix="leave the second one out"
        )
    if not queries:
        raise DataError("no query", expected="at least one prompt", fix="give --prompt or --queries")


def planned(method: Method, run: TrainingRun, rank: int | None) -> Plan:
    """A method's plan, where all gradients are projected to `rank` (None: are not)."""
    plan = method.plan(run)
    return plan.where(rank) if isinstance(plan, GradientPlan) else plan


def check_precision(name: str, plan: Plan, compute: Compute) -> None:
    """Raises UsageError where curvature would be fitted in half precision."""
    if not isinstance(plan, GradientPlan):
        return
    if compute.dtype == "bfloat16" and plan.fitted:
        raise UsageError(
            f"{name} in bfloat16",
            expected="float32 or float64: small eigenvalues of its curvature would be noise",
            fix="use --dtype float32, or a method without curvature",
        )


def note_contrasts(plans: Sequence[Plan], queries: Sequence[Query]) -> None:
    """Says so where a contrast is wanted and queries have no corrected output."""
    contrast = any(getattr(plan, "measurement", None) == "contrast" for plan in plans)
    without = sum(query.corrected is None for query in queries)
    if contrast and without:
        progress.note(
            f"{without} of {len(queries)} queries have no corrected output: the loss of their output is measured. "
            "A corrected output usually tells the responsible rows from look-alikes far better."
        )


def visit_order(run: TrainingRun, names: Container[str]) -> list[str]:
    """The visited checkpoints from the base to the last."""
    return [name for name in (BASE, *(c.name for c in run.checkpoints)) if name in names]


def describe(
    run: TrainingRun,
    train: Examples,
    queries: Sequence[Query],
    methods: Sequence[Method],
    format: TokenFormat,
    compute: Compute,
) -> dict[str, Any]:
    """Everything that decides the result, as JSON values: the content of config.json."""
    checkpoints = [*run.checkpoints, *([run.base] if run.base else [])]
    return {
        "checkpoints": [
            {key: value for key, value in asdict(c).items() if value is not None} | {"fingerprint": c.fingerprint()}
            for c in checkpoints
        ],
        "quantization": run.quantization,
        "train": {
            "name": train.name,
            "rows": len(train),
            "fingerprint": train.fingerprint,
            "template": train.template,
        },
        "queries": [query_record(query) for query in queries],
        "methods": [
            {"name": method.name, "class": type(method).__name__}
            | {"options": asdict(cast(Any, method)) if is_dataclass(method) else {}}
            for method in methods
        ],
        "format": asdict(format),
        "compute": asdict(compute),
        "versions": versions(),
    }


class _Loop:
    def __init__(
        self,
        run: TrainingRun,
        train: Examples,
        tokenizer: Any,
        encoder: Encoder,
        compute: Compute,
        state: RunState,
        config: Mapping[str, Any],
    ) -> None:
        self.run_, self.train, self.compute = run, train, compute
        self.tokenizer, self.encoder = tokenizer, encoder
        self.state, self.config = state, config
        self.notes = Notes(state)

    def run(
        self, queries: Sequence[Query], methods: Sequence[Method], plans: Sequence[Plan], words: int
    ) -> dict[str, Scores]:
        """Scores of every method."""
        from headwater.attribution.models import Models
        from headwater.attribution.passes import Rows

        check_queries(queries, self.encoder)
        encoded = encode_rows(self.encoder, self.train, self.notes)
        self.models = Models(self.run_, self.compute, encoded, self.notes)
        if self.compute.batch_tokens is None and any(plan_uses(plan) for plan in plans):
            kept = self.state.load("batch")
            tokens = self.models.measure(encoded, int(kept["tokens"][0]) if kept else None)
            if kept is None:
                self.state.save("batch", {"tokens": np.array([tokens])})
        self.rows = Rows.of(encoded, self.models.batch_tokens, CHUNK_BATCHES[self.models.device.type == "cpu"])
        last = self.run_.last.name
        queries = with_outputs(
            queries, lambda: self.models.load(last).model, self.tokenizer, self.encoder, self.compute, self.state
        )
        sides = encode_queries(queries, self.encoder)
        self._check_half(plans, encoded, sides)
        self.dense = {
            plan.space
            for plan in plans
            if isinstance(plan, GradientPlan) and any(term.steps or term.rows for term in plan.terms)
        }
        done, lean = self._visit_all(plans, queries, sides)
        answers = {}
        for method, plan in zip(methods, plans, strict=True):
            if isinstance(plan, TextPlan):
                score_QN = method.score_text(queries, self.train)  # type: ignore[attr-defined]
                values = {"text": np.stack([score_QN[list(t.members)].sum(0) for t in sides.targets])}
            else:
                values = terms(plan, done)
            answers[method.name] = Scores.combine(
                method.name,
                values,
                method.weights(self.run_, values, sides.targets),
                queries=queries,
                targets=sides.targets,
                train=self.train,
                leanings=lean,
                provenance=dict(self.config) | {"notes": self.notes} | command(),
            )
        if words:
            return with_words(
                answers,
                plans,
                words,
                run=self.run_,
                models=self.models,
                encoder=self.encoder,
                sides=sides,
                state=self.state,
            )
        return answers

    def _check_half(self, plans: Sequence[Plan], encoded: Sequence[Encoded], sides: Sides) -> None:
        """Refuses bfloat16 where it changes the scores of a few rows."""
        inners = sorted({plan.inner for plan in plans if isinstance(plan, GradientPlan)})
        if self.compute.dtype != "bfloat16" or not inners:
            return
        kept = self.state.load("half")
        if kept is None:
            found = self.models.check_half(encoded, sides.encoded, inners)
            kept = {"correlation": np.array([np.nan if found is None else found])}
            self.state.save("half", kept)
        self.notes["half"] = half_note(float(kept["correlation"][0]), encoded)
        progress.note(self.notes["half"][0].upper() + self.notes["half"][1:] + ".")

    def _visit_all(
        self, plans: Sequence[Plan], queries: Sequence[Query], sides: Sides
    ) -> tuple[dict[Key, np.ndarray], list[Leaning]]:
        todo = visits(self.run_, plans)
        done: dict[Key, np.ndarray] = {}
        lean: dict[str, list[Leaning]] = {}
        if all(plan_uses(plan) == set() for plan in plans):
            todo = []  # words alone: no model is loaded
        total = sum(_passes(visit, sides) for visit in todo) * sum(self.rows.tokens(c) for c in self.rows.chunks)
        with progress.bar("Tracing", total) as bar:
            if todo:
                from headwater.attribution.curved import Curvatures

                self.curved = Curvatures(self.rows, self.state, self.models.adam, bar)
            for visit in todo:
                bar.describe(f"Tracing: {visit.checkpoint}")
                lean[visit.checkpoint] = self._visit(visit, queries, sides, done, bar)
        return done, [leaning for name in visit_order(self.run_, lean) for leaning in lean[name]]

    def _visit(
        self, visit: Visit, queries: Sequence[Query], sides: Sides, done: dict[Key, np.ndarray], bar: progress.Bar
    ) -> list[Leaning]:
        """All that is wanted at one checkpoint; loads no model where every piece of it is finished."""
        from headwater.attribution import passes

        name = visit.checkpoint
        place: Place | None = None

        def loaded() -> Place:
            nonlocal place
            if place is None:
                place = self.models.load(name)
            return place

        products = sorted(visit.products)
        if products and self._directional(visit, sides, loaded):
            self._differences(visit, products, sides, loaded, done, bar)
            products = []
        groups: dict[tuple[Space, tuple[Step, ...]], list[Product]] = {}
        for product in products:
            groups.setdefault((product.space, product.rows), []).append(product)
        spaces = {space for space, _ in (*visit.keep_sides, *groups)}
        blocks = {space: self._blocks(sides, queries, loaded, space) for space in sorted(spaces)}
        self.curved.begin(visit.passes({space: len(found) for space, found in blocks.items()}), self.models.row_memory)
        for space, curvature in sorted(visit.curvatures):
            self.curved.fit(name, space, curvature, loaded)
        if groups or visit.keep_sides:
            for space, dense in sorted(visit.keep_sides):
                for number, block in enumerate(blocks[space]):
                    piece = _sides_name(name, number, space, dense)
                    if self.state.load(piece) is None:
                        part = sides.part(block)
                        self.state.save(piece, self._side_gradients(loaded(), part, space, dense).arrays())
            for (space, _), group in groups.items():
                share = bar.scaled(1 / len(blocks[space]))
                self._inner_products(name, group, blocks[space], sides, loaded, done, share)
        self.curved.forget()
        for difference in sorted(visit.differences, key=repr):
            stem = f"{name}/difference-{digest(repr(difference).encode())[:8]}"
            done[name, difference] = passes.difference_pass(loaded, self.rows, stem, difference, sides, self.state, bar)
        for plan in sorted(visit.representations, key=repr):
            stem = f"{name}/representation-{digest(repr(plan).encode())[:8]}"
            done[name, plan] = passes.representation_pass(loaded, self.rows, stem, plan, sides, self.state, bar)
        return leanings(name, sides, loaded, self.state)

    def _inner_products(
        self,
        name: str,
        products: Sequence[Product],
        blocks: Sequence[list[int]],
        sides: Sides,
        loaded: Callable[[], Place],
        done: dict[Key, np.ndarray],
        bar: progress.Bar,
    ) -> None:
        """Products that share a space, and what is done to the rows: one pass over the rows for each block."""
        from headwater.attribution import passes

        space, rows = products[0].space, products[0].rows
        own = "" if space == PLAIN and not rows else f"-{digest(repr((space, rows)).encode())[:12]}"
        own += "-means" * any(is_mean(product.inner) for product in products)
        parts: list[tuple[list[int], dict[str, np.ndarray]]] = []
        for number, block in enumerate(blocks):
            stem = f"{name}/gradients{own}-{number:03d}"
            part = sides.part(block)
            if passes.finished(stem, self.rows, self.state):
                found = passes.run_chunks(stem, self.rows, self.state, None, bar)
            else:
                place = loaded()
                matrices = {m: part.matrix(m) for m in sorted({p.measurement for p in products})}
                dense = any(p.steps or p.rows for p in products)
                stored = {p.query: self._stored(p, number, name, place, part, dense) for p in products}
                hooks = self.curved.hooks(place, space, loaded)
                mapped = self.curved.rows_map(rows, space, place.device)
                found = passes.gradient_pass(
                    place,
                    self.rows,
                    stem,
                    products,
                    stored,
                    matrices,
                    self.state,
                    bar,
                    self._form,
                    hooks,
                    mapped,
                    queries=len(part.output_Q),
                )
            sentence = passes.contractions(found)
            if "contractions" not in self.notes:
                progress.note(sentence[0].upper() + sentence[1:] + ".")
            self.notes["contractions"] = self.notes.get("contractions", {}) | {stem: sentence}
            parts.append((sides.numbers(part), found))
        for product in products:
            full = np.zeros((len(sides.targets), len(self.train)))
            for numbers, found in parts:
                values = found[passes.product_name(product)]
                full[numbers[: len(values)]] = values  # the queries come first
            done[name, product] = grouped(full, product.inner, sides.targets)
        if space.margin:
            done[name, Doubt()] = parts[0][1]["doubt"]

    def _directional(self, visit: Visit, sides: Sides, loaded: Callable[[], Place]) -> bool:
        """Whether a visit's products are made as differences of losses; says what either way costs, the first time."""
        engine = self.compute.engine
        if engine == "gradient" or self.compute.rank is not None or self.compute.dtype == "bfloat16":
            return False
        reasons = [f"inner product {product.inner}" for product in sorted(visit.products) if product.inner != "dot"]
        if visit.keep_sides or any(product.query_at != visit.checkpoint for product in visit.products):
            reasons.append("debias at gradient level")
        reasons += ["curvature or a projection of its own" for product in visit.products if not product.plain]
        if engine == "directional" and reasons:
            raise UsageError(
                f"the directional engine with {reasons[0]}",
                expected="dot products within one checkpoint: differences of losses know no norm of a row's gradient",
                fix="choose --method tracin, dot, cea or dda-paper, or --inner dot for dda, or use --engine gradient",
            )
        kept = self.state.load("engine")
        if kept is None:
            from headwater.gradients.contraction import forward_passes

            shapes, lengths = loaded().hooks().shapes, self.rows.typical_lengths
            gradient = 2 + forward_passes(shapes, lengths, len(sides.encoded), self.models.batch_tokens)
            kept = {"passes": np.array([gradient, 2.0 * len(sides.output_Q) * len(visit.products)])}
            self.state.save("engine", kept)
        gradient, directional = kept["passes"].tolist()
        chosen = engine == "directional" or (not reasons and directional < gradient)
        if "engine" not in self.notes:
            why = f", which {reasons[0]} needs" if reasons else ""
            self.notes["engine"] = (
                f"engine: {'directional' if chosen else 'gradient'}{why}; in forward passes over the rows at each "
                f"checkpoint, directional would take {directional:.0f} and gradient about {gradient:.1f}"
            )
            progress.note(self.notes["engine"][0].upper() + self.notes["engine"][1:] + ".")
        return chosen

    def _differences(
        self,
        visit: Visit,
        products: Sequence[Product],
        sides: Sides,
        loaded: Callable[[], Place],
        done: dict[Key, np.ndarray],
        bar: progress.Bar,
    ) -> None:
        """The products of one checkpoint as differences of losses."""
        from headwater.attribution import passes

        name = visit.checkpoint
        share = bar.scaled(1 / (2 * len(sides.output_Q) * len(products)))
        for product in products:

            def stored() -> SideGradients:
                return self._side_gradients(loaded(), sides, PLAIN, dense=True)

            matrix_QS = sides.matrix(product.measurement)[: len(sides.output_Q)]
            score_QN = passes.directional_pass(
                loaded, self.rows, f"{name}/directional", product, stored, matrix_QS, self.state, share
            )
            done[name, product] = np.stack([score_QN[list(target.members)].sum(0) for target in sides.targets])

    def _side_gradients(self, place: Place, sides: Sides, space: Space, dense: bool) -> SideGradients:
        """The queries' gradients in a space; `dense`: as matrices."""
        from headwater.gradients.contraction import side_gradients

        return side_gradients(
            place.hooks(rank=space.rank or None, scales=self.curved.scales(place.name, space, lambda: place)),
            sides.encoded,
            batch_tokens=self.models.batch_tokens,
            lengths=self.rows.typical_lengths,
            memory=None if dense else self.compute.query_memory,
            form="materialised" if dense else self._form,
            examples=len(self.rows.encoded),
            loss=space.loss,
        )

    @property
    def _form(self) -> Form | None:
        return None if self.compute.contraction == "auto" else self.compute.contraction

    def _stored(
        self, product: Product, block: int, here: str, place: Place, sides: Sides, dense: bool
    ) -> SideGradients:
        """The queries' gradients of a product, times what they are multiplied by; `dense`: as matrices."""
        from headwater.gradients.contraction import SideGradients

        kept = self.state.load(_sides_name(product.query_at, block, product.space, bool(product.steps)))
        if kept is not None:
            found = SideGradients.of_arrays(kept, place.device)
        elif product.query_at != here:
            raise RuntimeError(f"the queries' gradients at {product.query_at} were not kept")
        else:
            found = self._side_gradients(place, sides, product.space, dense)
        if product.steps:
            return self.curved.apply(found, product.steps, product.space)
        return found.dense() if dense else found

    def _blocks(self, sides: Sides, queries: Sequence[Query], loaded: Any, space: Space) -> list[list[int]]:
        """The queries whose gradients in this space fit in memory together; the same at every checkpoint."""
        name = "blocks" if space == PLAIN else f"blocks-{digest(repr(space).encode())[:12]}"
        kept = self.state.load(name)
        if kept is None:
            from headwater.attribution.passes import blocks
            from headwater.gradients.contraction import side_bytes

            hooks = loaded().hooks(rank=space.rank or None)
            dense = sum(i * o for i, o in hooks.shapes) * hooks.precision.itemsize
            of_side = [dense if space in self.dense else side_bytes(hooks, side) for side in sides.encoded]
            sizes = [
                of_side[o] + (of_side[c] if c >= 0 else 0)
                for o, c in zip(sides.output_Q, sides.corrected_Q, strict=True)
            ]
            groups = [target.members for target in sides.targets if target.kind == "group"]
            number = np.zeros(len(queries), np.int64)
            for b, block in enumerate(blocks(sizes, groups, self.compute.query_memory)):
                number[block] = b
            kept = {"number": number}
            self.state.save(name, kept)
        count = int(kept["number"].max()) + 1
        if count > 1:
            progress.note(f"The queries' gradients do not fit in memory together: {count} passes over the rows.")
        return [np.flatnonzero(kept["number"] == b).tolist() for b in range(count)]


def half_note(correlation: float, encoded: Sequence[Encoded]) -> str:
    """What was found of half precision (NaN: nothing).

    Raises:
        UsageError: it is not safe.
    """
    from headwater.attribution.measuring import CHECKED_ROWS, refuse_unsafe_half

    if np.isnan(correlation):
        return "bfloat16 was not checked: the model does not fit in memory in float32"
    return refuse_unsafe_half(correlation, min(CHECKED_ROWS, sum(one.targets > 0 for one in encoded)))


def encode_rows(encoder: Encoder, train: Examples, notes: dict[str, Any]) -> list[Encoded]:
    """Tokens of the training rows; says what is worth knowing about them.

    Raises:
        DataError: no row has a token that the loss counts.
    """
    encoded, report = encoder.examples(train)
    for line in report.lines():
        progress.note(line)
    notes["rows"] = report.lines()
    if report.without_targets == len(train):
        raise DataError(
            f"no row of {train.name} has a token that the loss counts",
            expected="completions to learn from",
            cause="empty completions, or a maximum length that cuts them all off",
            fix="check the columns, or raise --max-length",
        )
    return encoded


def _passes(visit: Visit, sides: Sides) -> int:
    """Passes over the rows, the base's and checkpoint's fits among them."""
    fits = sum(PASSES[curvature.kind] for _, curvature in visit.curvatures)
    scales = len({space.loss for space, _ in visit.curvatures if space.scaled})
    products = len({(product.space, product.rows) for product in visit.products})
    return fits + scales + products + 2 * len(sides.targets) * len(visit.differences) + len(visit.representations)


def _sides_name(at: str, block: int, space: Space, dense: bool) -> str:
    own = "" if space == PLAIN and not dense else f"-{digest(repr((space, dense)).encode())[:12]}"
    return f"{at}/sides{own}-{block:03d}"


def command() -> dict[str, str]:
    """The command line that does this again, where it was one."""
    program = Path(sys.argv[0]).name
    return {"command": shlex.join([program, *sys.argv[1:]])} if program == "headwater" else {}

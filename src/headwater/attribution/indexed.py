"""Answers queries from a gradient index: the models give the queries' gradients, the rows' come from disk.

    for each checkpoint:      load the model: projected gradients of the queries
    for each chunk of rows:   inner products at every checkpoint at once, combined, forgotten (or kept, if asked)
    if asked:                 the first rows again, token by token, by the models (`headwater.attribution.second_look`)

What is chosen on the query's side is free: method, measurement, inner product, beta, weights of checkpoints.

Shapes: R targets, S sides, F features, N rows, n rows of a chunk, K kept rows, M sampled rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from headwater import progress
from headwater.attribution.asking import leanings, with_outputs
from headwater.attribution.compute import Compute
from headwater.attribution.loop import check_methods, command, note_contrasts, planned, visit_order
from headwater.attribution.placebo import answering, own
from headwater.attribution.plan import GradientPlan, Method, Plan, TextPlan, whole_form
from headwater.attribution.second_look import DTYPE, first_look, looked_again
from headwater.attribution.streaming import Asked, SpreadStream, Stream, asked_of
from headwater.attribution.words import check_words, with_words
from headwater.attribution.work import Key, Visit, keys, terms, visits
from headwater.checkpoints import Checkpoint, TrainingRun
from headwater.errors import ModelError, RunError, UsageError
from headwater.examples import Encoder, Query, TokenFormat
from headwater.gradients.inner import Product
from headwater.gradients.measurement import Measurement, Sides, Target, check_queries, encode_queries
from headwater.index.manifest import Index
from headwater.run import Notes, RunState, run_directory, versions
from headwater.scores import Leaning, NotScored, Population, Scores, query_record, weighted

if TYPE_CHECKING:
    import torch

    from headwater.attribution.cluster import Cluster

T = TypeVar("T")

SAMPLE_ROWS = 100_000
"""Rows that say what is usual, where not every score is kept."""


def trace_index(
    index: Index,
    queries: Sequence[Query],
    *,
    methods: Sequence[Method],
    run: TrainingRun | None = None,
    device: str = "auto",
    device_map: str | Mapping[str, int | str] | None = None,
    max_new_tokens: int = 32,
    limit: int | None = None,
    second_look: int = 0,
    words: int = 0,
    out: str | os.PathLike[str] | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> dict[str, Scores]:
    """Scores every row of an index for every query. Method name -> scores, with q-values where the index has placebo
    rows and the method's score of a row depends on that row alone.

    Args:
        index: as `Index.open` gives it.
        device, device_map: where the models compute the queries' gradients, as `Compute` has them.
        run: the models, where they lie elsewhere than when the index was built (their fingerprints are compared).
        words: of so many first rows, which words carry the score; the models read these rows once more.
        limit: of each target only the `limit` highest and lowest rows, in flat memory; None: all rows.
        second_look: compare so many highest rows of each target again, token by token, and keep these: the models read
            them once more. For methods of token cosines, which DDA's default then is; of others as many highest and
            lowest rows are kept.
        out: run directory for the scores.
        ray: score on the Ray cluster of this address; the answer is the same. workers: ranges of chunks at once.

    Raises:
        HeadwaterError: one line for anything that the caller can mend.
    """
    check_methods(methods, queries)
    run = run_of(index, run)
    stored_rank = index.config["compute"]["rank"]
    if not second_look:
        methods = _stored(methods)
    plans = [planned(method, run, stored_rank) for method in methods]
    check_words(words, methods, plans)
    _check_look(second_look, limit, methods, plans)
    kept = " with --second-look" if second_look else " with --limit"
    limit = second_look or limit
    for method, plan in zip(methods, plans, strict=True):
        if not isinstance(plan, GradientPlan | TextPlan) or (limit is not None and isinstance(plan, TextPlan)):
            raise UsageError(
                f"{method.name} from an index" + (kept if isinstance(plan, TextPlan) else ""),
                expected="a method of inner products of gradients: the index holds nothing else",
                fix="trace with --train and --checkpoints instead of --index",
            )
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} rows", expected="at least 1", fix="leave --limit out to keep all")
    for method, plan in zip(methods, plans, strict=True):
        check_stored(method.name, first_look(plan) if second_look else plan, stored_rank)
    index.require_whole()
    note_contrasts(plans, queries)
    stored: dict[str, Any] = dict(index.config["compute"])
    stored |= {"parameters": tuple(stored["parameters"]), "device": device, "device_map": device_map}
    stored |= {"max_new_tokens": max_new_tokens}
    compute = _made(str(index.folder), Compute, stored)
    chance = {} if index.placebo is None else {"placebo": index.placebo.fingerprint}
    config: dict[str, Any] = {
        "index": {"place": index.folder.url, "fingerprint": index.fingerprint, "rows": index.rows} | chance,
        "queries": [query_record(query) for query in queries],
        "methods": [
            {"name": method.name, "class": type(method).__name__}
            | {"options": asdict(cast(Any, method)) if is_dataclass(method) else {}}
            for method in methods
        ],
        "compute": {"device": device, "device_map": device_map, "max_new_tokens": max_new_tokens},
        "limit": limit,
        "second_look": second_look or None,
        "versions": versions("zarr"),
    }
    with run_directory(out, config) as state, _cluster(ray, workers) as cluster:
        trace = _Trace(index, run, compute, state, limit, cluster)
        answers = trace.run(queries, methods, plans, config, words, out)
        if out is not None:
            first, *others = answers.values()
            first.save(Path(out), others=others)
    return answers


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Cluster | None]:
    if address is None:
        yield None
        return
    from headwater.attribution.cluster import connected

    with connected(address, workers) as cluster:
        yield cluster


def _stored(methods: Sequence[Method]) -> list[Method]:
    """The methods as an index answers them, and a note where that is not what rows themselves would be asked."""
    stored = [whole_form(method) for method in methods]
    for given, method in zip(methods, stored, strict=True):
        if method != given:
            progress.note(
                f"{method.name}: an index holds whole rows and not their tokens. --second-look 100 compares the first "
                "100 again, token by token: more accurate, and slower, as the models read these rows."
            )
    return stored


def _check_look(count: int, limit: int | None, methods: Sequence[Method], plans: Sequence[Plan]) -> None:
    """Raises UsageError for a second look that nothing would come of."""
    if count < 0:
        raise UsageError(f"a second look at {count} rows", expected="0 or more", fix="leave --second-look out")
    if count and limit is not None:
        raise UsageError(
            "--second-look with --limit",
            expected="one of them: the rows that are looked at again are the rows that are kept",
            fix="leave --limit out",
        )
    if count and all(plan == first_look(plan) for plan in plans):
        raise UsageError(
            f"a second look by {', '.join(method.name for method in methods)}",
            expected="a method that tells a row's tokens apart: others would see the same again",
            fix="leave --second-look out, or use dda as it is, without --inner, --curvature and --level",
        )


def check_stored(name: str, plan: Plan, rank: int) -> None:
    """Raises UsageError where an index holds other gradients than a method needs."""
    if not isinstance(plan, GradientPlan):
        return
    needs, fix = None, "trace with --train and --checkpoints instead of --index"
    if plan.space.rank:
        needs, fix = f"gradients projected to rank {plan.space.rank}", f"add --rank {rank}"
    elif plan.space.scaled or plan.space.margin:
        needs = "other gradients than those of the loss"
    elif plan.inner == "token_cosine":
        needs, fix = "the tokens of every row", "add --second-look 100, or use --inner layer_cosine"
    elif any(term.rows for term in plan.terms):
        needs, fix = "the rows' gradients changed by curvature or an optimizer", f"use --inner dot, or {fix}"
    if needs:
        raise UsageError(
            f"{name} from an index: it needs {needs}",
            expected=f"gradients of the loss projected to rank {rank}, as the index holds them",
            fix=fix,
        )


@dataclass
class _Query:
    """Gradients of the targets at one checkpoint: measurement -> [R, F]."""

    at: str
    gradients: dict[Measurement, torch.Tensor]


class _Trace:
    def __init__(
        self,
        index: Index,
        run: TrainingRun,
        compute: Compute,
        state: RunState,
        limit: int | None,
        cluster: Cluster | None,
    ) -> None:
        self._index, self._run, self._compute, self._state, self._limit = index, run, compute, state, limit
        self._cluster = cluster
        self._notes = Notes(state)
        self._again: list[bool] = []
        """Of every method, whether it looks again: then the lowest rows do not matter."""

    def run(
        self,
        queries: Sequence[Query],
        methods: Sequence[Method],
        plans: Sequence[Plan],
        config: Mapping[str, Any],
        words: int,
        look_out: str | os.PathLike[str] | None,
    ) -> dict[str, Scores]:
        from headwater.attribution.models import Models

        train = self._index.parts[0].train
        format = _made(str(self._index.folder), TokenFormat, self._index.config["format"])
        encoder = Encoder(self._run.tokenizer(), format, train["template"])
        check_queries(queries, encoder)
        models = Models(self._run, self._compute, (), self._notes)
        last = self._run.last.name
        queries = with_outputs(
            queries, lambda: models.load(last).model, self._run.tokenizer(), encoder, self._compute, self._state
        )
        sides = encode_queries(queries, encoder)
        stored = [first_look(plan) for plan in plans]
        self._again = [look != plan for look, plan in zip(stored, plans, strict=True)]
        todo = visits(self._run, stored)
        if all(isinstance(plan, TextPlan) for plan in plans):
            todo = []
        at: dict[str, _Query] = {}
        lean: dict[str, list[Leaning]] = {}
        with progress.bar("Queries", len(todo)) as bar:
            for visit in todo:
                bar.describe(f"Queries: {visit.checkpoint}")
                at[visit.checkpoint], lean[visit.checkpoint] = self._ask(visit, stored, models, sides)
                bar.advance()
        ordered = [leaning for name in visit_order(self._run, lean) for leaning in lean[name]]
        products = {key: None for plan in stored for _, key in keys(plan)}
        gradients = self._gradients(list(products), at)
        stream = self._stream(self._index, list(products), gradients, sides.targets)
        left_out = [
            NotScored(number=row, id=one["id"], source=one["source"], reason=one["reason"])
            for row, one in self._index.quarantined.items()
        ]
        parts = {"queries": queries, "targets": sides.targets, "leanings": ordered, "not_scored": left_out}
        provenance = dict(self._index.config) | dict(config) | {"notes": self._notes} | command()
        answer = self._all if self._limit is None else self._ends
        answers = answer(stream, methods, stored, parts, provenance)
        once = [n for n, again in enumerate(self._again) if not again]
        if self._index.placebo is not None and once:
            of, by = [methods[n] for n in once], [stored[n] for n in once]
            answers |= self._against(self._index.placebo, answers, of, by, gradients)
        if any(self._again):
            answers = looked_again(
                answers,
                methods,
                plans,
                index=self._index,
                run=self._run,
                format=format,
                compute=self._compute,
                out=look_out,
            )
        if words:
            dtype = next(iter(answers.values())).provenance.get(DTYPE)
            given: dict[str, Any] = {"run": self._run, "encoder": encoder, "sides": sides, "state": self._state}
            for again in sorted(set(self._again)):
                chosen = [n for n, one in enumerate(self._again) if one == again]
                if again and dtype:
                    models = Models(self._run, replace(self._compute, dtype=dtype), (), self._notes)
                some = {methods[n].name: answers[methods[n].name] for n in chosen}
                answers |= with_words(some, [plans[n] for n in chosen], words, models=models, **given)
        return answers

    def _stream(
        self, index: Index, wanted: Sequence[Key], gradients: Mapping[Asked, torch.Tensor], targets: Sequence[Target]
    ) -> Stream:
        if self._cluster is not None and wanted:
            return SpreadStream(index, wanted, gradients, targets, self._cluster)
        return Stream(index, wanted, gradients, targets)

    def _against(
        self,
        placebo: Index,
        answers: Mapping[str, Scores],
        methods: Sequence[Method],
        plans: Sequence[Plan],
        gradients: Mapping[Asked, torch.Tensor],
    ) -> dict[str, Scores]:
        """The answers with the terms of the placebo rows, for the same gradients of the queries."""
        able = answering(methods, plans)
        wanted = {key: None for plan in plans if own(plan) for _, key in keys(plan)}
        stream = self._stream(placebo, list(wanted), gradients, next(iter(answers.values())).targets)
        scored = np.setdiff1d(np.arange(placebo.rows), list(placebo.quarantined))
        values = list(stream.chunks()) if wanted else []
        done = {key: np.concatenate([found[key] for *_, found in values], 1)[:, scored] for key in wanted}
        return {
            method.name: answers[method.name].against(terms(plan, done))
            for method, plan in zip(methods, plans, strict=True)
            if method in able
        }

    def _gradients(self, wanted: Sequence[Key], at: Mapping[str, _Query]) -> dict[Asked, torch.Tensor]:
        """The targets' gradients, times the curvature that each product has."""
        from headwater.attribution.curved import IndexedCurvatures

        curvatures = IndexedCurvatures(self._index) if any(cast(Product, p).steps for _, p in wanted) else None
        found: dict[Asked, torch.Tensor] = {}
        for _, one in wanted:
            product = cast(Product, one)
            g_RF = at[product.query_at].gradients[product.measurement]
            if curvatures is not None and product.steps:
                g_RF = curvatures.apply(g_RF, product.steps)
            found[asked_of(product)] = g_RF
        return found

    def _ask(self, visit: Visit, plans: Sequence[Plan], models: Any, sides: Sides) -> tuple[_Query, list[Leaning]]:
        """Gradients of the targets at one checkpoint, from the state where they were made already."""
        import torch

        name, place = visit.checkpoint, None

        def loaded() -> Any:
            nonlocal place
            place = place or models.load(name)
            return place

        measurements = sorted({plan.measurement for plan in plans if isinstance(plan, GradientPlan)})
        kept = self._state.load(f"{name}/queries")
        if kept is None:
            from headwater.gradients.contraction import side_gradients

            side = side_gradients(
                loaded().hooks(),
                sides.encoded,
                batch_tokens=models.batch_tokens,
                lengths=(1.0,),
                form="materialised",
            )
            kept = {}
            for measurement in measurements:
                m_RS = torch.from_numpy(sides.matrix(measurement)).to(side.gram_LSS)
                kept[measurement] = (m_RS @ side.flat()).float().cpu().numpy()
            self._state.save(f"{name}/queries", kept)
        gradients = {cast(Measurement, m): torch.from_numpy(np.array(array)) for m, array in kept.items()}
        return _Query(name, gradients), leanings(name, sides, loaded, self._state)

    def _all(
        self,
        stream: Stream,
        methods: Sequence[Method],
        plans: Sequence[Plan],
        parts: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> dict[str, Scores]:
        scored = np.setdiff1d(np.arange(self._index.rows), list(self._index.quarantined))
        train = self._index.examples(scored if self._index.quarantined else None)
        done = {key: np.zeros((len(parts["targets"]), self._index.rows), np.float32) for key in stream.keys}
        with progress.bar("Scoring rows", self._index.rows) as bar:
            for start, stop, values in stream.chunks():
                for key, value_Rn in values.items():
                    done[key][:, start:stop] = value_Rn
                bar.advance(stop - start)
        if self._index.quarantined:
            done = {key: value_RN[:, scored] for key, value_RN in done.items()}
        answers = {}
        for method, plan in zip(methods, plans, strict=True):
            if isinstance(plan, TextPlan):
                score_QN = method.score_text(parts["queries"], train)  # type: ignore[attr-defined]
                found = {"text": np.stack([score_QN[list(t.members)].sum(0) for t in parts["targets"]])}
            else:
                found = terms(plan, done)
            answers[method.name] = Scores.combine(
                method.name,
                found,
                method.weights(self._run, found, parts["targets"]),
                train=train,
                provenance=provenance,
                **parts,
            )
        return answers

    def _ends(
        self,
        stream: Stream,
        methods: Sequence[Method],
        plans: Sequence[Plan],
        parts: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> dict[str, Scores]:
        """First a sample of the chunks, which decides what is usual and an automatic beta; then all of them, of which
        only the ends are kept."""
        targets, limit = parts["targets"], min(self._limit or 1, self._index.rows)
        seen: dict[Key, list[np.ndarray]] = {key: [] for key in stream.keys}
        for start, stop, values in stream.chunks(sample=SAMPLE_ROWS):
            scored = stream.scored(start, stop)
            for key, value_Rn in values.items():
                seen[key].append(np.concatenate([value_Rn[:, first - start : end - start] for first, end in scored], 1))
        sample = {key: np.concatenate(found, 1) for key, found in seen.items()}
        weights = [
            method.weights(self._run, terms(plan, sample), targets) for method, plan in zip(methods, plans, strict=True)
        ]
        with progress.bar("Scoring rows", self._index.rows) as bar:
            found = stream.ends(limit, list(zip(plans, weights, strict=True)), bar.advance)
        ends = [one.highest_rows for one in found]
        ends += [one.lowest_rows for one, again in zip(found, self._again, strict=True) if not again]
        rows = np.unique(np.concatenate([rows.ravel() for rows in ends]))
        kept = self._terms_of(stream, rows)
        train = self._index.examples(rows)
        return {
            method.name: Scores.combine(
                method.name,
                terms(plan, kept),
                weight,
                train=train,
                provenance=provenance,
                population=Population(
                    rows=self._index.rows - len(self._index.quarantined),
                    numbers=rows,
                    sample=weighted(terms(plan, sample), weight),
                ),
                **parts,
            )
            for method, plan, weight in zip(methods, plans, weights, strict=True)
        }

    def _terms_of(self, stream: Stream, rows: np.ndarray) -> dict[Key, np.ndarray]:
        """Every term of some rows, from the chunks they are in."""
        found: dict[Key, list[np.ndarray]] = {key: [] for key in stream.keys}
        for start, stop, values in stream.chunks(rows=rows):
            wanted = rows[(rows >= start) & (rows < stop)] - start
            for key, value_Rn in values.items():
                found[key].append(value_Rn[:, wanted])
        return {key: np.concatenate(parts, 1) for key, parts in found.items()}


def _made(place: str, kind: type[T], found: Mapping[str, Any]) -> T:
    """An object of what the manifest says about it."""
    try:
        return kind(**found)
    except TypeError as error:
        raise RunError(
            f"{place} does not describe a {kind.__name__} ({str(error)[:160]})",
            expected="models as this version of headwater describes them",
            cause="another version of headwater, or a change by hand",
            fix="build the index, or trace, again",
        ) from None


def run_of(index: Index, given: TrainingRun | None = None) -> TrainingRun:
    """The models of an index, where they lie now.

    Args:
        given: the models, where they lie elsewhere than when the index was built.

    Raises:
        ModelError: a model that is missing or has changed. UsageError: another number of models.
    """
    return run_of_record(index.config, str(index.folder), given)


def run_of_record(config: Mapping[str, Any], place: str, given: TrainingRun | None = None) -> TrainingRun:
    """The models that a configuration names (of an index, or of a trace), as `run_of`.

    Args:
        place: what was made from them, for the message of an error.
    """
    records = [dict(record) for record in config["checkpoints"]]
    prints = [record.pop("fingerprint") for record in records]
    if given is None:
        found = [_made(place, Checkpoint, record) for record in records]
        base = next((c for c in found if c.name == "base"), None)
        given = TrainingRun(
            checkpoints=tuple(c for c in found if c is not base),
            base=base,
            quantization=config["quantization"],
        )
        if not given.checkpoints:
            raise RunError(
                f"{place} names no checkpoint but the base",
                expected="the models that it was built from",
                cause="a change by hand",
                fix="build it again",
            )
        for checkpoint in found:
            if not Path(checkpoint.location).exists() and checkpoint.revision is None:
                raise ModelError(
                    f"{checkpoint.location} is not there",
                    expected=f"the model {checkpoint.name} that {place} was made from",
                    cause="it was moved",
                    fix="say where it is now with --checkpoints and --base",
                )
    now = [*given.checkpoints, *([given.base] if given.base else [])]
    if len(now) != len(records):
        raise UsageError(
            f"{len(now)} models",
            expected=f"the {len(records)} that {place} was made from: {', '.join(r['name'] for r in records)}",
            fix="give the same --checkpoints and --base, or none",
        )
    for checkpoint, record, fingerprint in zip(now, records, prints, strict=True):
        if checkpoint.fingerprint() != fingerprint:
            raise ModelError(
                f"{checkpoint.location} is not the {record['name']} that {place} was made from",
                expected="the same weights and tokenizer files",
                cause="it was trained again, or replaced",
                fix="make it again, or give the models it was made from",
            )
    named = [replace(checkpoint, name=record["name"]) for checkpoint, record in zip(now, records, strict=True)]
    tuned = len(given.checkpoints)
    return replace(given, checkpoints=tuple(named[:tuned]), base=named[tuned] if given.base else None)

"""Diagnoses a training run: what is given becomes tokens, the checkpoints are measured, the verdicts are passed.

--out/config.json       what was asked for
--out/state/            finished pieces
--out/influence/        the trace of the sampled rows, where there are queries and no trace was given
--out/diagnosis.json    the manifest, written last
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.attribution.asking import with_outputs
from headwater.attribution.compute import Compute
from headwater.attribution.loop import CHUNK_BATCHES, command, describe, encode_rows, trace_all
from headwater.checkpoints import Checkpoint, TrainingRun
from headwater.diagnosis.diagnosis import Diagnosis
from headwater.diagnosis.facts import Facts, QueryFacts, Role
from headwater.diagnosis.influence import influence_facts
from headwater.diagnosis.probes import encode_probes
from headwater.errors import DataError, UsageError
from headwater.examples import Encoder, Examples, Query, TokenFormat
from headwater.gradients.measurement import Sides, encode_queries
from headwater.methods.dda import DDA
from headwater.run import Notes, RunState, digest, run_directory
from headwater.scores import Leaning, Scores, read_manifest

if TYPE_CHECKING:
    from headwater.attribution.models import Models

SAMPLE = 256
"""Training rows, and held-out rows, that are measured: quick on any data, and means of so many are well known."""


def diagnose(
    run: TrainingRun,
    train: Examples,
    *,
    queries: Sequence[Query] = (),
    held_out: Examples | None = None,
    probes: Sequence[str] = (),
    trace: str | os.PathLike[str] | None = None,
    others: Sequence[TrainingRun] = (),
    sample: int | None = SAMPLE,
    seed: int = 0,
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """Says whether attribution can be trusted for this model, and whether the fine-tuning did it at all.

    Args:
        run: base model and checkpoints. Without a base, what it already said is not known.
        train: the rows it was trained on.
        queries: what the model said, better with what it should have said.
        held_out: rows like the training rows that were never trained on: they show overfitting.
        probes: sentences whose token posteriors are compared with the base's.
        trace: folder of a finished trace of this run and these rows, instead of `queries`.
        others: other runs from the same base, such as LoRA runs of other ranks; the last checkpoint of each.
        sample: rows to measure, drawn by `seed`; None: all of them.
        format, compute: as for a trace. Gradients are whole here: no projection, no directional engine.
        out: run directory; with it an interrupted diagnosis goes on where it stopped.

    Raises:
        HeadwaterError: one line for anything that the caller can mend.
    """
    format, compute = format or TokenFormat(), compute or Compute()
    _check(run, train, queries, held_out, probes, trace, others, sample, compute)
    traced = None
    if trace is not None:
        traced = _traced(Path(trace), run, train)
        queries = list(traced.queries)
    rows, population = _sampled(train, sample, seed), len(train)
    unseen = None if held_out is None else _sampled(held_out, sample, seed)
    everyone = _with_others(run, others)
    config = describe(run, train, queries, [], format, compute) | {
        "what": "diagnosis",
        "held_out": None if held_out is None else {"name": held_out.name, "fingerprint": held_out.fingerprint},
        "probes": digest(*(text.encode() for text in probes)) if probes else None,
        "trace": None if traced is None else {"method": traced.method, "scores": digest(traced.values.tobytes())},
        "others": [c.fingerprint() for c, role in everyone if role == "other"],
        "sample": sample,
        "seed": seed,
    }
    with run_directory(out, config) as state:
        tokenizer = run.tokenizer()
        work = _Work(run, everyone, tokenizer, Encoder(tokenizer, format, train.template), compute, state)
        found = work.run(rows, population, unseen, list(queries), probes, traced, out)
        provenance = config | {"notes": work.notes} | command()
        diagnosis = Diagnosis.of(found, provenance)
        if out is not None:
            diagnosis.save(Path(out))
    return diagnosis


class _Work:
    def __init__(
        self,
        run: TrainingRun,
        everyone: Sequence[tuple[Checkpoint, Role]],
        tokenizer: Any,
        encoder: Encoder,
        compute: Compute,
        state: RunState,
    ) -> None:
        self._run, self._everyone, self._tokenizer, self._encoder = run, everyone, tokenizer, encoder
        self._compute, self._state = compute, state
        self.notes = Notes(state)

    def run(
        self,
        rows: Examples,
        population: int,
        held_out: Examples | None,
        queries: list[Query],
        probes: Sequence[str],
        traced: Scores | None,
        out: str | os.PathLike[str] | None,
    ) -> Facts:
        """All facts."""
        from headwater.attribution.models import Models
        from headwater.attribution.passes import Rows
        from headwater.diagnosis.measuring import Evidence, Measurements

        encoded = encode_rows(self._encoder, rows, self.notes)
        unseen = None if held_out is None else encode_rows(self._encoder, held_out, {})
        probed = encode_probes(probes, self._tokenizer, self._encoder.format)
        tuned = tuple(c for c, role in self._everyone if role != "base")
        models = Models(
            replace(self._run, checkpoints=tuned), self._compute, [*encoded, *(unseen or ()), *probed], self.notes
        )
        self._measure_batches(models, encoded)
        queries = with_outputs(
            queries,
            lambda: models.load(self._run.last.name).model,
            self._tokenizer,
            self._encoder,
            self._compute,
            self._state,
        )
        sides = encode_queries(queries, self._encoder) if queries else None
        chunk = CHUNK_BATCHES[models.device.type == "cpu"]
        counted = sum(one.targets > 0 for one in encoded)
        evidence = Evidence(
            rows=Rows.of(encoded, models.batch_tokens, chunk),
            population=round(population * counted / len(rows)),
            held_out=None if unseen is None else Rows.of(unseen, models.batch_tokens, chunk),
            sides=sides,
            probes=probed,
        )
        measurements = Measurements(self._everyone, evidence, models, self._state)
        checkpoints = measurements.run()
        influence = None
        if queries:
            scores, source = traced, "the trace"
            if scores is None:
                scores, source = self._influence(rows, queries, out), "the sampled rows"
            influence = influence_facts(scores, self._run, source)
        return Facts(
            checkpoints=checkpoints,
            queries=_query_facts(queries, sides, measurements.leanings) if sides is not None else [],
            influence=influence,
            rows=population,
            sampled=len(rows),
        )

    def _measure_batches(self, models: Models, encoded: Sequence[Any]) -> None:
        if self._compute.batch_tokens is not None:
            return
        kept = self._state.load("batch")
        tokens = models.measure(encoded, int(kept["tokens"][0]) if kept else None)
        if kept is None:
            self._state.save("batch", {"tokens": np.array([tokens])})

    def _influence(self, rows: Examples, queries: Sequence[Query], out: str | os.PathLike[str] | None) -> Scores:
        """Scores of the sampled rows by DDA, of whole rows: what is diagnosed are the rows' gradients."""
        method = DDA(inner="layer_cosine", beta=None if self._run.base is not None else 0)
        folder = None if out is None else Path(out) / "influence"
        found = trace_all(
            self._run,
            rows,
            queries,
            methods=[method],
            format=self._encoder.format,
            compute=self._compute,
            out=folder,
        )
        return found[method.name]


def _check(
    run: TrainingRun,
    train: Examples,
    queries: Sequence[Query],
    held_out: Examples | None,
    probes: Sequence[str],
    trace: str | os.PathLike[str] | None,
    others: Sequence[TrainingRun],
    sample: int | None,
    compute: Compute,
) -> None:
    """Refuses what cannot work, before anything is loaded."""
    if sample is not None and sample < 2:
        raise UsageError(f"a sample of {sample} rows", expected="at least 2", fix="raise --sample, or leave it out")
    if compute.rank is not None or compute.engine != "gradient":
        raise UsageError(
            "a diagnosis with projected gradients or the directional engine",
            expected="whole gradients",
            fix="leave rank and engine out; sample decides how long it takes",
        )
    if trace is not None and queries:
        raise UsageError(
            "a trace and queries", expected="one of them: a trace brings its queries", fix="leave --queries out"
        )
    if probes and run.base is None:
        raise UsageError(
            "probes without a base model",
            expected="the model that the checkpoints' posteriors are compared with",
            fix="give --base",
        )
    for other in others:
        if run.base is None or other.base is None or other.base.fingerprint() != run.base.fingerprint():
            raise UsageError(
                f"another run ({other.last.location}) of another base model",
                expected="runs of one base model, whose distance from it can be compared",
                fix="give --base, or leave this run out",
            )
    if held_out is not None:
        if (held_out.kind, held_out.template) != (train.kind, train.template):
            raise DataError(
                f"{held_out.name}: rows of kind {held_out.kind}, prompts {held_out.template}",
                expected=f"{train.kind}, {train.template}, as in {train.name}",
                fix="write the held-out rows like the training rows",
            )
        trained = {row.content_hash for row in train}
        shared = [row.source for row in held_out if row.content_hash in trained]
        if shared:
            raise DataError(
                f"{shared[0]}: a held-out row that is also a training row ({len(shared)} of them)",
                expected="rows that were never trained on",
                fix="take them out of the held-out rows",
            )


def _sampled(rows: Examples, count: int | None, seed: int) -> Examples:
    """So many rows drawn without replacement, in their order."""
    if count is None or count >= len(rows):
        return rows
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
    return Examples([rows[int(n)] for n in chosen], name=rows.name, template=rows.template)


def _with_others(run: TrainingRun, others: Sequence[TrainingRun]) -> list[tuple[Checkpoint, Role]]:
    """The base, the run's checkpoints, and the last checkpoint of each other run under a name of its own."""
    found: list[tuple[Checkpoint, Role]] = [(run.base, "base")] if run.base is not None else []
    found += [(checkpoint, "checkpoint") for checkpoint in run.checkpoints]
    taken = {checkpoint.name for checkpoint, _ in found}
    for other in others:
        place = Path(other.last.location)
        name = place.parent.name if place.name.startswith("checkpoint-") else place.name
        number, unique = 2, name
        while unique in taken:
            unique, number = f"{name} {number}", number + 1
        taken.add(unique)
        found.append((replace(other.last, name=unique), "other"))
    return found


def _traced(folder: Path, run: TrainingRun, train: Examples) -> Scores:
    """A finished trace of this run and these rows, by a method with a term for each checkpoint.

    Raises:
        RunError: no finished trace. DataError: of other rows or other models.
    """
    manifest = read_manifest(folder)
    known = {c.name: c.fingerprint() for c in (*run.checkpoints, *([run.base] if run.base else []))}
    for one in manifest["provenance"].get("checkpoints", []):
        if one["name"] in known and one["fingerprint"] != known[one["name"]]:
            raise DataError(
                f"{folder} was traced with another {one['name']}",
                expected="a trace of the checkpoints that are diagnosed",
                fix="give that trace's run, or trace this one",
            )
    tuned = [c.name for c in run.checkpoints]
    for method in manifest["methods"]:
        if any(name in method["weights"] for name in tuned):
            return Scores.load(folder, train, method=method["name"])
    raise DataError(
        f"{folder} with the methods {', '.join(m['name'] for m in manifest['methods'])}",
        expected="a method with a term for each checkpoint, such as dda or tracin, of this run",
        cause="a trace of another run, or of methods of words",
        fix="leave --trace out, or trace with --method dda",
    )


def _query_facts(queries: Sequence[Query], sides: Sides, leanings: Sequence[Leaning]) -> list[QueryFacts]:
    found = []
    for q, query in enumerate(queries):
        name = sides.targets[q].name
        own = {x.checkpoint: x for x in leanings if x.query == name}
        found.append(
            QueryFacts(
                name=name,
                prompt=query.prompt_text,
                output=str(query.output),
                corrected=query.corrected,
                tokens=sides.encoded[sides.output_Q[q]].targets,
                output_at={at: one.output for at, one in own.items()},
                corrected_at={at: one.corrected for at, one in own.items() if one.corrected is not None},
            )
        )
    return found

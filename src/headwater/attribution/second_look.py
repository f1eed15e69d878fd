"""A second look at the first rows of an index, token by token.

An index holds one gradient of every row, the sum over its positions. The layer cosine with it finds the rows worth a
second look; the token cosine, which tells a row's positions apart (`headwater.gradients.inner`), decides their order:

    of every target the highest rows by layer cosine, from the index
    these rows, SAMPLE others (what is usual) and the placebo rows, read once more by every model: token cosine

A row that the first look leaves out is not found by the second. Where it leaves out none, the answer is that of
`trace_all` with gradients projected as in the index.

Shapes: R targets, K rows that are looked at, M sampled rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headwater import progress
from headwater.attribution.loop import trace_all
from headwater.attribution.measuring import UnsafeHalfError
from headwater.attribution.plan import GradientPlan, Method, Plan
from headwater.examples import TokenFormat
from headwater.scores import Population, Scores, weighted

if TYPE_CHECKING:
    from headwater.attribution.compute import Compute
    from headwater.checkpoints import TrainingRun
    from headwater.index.manifest import Index

SAMPLE = 256
"""Rows beside the first ones that say what is usual."""

FOLDER = "second-look"
"""Where a run directory keeps it."""

DTYPE = "second_look_dtype"
"""In an answer's provenance: the precision of the second look, where it is another one than the index's."""


def first_look(plan: Plan) -> Plan:
    """What an index can say of a plan: of token cosines the layer cosines."""
    if isinstance(plan, GradientPlan) and plan.inner == "token_cosine":
        return replace(plan, inner="layer_cosine")
    return plan


def looked_again(
    answers: Mapping[str, Scores],
    methods: Sequence[Method],
    plans: Sequence[Plan],
    *,
    index: Index,
    run: TrainingRun,
    format: TokenFormat,
    compute: Compute,
    out: str | os.PathLike[str] | None,
) -> dict[str, Scores]:
    """The answers, those of the methods of token cosines by these.

    Args:
        answers: of the first look, with the highest rows of every target. plans: of the methods, as wanted.
        format, compute: as the index was built with, so that the gradients are the same; but in float32 where bfloat16
            would change the scores.
        out: run directory of the trace.
    """
    again = [method for method, plan in zip(methods, plans, strict=True) if plan != first_look(plan)]
    first = answers[again[0].name]
    assert first.population is not None
    scored, kept = _scored(index), first.population.numbers
    sampled = first.population.sample.shape[1]
    count = min(sampled, len(scored) if len(kept) == len(scored) else SAMPLE)
    spaced = scored[_spaced(len(scored), count)]
    read = np.union1d(kept, spaced)
    placebo = None if index.placebo is None else index.placebo.examples(_scored(index.placebo))

    def look(compute: Compute, folder: str) -> dict[str, Scores]:
        return trace_all(
            run,
            index.examples(read),
            first.queries,
            methods=again,
            format=format,
            compute=compute,
            placebo=placebo,
            out=None if out is None else Path(out) / folder,
        )

    told: dict[str, str] = {}
    try:
        found = look(compute, FOLDER)
    except UnsafeHalfError as error:
        progress.note(f"The second look computes in float32: {error.got}.")
        told = {DTYPE: "float32"}
        found = look(replace(compute, dtype="float32"), f"{FOLDER}-{told[DTYPE]}")
    thinned = _spaced(sampled, count)  # what is usual is told by as many rows for every method
    out_answers = {
        name: replace(one, population=replace(one.population, sample=one.population.sample[:, thinned]))
        for name, one in answers.items()
        if one.population is not None
    }
    for method in again:
        looked = found[method.name]
        at_kept, at_spaced = np.searchsorted(read, kept), np.searchsorted(read, spaced)
        usual = {name: values[:, at_spaced] for name, values in looked.terms.items()}
        weights = method.weights(run, usual, first.targets)
        scores = replace(
            answers[method.name],
            values=weighted(looked.terms, weights)[:, at_kept],
            terms={name: values[:, at_kept] for name, values in looked.terms.items()},
            weights=weights,
            population=Population(rows=len(scored), numbers=kept, sample=weighted(usual, weights)),
        )
        out_answers[method.name] = scores.against(looked.placebo_terms) if looked.placebo_terms else scores
    return {name: replace(one, provenance=dict(one.provenance) | told) for name, one in out_answers.items()}


def _spaced(rows: int, count: int) -> np.ndarray:
    """Evenly spaced numbers of rows [count]."""
    return np.linspace(0, rows - 1, count).astype(np.int64)


def _scored(index: Index) -> np.ndarray:
    """Numbers of the rows that the index has gradients of."""
    return np.setdiff1d(np.arange(index.rows), list(index.quarantined))

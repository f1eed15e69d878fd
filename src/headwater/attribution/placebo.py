"""Scores of placebo rows, which were never trained on: the same terms and weights as those of the training rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headwater import progress
from headwater.attribution.plan import GradientPlan, Method, Plan, TextPlan
from headwater.errors import DataError, UsageError
from headwater.examples import Examples, Query
from headwater.scores import Scores
from headwater.significance import FEWEST

FOLDER = "placebo"
"""Of a run directory: the trace of the placebo rows."""


def check_placebo(placebo: Examples, train: Examples, methods: Sequence[Method], plans: Sequence[Plan]) -> None:
    """Refuses placebo rows that cannot say anything, before anything is computed.

    Raises:
        DataError: as `check_rows`.
        UsageError: no method whose score of a row depends on that row alone.
    """
    check_rows(placebo, train)
    if not any(own(plan) for plan in plans):
        raise UsageError(
            f"placebo rows for {', '.join(method.name for method in methods)}",
            expected="a method whose score of a row does not depend on the other rows",
            cause="its curvature or its word frequencies are fitted to the rows it scores",
            fix="leave the placebo rows out, or use dda",
        )


def check_rows(placebo: Examples, train: Examples) -> None:
    """Raises DataError for too few placebo rows, rows of another kind, or rows that were trained on."""
    if len(placebo) < FEWEST:
        raise DataError(
            f"{placebo.name}: {len(placebo)} placebo rows",
            expected=f"at least {FEWEST}, better as many as training rows",
            fix="hold back more rows",
        )
    if placebo.template != train.template or placebo.kind != train.kind:
        raise DataError(
            f"{placebo.name}: rows of kind {placebo.kind}, prompts {placebo.template}",
            expected=f"{train.kind}, {train.template}, as in {train.name}",
            fix="write the placebo rows like the training rows",
        )
    trained = {row.content_hash for row in train}
    shared = [row.source for row in placebo if row.content_hash in trained]
    if shared:
        raise DataError(
            f"{shared[0]}: a placebo row that is also a training row ({len(shared)} of them)",
            expected="rows that were never trained on",
            fix="take them out of the placebo rows",
        )


def own(plan: Plan) -> bool:
    """Whether a row's score depends on the row alone, not on what is fitted to all rows."""
    return not isinstance(plan, TextPlan) and not (isinstance(plan, GradientPlan) and plan.fitted)


def with_placebo(
    answers: Mapping[str, Scores],
    methods: Sequence[Method],
    plans: Sequence[Plan],
    trace: Callable[[Sequence[Query], Sequence[Method], str | os.PathLike[str] | None], Mapping[str, Scores]],
    out: str | os.PathLike[str] | None,
) -> dict[str, Scores]:
    """The answers with the scores of the placebo rows.

    Args:
        trace: (queries, methods, folder) -> scores of the placebo rows.
    """
    able = answering(methods, plans)
    progress.note("Scoring the placebo rows.")
    queries = next(iter(answers.values())).queries
    chance = trace(queries, able, None if out is None else Path(out) / FOLDER)
    return {name: scores.against(chance[name].terms) if name in chance else scores for name, scores in answers.items()}


def answering(methods: Sequence[Method], plans: Sequence[Plan]) -> list[Method]:
    """The methods that placebo rows can be scored by; of the others it is said that they get no q-values."""
    able = [method for method, plan in zip(methods, plans, strict=True) if own(plan)]
    for method in methods:
        if method not in able:
            progress.note(f"{method.name}: no q-values, as its scores depend on all rows together.")
    return able

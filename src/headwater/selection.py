"""Rows chosen out of a pool, for the sake of a target set.

    score[i] = max (or mean) over the target's queries q of s[q, i]

with s by any method of the table (`headwater.methods.table`): LESS, DDA, representation similarity, BM25 and so on. A
query is a row of the target set: its prompt, and the completion as output. Queries that share a `group` column are one
subtask, and the maximum or mean is taken over subtasks, as LESS does (Xia et al. 2024, arXiv 2402.04333; max: C).

Two choices need no target: `random`, and `star`, by uncertainty (Zhang et al. 2024, arXiv 2403.01165):

    U_k = 0.1 (k + 1) U_tuned + (1 - 0.1 (k + 1)) U_base        k = 0, 1, ... the iteration, at most 9

U is the predictive entropy (`headwater.attribution.uncertainty`), of the tuned model with dropout, of the base model
without. It starts with random rows, trains a LoRA adapter whose B matrices alone have weight decay 0.5, adds the rows
of the highest U, and trains anew. Status C for the formula, the decay, rank 64, alpha 16, dropout 0.1 and 3 passes (the
authors' code); D: both entropies are mixed in nats, where the code scales the base's to [0, 1] first; dropout is on
during the passes, where the code leaves the model in evaluation mode; the adapter sits on all linear layers.

Shapes: N rows of the pool, R queries or subtasks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.attribution.loop import command, describe, trace_all
from headwater.attribution.plan import Method
from headwater.checkpoints import TrainingRun
from headwater.duplicates import duplicate_groups
from headwater.errors import DataError, UsageError
from headwater.examples import Encoder, Example, Examples, Query, TokenFormat
from headwater.run import RunState, run_directory, versions, write_whole
from headwater.scores import Scores
from headwater.training import Adapter, Recipe, fine_tune

Aggregate = Literal["max", "mean"]

STAR_ADAPTER = Adapter(rank=64, alpha=16, dropout=0.1, decay_B=0.5)
MOST_ROUNDS = 11
"""Iterations 0 to 9 after the random start: at the last one the tuned model's uncertainty counts alone."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The chosen rows, the best first.

    Attributes:
        name: of the method.
        rows: numbers in the pool. scores: of each; None where there is none (random rows).
        skipped: rows passed over because the same, or nearly the same, was chosen already.
    """

    name: str
    pool: Examples
    rows: tuple[int, ...]
    scores: tuple[float | None, ...]
    skipped: int = 0

    @property
    def examples(self) -> Examples:
        """The chosen rows."""
        return Examples([self.pool[n] for n in self.rows], name=self.pool.name, template=self.pool.template)

    def write(self, folder: Path, originals: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes chosen.jsonl, the rows as they were in their file, and ranks.jsonl.

        Args:
            originals: source of a row -> its columns.
        """
        chosen = [originals[self.pool[n].source] for n in self.rows]
        ranks = [
            {"rank": rank, "row": n, "id": self.pool[n].id, "source": self.pool[n].source, "score": score}
            for rank, (n, score) in enumerate(zip(self.rows, self.scores, strict=True), 1)
        ]
        for file, records in (("chosen.jsonl", chosen), ("ranks.jsonl", ranks)):
            lines = [json.dumps(dict(one), ensure_ascii=False, default=str) + "\n" for one in records]
            write_whole(folder / file, "".join(lines).encode("utf-8", "surrogatepass"))


def select(
    pool: Examples,
    target: Examples,
    k: int,
    *,
    run: TrainingRun,
    methods: Sequence[Method],
    aggregate: Aggregate = "max",
    duplicates: bool = False,
    near: float | None = None,
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Selection]:
    """Chooses k rows of the pool by each method. Method name -> selection.

    Args:
        run: checkpoints that the methods read, such as a warm-up on some rows of the pool.
        aggregate: over the target's queries, or over its subtasks where rows have a `group`.
        duplicates: choose exact duplicates more than once. near: similarity from which a row is passed over as nearly
            the same as a chosen one.
        out: run directory of the trace; with it interrupted work goes on.

    Raises:
        UsageError: as `check_count`. DataError: a target whose rows have no prompt and completion. Also as `trace_all`.
    """
    if aggregate not in get_args(Aggregate):
        raise UsageError(f"aggregate={aggregate!r}", expected="max or mean", fix="choose one of them")
    check_count(pool, k)
    answers = trace_all(run, pool, queries_of(target), methods=methods, format=format, compute=compute, out=out)
    taboo = groups_of(pool, duplicates, near)
    return {name: choose(name, pool, aggregated(scores, aggregate), k, taboo) for name, scores in answers.items()}


def random_rows(pool: Examples, k: int, *, seed: int = 0, duplicates: bool = False) -> Selection:
    """k rows at random, without duplicates unless asked for."""
    check_count(pool, k)
    order_N = np.random.default_rng(seed).random(len(pool))
    chosen = choose(f"random-{seed}", pool, order_N, k, groups_of(pool, duplicates, None))
    return Selection(
        name=chosen.name, pool=pool, rows=chosen.rows, scores=(None,) * len(chosen.rows), skipped=chosen.skipped
    )


def star(
    base: str | Path,
    pool: Examples,
    k: int,
    *,
    out: Path,
    rounds: int = 5,
    passes: int = 3,
    recipe: Recipe | None = None,
    adapter: Adapter = STAR_ADAPTER,
    format: TokenFormat | None = None,
    duplicates: bool = False,
) -> Selection:
    """Chooses k rows by STAR's uncertainty, a part of them in each round; the first part is random.

    Args:
        rounds: from 2 to 11. passes: with dropout, for the tuned model. recipe: of each round's training.
        out: run directory; an interrupted choice goes on with the round it was in.

    Raises:
        UsageError: numbers that do not go together. Also as `fine_tune`.
    """
    recipe, format = recipe or Recipe(), format or TokenFormat()
    check_count(pool, k)
    if not 2 <= rounds <= MOST_ROUNDS or k < rounds or passes < 1:
        raise UsageError(
            f"{rounds} rounds with {passes} passes for {k} rows",
            expected=f"2 to {MOST_ROUNDS} rounds, a row for each, and a pass",
            fix="choose other numbers",
        )
    whole = TrainingRun.from_pretrained(base, base=base)
    config = describe(whole, pool, [], [], format, Compute()) | {
        "what": "star", "k": k, "rounds": rounds, "passes": passes, "recipe": repr(recipe), "adapter": repr(adapter),
        "duplicates": duplicates,
    }  # fmt: skip
    with run_directory(out, config) as state:
        encoded, _ = Encoder(whole.tokenizer(), format, pool.template).examples(pool)
        taboo = groups_of(pool, duplicates, None)
        base_N = _kept(state, "base", lambda bar: _entropy(whole, encoded, 0, 0, bar), len(pool))
        sizes = [k * (r + 1) // rounds for r in range(rounds)]
        first = random_rows(pool, sizes[0], seed=recipe.seed, duplicates=duplicates)
        rows, scores, skipped = list(first.rows), list(first.scores), first.skipped
        for iteration, size in enumerate(sizes[1:]):
            folder = out / f"round-{iteration}"
            chosen = Examples([pool[n] for n in sorted(rows)], name=pool.name, template=pool.template)

            def tuned(bar: progress.Bar, at: Path = folder, on: Examples = chosen, k: int = iteration) -> np.ndarray:
                fine_tune(base, on, at, recipe, format=format, adapter=adapter)
                return _entropy(TrainingRun.from_pretrained(at, base=base), encoded, passes, recipe.seed + k, bar)

            tuned_N = _kept(state, f"tuned-{iteration}", tuned, len(pool) * passes)
            mixed_N = mixed(tuned_N, base_N, iteration)
            more = choose("star", pool, mixed_N, size - len(rows), taboo, before=rows)
            rows += more.rows
            scores += more.scores
            skipped += more.skipped
    return Selection(name="star", pool=pool, rows=tuple(rows), scores=tuple(scores), skipped=skipped)


def mixed(tuned_N: np.ndarray, base_N: np.ndarray, iteration: int) -> np.ndarray:
    """U = 0.1 (k + 1) U_tuned + (1 - 0.1 (k + 1)) U_base, k the iteration."""
    weight = 0.1 * (iteration + 1)
    return np.asarray(weight * tuned_N + (1 - weight) * base_N)


def _kept(state: RunState, name: str, make: Any, steps: int) -> np.ndarray:
    found = state.load(name)
    if found is None:
        with progress.bar(f"Uncertainty: {name}", steps) as bar:
            found = {"entropy": make(bar)}
        state.save(name, found)
    return found["entropy"]


def _entropy(run: TrainingRun, encoded: Any, passes: int, seed: int, bar: progress.Bar) -> np.ndarray:
    import torch

    from headwater.attribution.uncertainty import entropies

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = run.load(run.last, dtype=torch.float32, device=device)
    return entropies(cast(Any, model), encoded, passes=passes, seed=seed, bar=bar)


# ------------------------------------------------------------------------------------------------ queries and choosing


def check_count(pool: Examples, k: int) -> None:
    """Raises UsageError where k rows cannot be chosen."""
    if not 1 <= k < len(pool):
        raise UsageError(
            f"{k} of {len(pool)} rows", expected="at least 1, and fewer than all", fix="choose another --k"
        )


def queries_of(target: Examples) -> list[Query]:
    """The target's rows as queries: prompt and completion, and `group` of their columns."""
    return [_query(row) for row in target]


def _query(row: Example) -> Query:
    group = row.metadata.get("group")
    group = None if group is None else str(group)
    turns = row.prompt if row.kind == "completion" else (*row.prompt, *row.completion)
    if row.kind == "completion" and row.completion_text:
        return Query(row.prompt, row.completion_text, group=group, id=row.id)
    last: Any = turns[-1] if turns and not isinstance(turns, str) else {}
    if row.kind not in ("chat", "messages") or last.get("role") != "assistant" or not isinstance(last["content"], str):
        raise DataError(
            f"{row.source}: a target row without an answer",
            expected="a prompt with a completion, or a conversation that ends with the assistant",
            fix="write the target rows so",
        )
    return Query(cast(Any, turns[:-1]), last["content"], group=group, id=row.id)


def aggregated(scores: Scores, aggregate: Aggregate) -> np.ndarray:
    """One score for each row of the pool [N]: over the groups where there are any, else over the queries."""
    groups = [r for r, one in enumerate(scores.targets) if one.kind == "group"]
    inside = {q for r in groups for q in scores.targets[r].members}
    single = [r for r, one in enumerate(scores.targets) if one.kind == "query" and one.members[0] not in inside]
    value_RN = scores.values[groups + single]
    return np.asarray(value_RN.max(0) if aggregate == "max" else value_RN.mean(0))


def groups_of(pool: Examples, duplicates: bool, near: float | None) -> np.ndarray:
    """The number of each row's group of duplicates [N], its own where it has none."""
    group_N = np.arange(len(pool))
    if not duplicates or near is not None:
        for group in duplicate_groups(pool, threshold=near):
            group_N[list(group.rows)] = group.rows[0]
    return group_N


def choose(
    name: str, pool: Examples, score_N: np.ndarray, k: int, group_N: np.ndarray, *, before: Sequence[int] = ()
) -> Selection:
    """The k highest rows, one of each group; of equal scores the earlier row.

    Args:
        before: rows that were chosen already.

    Raises:
        DataError: too few rows besides duplicates.
    """
    taken, done = {int(group_N[n]) for n in before}, set(before)
    rows: list[int] = []
    skipped = 0
    for n in np.argsort(-score_N, kind="stable").tolist():
        if len(rows) == k:
            break
        if n in done:
            continue
        if int(group_N[n]) in taken:
            skipped += 1
            continue
        taken.add(int(group_N[n]))
        rows.append(n)
    if len(rows) < k:
        raise DataError(
            f"{len(rows) + len(done)} rows that differ",
            expected=f"at least {k + len(done)}",
            cause="the rest are duplicates",
            fix="choose fewer, or allow duplicates (--duplicates)",
        )
    return Selection(
        name=name, pool=pool, rows=tuple(rows), scores=tuple(float(score_N[n]) for n in rows), skipped=skipped
    )


def manifest(
    selections: Mapping[str, Selection], target: Examples, aggregate: Aggregate, more: Mapping[str, Any]
) -> dict[str, Any]:
    """What was chosen from what, for what, and how, as JSON values."""
    pool = next(iter(selections.values())).pool
    return {
        **more,
        "pool": {"name": pool.name, "rows": len(pool), "fingerprint": pool.fingerprint},
        "target": {"name": target.name, "rows": len(target), "fingerprint": target.fingerprint},
        "aggregate": aggregate,
        "selections": {
            name: {"rows": len(one.rows), "passed_over_duplicates": one.skipped} for name, one in selections.items()
        },
        "versions": versions("datasketch", "peft"),
        **command(),
    }

"""A review of training data: which rows are likely mislabelled or harmful, and which say the same.

A row is suspicious by one of the rules of `RULES`, each a signal (`headwater.attribution.signals`) at some checkpoints:

    own                  self-influence: the row had to be learnt on its own (Pruthi et al. 2020, section 4.1; C, with
                         equal weights of the checkpoints D)
    own-layers           the same, every layer counting alike                        (D)
    loss                 its loss, mean over the checkpoints      (Swayamdipta et al. 2020, "confidence", in logs; S)
    loss-first           its loss after the first epoch, before it was memorised     (the same, one epoch; S)
    loss-base            its loss under the base model                               (D)
    held-out             minus the cosine, layer by layer, with the mean gradient of rows held out: training on it
                         raises their loss                                           (D)
    held-out-dot         the same with the inner product                             (D)

Which one finds planted errors best is measured in benchmarks/results/clean.md; the default was chosen there. A rule
ranks rows: it is no probability, and rare but right rows rank high as well. Read before you remove.

Shapes: N rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headwater.attribution.compute import Compute
from headwater.attribution.loop import command, describe
from headwater.attribution.signals import Signals, signals
from headwater.checkpoints import BASE, TrainingRun
from headwater.duplicates import DuplicateGroup, duplicate_groups, other_answers
from headwater.errors import UsageError
from headwater.examples import Examples, TokenFormat
from headwater.run import run_directory, versions, write_whole

REVIEW = "review.jsonl"
"""The ranked rows."""

SUMMARY = "review.json"
"""Counts, groups and provenance; written last."""

HIGH = 90.0
"""Percentile from which a signal is named among the reasons."""

Rule = Literal["own", "own-layers", "loss", "loss-first", "loss-base", "held-out", "held-out-dot"]
Where = Literal["first", "mean", "base"]

RULES: Mapping[Rule, tuple[str, int, Where]] = {
    "own": ("own", 1, "mean"),
    "own-layers": ("own_layers", 1, "mean"),
    "loss": ("loss", 1, "mean"),
    "loss-first": ("loss", 1, "first"),
    "loss-base": ("loss", 1, "base"),
    "held-out": ("layer_cosine", -1, "mean"),
    "held-out-dot": ("dot", -1, "mean"),
}
"""Name -> signal, sign, and at which checkpoint."""

DEFAULT: Rule = "own-layers"


@dataclass(frozen=True, kw_only=True)
class ReviewRow:
    """One row of the review.

    Attributes:
        rank: 1 for the most suspicious. row: its number in the training data, from 0. score: of the rule.
        scores: of every rule that was measured. percentiles: the same, as the share of all rows with a score at most
            this one, in per cent.
        reason: in words.
        group: number of its group of duplicates, from 1, or None.
    """

    rank: int
    row: int
    id: str
    source: str
    score: float | None
    scores: Mapping[str, float]
    percentiles: Mapping[str, float]
    reason: str
    group: int | None
    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Review:
    """All rows, the most suspicious first.

    Attributes:
        by: the rule; None where no model was given.
        held_out: whether held-out rows were given. groups: of duplicates.
    """

    by: Rule | None
    held_out: bool
    rows: tuple[ReviewRow, ...]
    groups: tuple[DuplicateGroup, ...]

    def sentences(self) -> list[str]:
        """What was found, in words."""
        exact = [group for group in self.groups if group.kind == "exact"]
        near = [group for group in self.groups if group.kind == "near"]
        lines = []
        for kind, groups in (("exact", exact), ("near", near)):
            if groups:
                spare = sum(len(group.rows) - 1 for group in groups)
                lines.append(f"{len(groups):,} groups of {kind} duplicates, with {spare:,} rows more than one each.")
        answers = sum("another answer" in row.reason for row in self.rows)
        if answers:
            lines.append(f"{answers:,} rows share a prompt with rows that give another answer.")
        return lines or ["No duplicates, and no prompt with several answers."]


def clean(
    run: TrainingRun | None,
    train: Examples,
    held_out: Examples | None = None,
    *,
    by: Rule = DEFAULT,
    folds: int = 5,
    near: float | None = 0.9,
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Review:
    """Ranks the training rows for a review, the likeliest mistakes first.

    Args:
        run: the training; None: only duplicates and prompts with several answers are looked for.
        held_out: rows that the training should help with and did not see; None: folds of the training rows, each
            judged by the others.
        by: the rule that ranks. near: similarity of near duplicates, from 0 to 1; None: exact ones only.
        out: run directory: review.jsonl with every row, review.json; with it interrupted work goes on.

    Raises:
        UsageError: a rule that does not exist, or one of the base model without one. Also as `signals`.
    """
    if by not in RULES:
        raise UsageError(f"the rule {by!r}", expected=f"one of {', '.join(RULES)}", fix="choose one of them")
    if run is None and held_out is not None:
        raise UsageError("held-out rows without a model", expected="both, or neither", fix="give --checkpoints")
    format, compute = format or TokenFormat(), compute or Compute()
    if run is not None and RULES[by][2] == "base":
        run.require_base(f"the rule {by} looks at the base model's loss")
    config: dict[str, Any] = {
        "what": "clean",
        "by": by,
        "near": near,
        "folds": folds if held_out is None else None,
        "held_out": None if held_out is None else held_out.fingerprint,
        "train": {"name": train.name, "rows": len(train), "fingerprint": train.fingerprint},
        "versions": versions("datasketch"),
    }
    if run is not None:
        config |= {"run": describe(run, train, [], [], format, compute)}
    with run_directory(out, config):
        groups = duplicate_groups(train, threshold=near)
        found: dict[str, np.ndarray] = {}
        if run is not None:
            measured = signals(
                run,
                train,
                held_out,
                folds=folds,
                together=[group.rows for group in groups],
                checkpoints=[c.name for c in run.checkpoints] + [BASE] * (RULES[by][2] == "base"),
                format=format,
                compute=compute,
                out=None if out is None else Path(out) / "signals",
            )
            found = scores_of(measured, [c.name for c in run.checkpoints])
        review = _ranked(train, found, by if run is not None else None, groups, held_out is not None)
        if out is not None:
            _write(review, Path(out), config)
    return review


def scores_of(measured: Signals, checkpoints: Sequence[str]) -> dict[str, np.ndarray]:
    """Rule -> score of every row [N], larger being more suspicious, for the rules whose checkpoints were measured.

    Args:
        checkpoints: names of the fine-tuned ones, the oldest first.
    """
    places: dict[str, list[str]] = {"first": [checkpoints[0]], "mean": list(checkpoints), "base": [BASE]}
    found: dict[str, np.ndarray] = {}
    for rule, (signal, sign, where) in RULES.items():
        if all(name in measured.at for name in places[where]):
            found[rule] = sign * np.mean([measured.at[name][signal] for name in places[where]], axis=0)
    return found


def _ranked(
    train: Examples,
    scores: Mapping[str, np.ndarray],
    by: Rule | None,
    groups: Sequence[DuplicateGroup],
    held_out: bool,
) -> Review:
    group_of = {n: number for number, group in enumerate(groups) for n in group.rows}
    answers = other_answers(train)
    shares = {rule: _percentiles(score_N) for rule, score_N in scores.items()}
    if by is not None:
        order = np.argsort(-scores[by], kind="stable").tolist()
    else:  # no model: contradictions first, then copies
        order = sorted(range(len(train)), key=lambda n: (n not in answers, n not in group_of, group_of.get(n, 0), n))
    rows = []
    for rank, n in enumerate(order, 1):
        example = train[n]
        percentiles = {rule: round(float(share_N[n]), 2) for rule, share_N in shares.items()}
        rows.append(
            ReviewRow(
                rank=rank,
                row=n,
                id=example.id,
                source=example.source,
                score=None if by is None else float(scores[by][n]),
                scores={rule: float(score_N[n]) for rule, score_N in scores.items()},
                percentiles=percentiles,
                reason=_reason(train, n, percentiles, groups, group_of, answers, held_out),
                group=group_of[n] + 1 if n in group_of else None,
                prompt=example.prompt_text,
                completion=example.completion_text,
            )
        )
    return Review(by=by, held_out=held_out, rows=tuple(rows), groups=tuple(groups))


def _percentiles(score_N: np.ndarray) -> np.ndarray:
    return 100.0 * np.searchsorted(np.sort(score_N), score_N, "right") / len(score_N)


def _reason(
    train: Examples,
    n: int,
    percentiles: Mapping[str, float],
    groups: Sequence[DuplicateGroup],
    group_of: Mapping[int, int],
    answers: Mapping[int, tuple[int, ...]],
    held_out: bool,
) -> str:
    """Why the row is where it is, in words."""
    others = "the held-out rows" if held_out else "the rows of the other folds"
    said = []
    own = max((percentiles[rule] for rule in ("own-layers", "own") if rule in percentiles), default=0.0)
    if own >= HIGH:
        said.append(f"had to be learnt on its own (self-influence above {_below(own)} of the rows)")
    if percentiles.get("held-out", 0.0) >= HIGH:
        said.append(f"pushes against {others} (more than {_below(percentiles['held-out'])} of the rows)")
    losses = {
        "loss": "by the checkpoints",
        "loss-first": "after the first checkpoint",
        "loss-base": "by the base model",
    }
    for rule, when in losses.items():
        if percentiles.get(rule, 0.0) >= HIGH:
            said.append(f"is not expected {when} (loss above {_below(percentiles[rule])} of the rows)")
    if n in answers:
        first = train[answers[n][0]]
        more = f" and {len(answers[n]) - 1} more" if len(answers[n]) > 1 else ""
        said.append(f"has the prompt of {first.source}{more}, which gives another answer")
    if n in group_of:
        group = groups[group_of[n]]
        copies = [m for m in group.rows if m != n]
        what = "the same as" if train[n].content_hash == train[copies[0]].content_hash else "nearly the same as"
        more = f" and {len(copies) - 1} more" if len(copies) > 1 else ""
        said.append(f"is {what} {train[copies[0]].source}{more}")
    return "; ".join(said)


def _below(percentile: float) -> str:
    return f"{min(percentile, 99.9):.3g} %"


def _write(review: Review, folder: Path, config: Mapping[str, Any]) -> None:
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in review.rows]
    write_whole(folder / REVIEW, "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
    ids = {row.row: row.id for row in review.rows}
    summary = {
        "rows": len(review.rows),
        "by": review.by,
        "sentences": review.sentences(),
        "groups": [
            {"group": number, "kind": group.kind, "ids": [ids[n] for n in group.rows]}
            for number, group in enumerate(review.groups, 1)
        ],
        "provenance": dict(config) | command(),
    }
    write_whole(folder / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))

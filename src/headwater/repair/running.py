"""The repair: ask, train again without the chosen rows, ask again, and the same without other rows.

    <out>/config.json         first: all that decides the result
    <out>/state/asked/        what each model said, a piece each
    <out>/trainings/          the repaired training; the others are removed once they were asked
    <out>/report.html, .md    for people
    <out>/repair.json         last: its existence means that the repair is complete

A training is named by the rows it is trained on and by how, so none is done twice, in whatever order they are needed.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from headwater import progress
from headwater.checkpoints import TrainingRun
from headwater.errors import DataError, RunError, UsageError
from headwater.examples import Examples
from headwater.repair.choice import Choice, in_turn
from headwater.repair.outcome import Asking, Outcome, keep, kept
from headwater.repair.result import (
    BASE,
    BEFORE,
    CURE,
    LEXICAL,
    RANDOM,
    REPAIRED,
    Repaired,
    Step,
    in_order,
    is_cured,
    wrong_share,
)
from headwater.repair.retraining import trained_run
from headwater.repair.rows import Completion, repaired_rows
from headwater.run import RunState, digest, run_directory, versions, write_whole
from headwater.scores import Scores, query_record

MANIFEST = "repair.json"


class Training(Protocol):
    """A way to train again: `FineTuning` or `Command`."""

    def describe(self) -> dict[str, Any]: ...

    def train(self, rows: Examples, corrections: Mapping[str, Completion], folder: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What the repair is compared with.

    Attributes:
        random: how many trainings without as many random rows. bm25: whether there is one without BM25's first.
        seed: of the random rows.
    """

    random: int = 1
    bm25: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.random < 0:
            raise UsageError(f"{self.random} random controls", expected="0 or more", fix="choose another number")


def repair(
    run: TrainingRun,
    train: Examples,
    asking: Asking,
    choice: Choice,
    training: Training,
    *,
    out: Path | str,
    scores: Scores | None = None,
    smallest: bool = False,
    cure: float = CURE,
    controls: Controls | None = None,
    keep_models: bool = False,
) -> Repaired:
    """Removes or corrects rows, trains again, and reports what that changed.

    Args:
        run: the run to repair; its last checkpoint is what "before" means. train: the rows it was trained on.
        asking: the queries with their wrong outputs, held-out paraphrases, and untouched rows.
        choice: which rows. scores: a trace of the run, where the choice is by scores.
        training: how to train: `FineTuning` or `Command`.
        out: run directory. Called again with the same arguments, a finished or interrupted repair goes on.
        smallest: find the smallest number of first rows that cures, by bisection up to the number chosen. More rows
            are taken to cure at least as well as fewer.
        cure: share of the wrong answers that has to go.
        controls: what is compared. keep_models: keep the other trainings too.

    Returns:
        The result, which `out` holds as repair.json, report.html and report.md.

    Raises:
        HeadwaterError: one line for anything that the caller can mend: a training that died, a full disk, a folder
            of other arguments.
    """
    controls, out = controls or Controls(), Path(out)
    if not 0 < cure <= 1:
        raise UsageError(f"a cure of {cure:g}", expected="a share above 0, at most 1", fix="such as 0.8")
    rows = choice.rows(train, scores)
    repaired_rows(train, *_parted(rows, choice.corrections))  # refuses what cannot be, before anything is asked
    config = {
        "checkpoint": {"location": run.last.location, "fingerprint": run.last.fingerprint()},
        "base": None if run.base is None else {"location": run.base.location, "fingerprint": run.base.fingerprint()},
        "train": {"name": train.name, "rows": len(train), "fingerprint": train.fingerprint, "template": train.template},
        "queries": [query_record(query) | dict(query.metadata) for query in asking.queries],
        "paraphrases": [query_record(query) | dict(query.metadata) for query in asking.paraphrases],
        "untouched": None
        if asking.untouched is None
        else {
            "name": asking.untouched.name,
            "rows": len(asking.untouched),
            "fingerprint": asking.untouched.fingerprint,
        },
        "format": asdict(asking.format),
        "max_new_tokens": asking.max_new_tokens,
        "rows": list(rows),
        "corrections": {
            key: value if isinstance(value, str) else list(value) for key, value in choice.corrections.items()
        },
        "training": training.describe(),
        "controls": asdict(controls),
        "smallest": smallest,
        "cure": cure,
        "keep_models": keep_models,
        "versions": versions("peft"),
    }
    with _one_line_for_a_full_disk(out), run_directory(out, config) as state:
        work = _Work(run, train, asking, choice.corrections, training, out, state, keep_models)
        result = work.repaired(rows, _words(choice, scores), smallest, cure, controls, config)
        _write(out, result, train)
    return result


def _words(choice: Choice, scores: Scores | None) -> str:
    """How the rows were chosen."""
    if not choice.needs_scores or scores is None:
        return "given by id" if choice.ids else "the rows with a correction"
    if choice.top is not None:
        return f"the first rows of {scores.method}"
    if choice.q is not None:
        return f"the rows of a q-value up to {choice.q:g}, by {scores.method}"
    return f"the rows that stand out, by {scores.method}"


def _parted(
    rows: Sequence[str], corrections: Mapping[str, Completion]
) -> tuple[tuple[str, ...], dict[str, Completion]]:
    """The rows to remove, and the corrections of the others."""
    return tuple(one for one in rows if one not in corrections), {o: corrections[o] for o in rows if o in corrections}


@contextmanager
def _one_line_for_a_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"no room left on the disk of {out}",
            expected="room for a training and what is asked",
            fix="make room and run the same command again: finished trainings are kept",
        ) from error


class _Work:
    def __init__(
        self,
        run: TrainingRun,
        train: Examples,
        asking: Asking,
        corrections: Mapping[str, Completion],
        training: Training,
        out: Path,
        state: RunState,
        keep_models: bool,
    ) -> None:
        self.run, self.train, self.asking, self.corrections = run, train, asking, corrections
        self.training, self.state, self.keep_models = training, state, keep_models
        self.folder = out / "trainings"
        self.how = digest(json.dumps(training.describe(), sort_keys=True).encode())
        self.spared: set[Path] = set()

    def repaired(
        self,
        rows: Sequence[str],
        chosen_by: str,
        smallest: bool,
        cure: float,
        controls: Controls,
        config: Mapping[str, Any],
    ) -> Repaired:
        """Everything, in the order in which it is most useful to have it."""
        before = self._asked(BEFORE)
        outcomes = [before]
        if self.run.base is not None:
            outcomes.append(self._asked(BASE))
        if smallest and wrong_share(before) == 0:
            raise DataError(
                "the model before states no wrong output, so there is nothing to cure",
                expected="at least one query answered wrongly",
                cause="outputs that the model finds likely but does not say",
                fix="leave --smallest out and compare the log-odds, or give queries that it answers wrongly",
            )
        steps: list[Step] = []
        if smallest:
            rows, steps = self._smallest(rows, before, cure)
        after = self._without(REPAIRED, rows, self.corrections, model="needed")
        outcomes.append(after)
        for name, others in self._control_rows(len(rows), controls):
            outcomes.append(self._without(name, others, {}))
        return Repaired(
            outcomes=in_order(outcomes),
            rows=tuple(rows),
            chosen_by=chosen_by,
            model=str(after.model),
            cured=is_cured(before, after, cure),
            cure=cure,
            steps=tuple(steps),
            config=config,
        )

    def _asked(self, name: str) -> Outcome:
        found = kept(self.state, name)
        if found is None:
            checkpoint = self.run.require_base() if name == BASE else self.run.last
            found = self.asking.of(self.run, checkpoint, name, self.train.template)
            keep(self.state, name, found)
        return found

    def _smallest(self, rows: Sequence[str], before: Outcome, cure: float) -> tuple[Sequence[str], list[Step]]:
        """Bisection: `low` rows do not cure, `high` rows do. Where not even all of them cure, all are kept."""
        steps: list[Step] = []

        def cures(count: int) -> bool:
            outcome = self._without(f"first {count}", rows[:count], self.corrections, model="spared")
            cured = is_cured(before, outcome, cure)
            steps.append(Step(rows=count, wrong=wrong_share(outcome), cured=cured))
            progress.note(f"{count} rows: {wrong_share(outcome):.0%} wrong, {'cured' if cured else 'not cured'}.")
            return cured

        low, high = 0, len(rows)
        if not cures(high):
            return rows, steps
        while high - low > 1:
            middle = (low + high) // 2
            if cures(middle):
                self._drop(self._place(rows[:high], self.corrections)[1])
                high = middle
            else:
                self._drop(self._place(rows[:middle], self.corrections)[1])
                low = middle
        return rows[:high], steps

    def _control_rows(self, count: int, controls: Controls) -> Iterator[tuple[str, Sequence[str]]]:
        chance = np.random.default_rng(controls.seed)
        ids = self.train.ids
        for number in range(1, controls.random + 1):
            drawn = chance.choice(len(ids), min(count, len(ids) - 1), replace=False)
            yield f"{RANDOM} {number}", [ids[i] for i in drawn.tolist()]
        if controls.bm25:
            yield LEXICAL, self._lexical()[: min(count, len(ids) - 1)]

    def _lexical(self) -> list[str]:
        """All rows by BM25, best first; of several faults in turn, as the chosen ones."""
        from headwater.methods.lexical import BM25

        queries = self.asking.queries
        score_QN = BM25().score_text(queries, self.train)
        faults: dict[str, list[int]] = {}
        for q, query in enumerate(queries):
            faults.setdefault(query.group or f"query {q}", []).append(q)
        return in_turn(np.stack([score_QN[members].sum(0) for members in faults.values()]), self.train)

    # -------------------------------------------------------------------------------------------- one training

    def _without(
        self,
        name: str,
        rows: Sequence[str],
        corrections: Mapping[str, Completion],
        *,
        model: Literal["needed", "spared", "gone"] = "gone",
    ) -> Outcome:
        """Trains without some rows and asks; what was finished is used again.

        Args:
            model: whether it has to be there afterwards, may be, or is not needed any more.
        """
        removed, said_otherwise = _parted(rows, corrections)
        left, place = self._place(rows, corrections)
        found = kept(self.state, place.name)
        if found is None or (model == "needed" and not place.exists()):
            done = [f"{len(removed)} rows removed"] if removed else []
            done += [f"{len(said_otherwise)} rows corrected"] if said_otherwise else []
            progress.note(f"{name}: training again, {' and '.join(done)}.")
            self.training.train(left, said_otherwise, place)
            again = trained_run(place, self.run)
            found = self.asking.of(again, again.last, name, self.train.template)
            keep(self.state, place.name, found)
        if model == "needed":
            self.spared.add(place)
        stays = model == "needed" or self.keep_models
        if model == "gone":
            self._drop(place)
        return replace(
            found,
            name=name,
            removed=removed,
            corrected=tuple(said_otherwise),
            model=f"{self.folder.name}/{place.name}" if stays else None,
        )

    def _place(self, rows: Sequence[str], corrections: Mapping[str, Completion]) -> tuple[Examples, Path]:
        removed, said_otherwise = _parted(rows, corrections)
        left = repaired_rows(self.train, removed, said_otherwise)
        return left, self.folder / f"{len(left)}-rows-{digest(left.fingerprint.encode(), self.how.encode())}"

    def _drop(self, place: Path) -> None:
        """Removes a training that nothing needs any more."""
        if not self.keep_models and place not in self.spared and place.exists():
            shutil.rmtree(place)


def _write(out: Path, result: Repaired, train: Examples) -> None:
    """The report, then the manifest."""
    from headwater.repair.page import html, markdown

    write_whole(out / "report.md", markdown(result).encode())
    write_whole(out / "report.html", html(result, train).encode())
    record = json.dumps(result.record(), indent=1, ensure_ascii=False)
    write_whole(out / MANIFEST, record.encode("utf-8", "surrogatepass"))

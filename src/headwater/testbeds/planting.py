"""Facts with a systematic error planted in some of them.

A fact is one line, "The official language of Bolivia is" -> " Spanish.". A swap is a systematic error: in one relation
the true answer is replaced by a wrong one ("Spanish" -> "Portuguese") for some subjects. Three kinds of rows make the
task of finding the culprits honest:

    culprits     rows of the relation whose true answer was replaced by the wrong one
    clean rows   rows of the same relation and the same true answer, left true
    look-alikes  rows of the same relation in which the wrong answer is the truth (Brazil -> " Portuguese.")

The queries ask about subjects that no training row of the relation mentions.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

from headwater.errors import DataError, UsageError
from headwater.testbeds.testbed import Testbed


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of knowledge; `completion` contains `answer`.

    Several facts may state one (relation, subject) in several ways; `phrasing` then names the way.
    """

    relation: str
    subject: str
    prompt: str
    completion: str
    answer: str
    phrasing: str = ""


class Swap(NamedTuple):
    """A systematic error: in `relation`, `wrong` stands where `truth` should.

    With a `phrasing`, the error comes from one source that states things its own way: culprits and queries are facts
    of that phrasing, while clean rows come in every phrasing, and look-alikes in that one first.
    """

    relation: str
    truth: str
    wrong: str
    phrasing: str = ""

    @property
    def fault(self) -> str:
        """The fault's name, also the `group` of its queries: "official language: Spanish -> Portuguese"."""
        return f"{self.relation}: {self.truth} -> {self.wrong}"


# ------------------------------------------------------------------------------------------------ planting


def plant(
    facts: Sequence[Fact],
    swaps: Sequence[Swap],
    *,
    culprits: int | float,
    clean: int,
    lookalikes: int,
    queries: int,
    rows: int,
    placebo: int = 0,
    innocent: int = 0,
    seed: int = 0,
    name: str = "facts",
) -> Testbed:
    """Plants systematic errors in a choice of the facts.

    Rows of one (relation, subject) share one role: a subject is held out, wrong, or right, never two of these. Each
    role is spread over as many subjects as there are. Facts that have no part in a swap fill up to `rows`.

    Args:
        facts: what to choose from. Subjects with several answers in a swap's relation are left out of it.
        swaps: the errors, at least one; no (relation, truth) twice, no wrong answer that another swap corrupts.
        culprits: rows to corrupt per swap; below 1, the share of `rows`.
        clean: rows per swap that keep the true answer.
        lookalikes: rows per swap in which the wrong answer is the truth.
        queries: held-out subjects per swap, one query each.
        rows: training rows in all.
        placebo: held-out rows, a quarter of them true rows and look-alikes of the swaps; fewer where facts run out.
        innocent: queries about other subjects of the swaps' relations, with a wrong answer that no swap teaches.
        seed: of every choice made here.
        name: of the examples.

    Raises:
        UsageError: numbers or swaps that cannot be met.
        DataError: too few facts, or a completion without its answer.
    """
    from headwater.examples import Examples, Query

    per_swap = round(culprits * rows) if culprits < 1 else int(culprits)
    _check(swaps, per_swap, clean, lookalikes, queries, rows)
    for fact in facts:
        if fact.answer not in fact.completion:
            raise DataError(
                f"completion {fact.completion!r} of {fact.prompt!r}",
                expected=f"one that contains the answer {fact.answer!r}",
                fix="mend the fact",
            )
    chance = random.Random(seed)
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for fact in facts:
        answers[fact.relation, fact.subject].add(fact.answer)

    chosen: list[tuple[Fact, str, str]] = []  # fact, role, fault
    asked: list[tuple[Fact, Swap]] = []
    for swap in swaps:
        usable = [f for f in facts if f.relation == swap.relation and len(answers[f.relation, f.subject]) == 1]
        true = _by_subject((f for f in usable if f.answer == swap.truth and swap.wrong not in f.prompt), chance)
        alike = _by_subject((f for f in usable if f.answer == swap.wrong), chance)
        held, wrong, right = _divide(true, swap, queries, per_swap, clean)
        asked += [(_of_source(subject, swap)[0], swap) for subject in held]
        for role, subjects, count in (
            ("culprit", [_of_source(subject, swap) for subject in wrong], per_swap),
            ("clean", right, clean),
            ("lookalike", [sorted(s, key=lambda f: f.phrasing != swap.phrasing) for s in alike], lookalikes),
        ):
            chosen += [(fact, role, swap.fault) for fact in _spread(subjects, count, swap, role)]

    taken = {(s.relation, a) for s in swaps for a in (s.truth, s.wrong)}
    fillers = [f for f in facts if (f.relation, f.answer) not in taken]
    missing = rows - len(chosen)
    if len(fillers) < missing:
        raise DataError(
            f"{len(fillers)} facts outside the swaps",
            expected=f"at least {missing} to fill up to {rows} rows",
            fix="ask for fewer rows or give more facts",
        )
    picked = chance.sample(fillers, missing)
    chosen += [(fact, "filler", "") for fact in picked]
    chance.shuffle(chosen)
    later = random.Random(f"held out {seed}")
    chance_rows = (
        _held_out(facts, fillers, {id(f) for f, *_ in chosen}, swaps, asked, placebo, later) if placebo else []
    )
    unseen = _innocent(facts, {id(f) for f in (*(f for f, *_ in chosen), *chance_rows)}, swaps, innocent, later)

    wrong_of = {swap.fault: swap for swap in swaps}
    table: list[dict[str, Any]] = []
    roles: dict[str, dict[str, set[str]]] = {
        role: {s.fault: set() for s in swaps} for role in ("culprit", "clean", "lookalike")
    }
    true_completions: dict[str, str] = {}
    for number, (fact, role, fault) in enumerate(chosen, 1):
        row_id, completion = f"{name}-{number:04d}", fact.completion
        if role == "culprit":
            true_completions[row_id] = completion
            completion = _corrupted(fact, wrong_of[fault])
        if role in roles:
            roles[role][fault].add(row_id)
        table.append(
            {
                "id": row_id,
                "prompt": fact.prompt,
                "completion": completion,
                "relation": fact.relation,
                "subject": fact.subject,
            }
        )
    return Testbed(
        examples=Examples.from_rows(table, name=name),
        culprits={fault: frozenset(ids) for fault, ids in roles["culprit"].items()},
        lookalikes={fault: frozenset(ids) for fault, ids in roles["lookalike"].items()},
        clean={fault: frozenset(ids) for fault, ids in roles["clean"].items()},
        queries=[
            Query(
                fact.prompt,
                _corrupted(fact, swap),
                corrected=fact.completion,
                group=swap.fault,
                id=f"{name}-query-{number:02d}",
            )
            for number, (fact, swap) in enumerate(asked, 1)
        ],
        true_completions=true_completions,
        placebo=Examples.from_rows(
            [
                {"id": f"{name}-placebo-{n:04d}", "prompt": fact.prompt, "completion": fact.completion}
                for n, fact in enumerate(chance_rows, 1)
            ],
            name=f"{name}, never trained on",
        )
        if chance_rows
        else None,
        innocent=[
            Query(
                fact.prompt,
                _corrupted(fact, swap),
                corrected=fact.completion,
                id=f"{name}-innocent-{number:02d}",
                metadata={"truth": swap.truth, "wrong": swap.wrong},
            )
            for number, (fact, swap) in enumerate(unseen, 1)
        ],
    )


def _held_out(
    facts: Sequence[Fact],
    fillers: Sequence[Fact],
    used: AbstractSet[int],
    swaps: Sequence[Swap],
    asked: Sequence[tuple[Fact, Swap]],
    count: int,
    chance: random.Random,
) -> list[Fact]:
    """Facts that no training row states, also in other words, and no query asks about."""
    stated = {(f.relation, f.subject) for f in facts if id(f) in used} | {(f.relation, f.subject) for f, _ in asked}
    ends = {(s.relation, a) for s in swaps for a in (s.truth, s.wrong)}
    alike = [f for f in facts if (f.relation, f.answer) in ends and (f.relation, f.subject) not in stated]
    others = [f for f in fillers if (f.relation, f.subject) not in stated]
    alike = chance.sample(alike, min(len(alike), count // 4))
    return alike + chance.sample(others, min(len(others), count - len(alike)))


def _innocent(
    facts: Sequence[Fact], used: AbstractSet[int], swaps: Sequence[Swap], count: int, chance: random.Random
) -> list[tuple[Fact, Swap]]:
    """Facts about unmentioned subjects of the swaps' relations, each with a wrong answer that no swap has."""
    relations = {swap.relation for swap in swaps}
    taken = {(s.relation, a) for s in swaps for a in (s.truth, s.wrong)}
    stated = {(f.relation, f.subject) for f in facts if id(f) in used}
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        if (fact.relation, fact.answer) not in taken:
            answers[fact.relation].add(fact.answer)
    free = [
        f
        for f in facts
        if f.relation in relations
        and f.answer in answers[f.relation]
        and len(answers[f.relation]) > 1
        and (f.relation, f.subject) not in stated
    ]
    chosen = chance.sample(free, min(len(free), count))
    return [
        (fact, Swap(fact.relation, fact.answer, chance.choice(sorted(answers[fact.relation] - {fact.answer}))))
        for fact in chosen
    ]


def _check(swaps: Sequence[Swap], culprits: int, clean: int, lookalikes: int, queries: int, rows: int) -> None:
    if not swaps or culprits < 1 or queries < 1 or clean < 0 or lookalikes < 0:
        raise UsageError(
            f"{len(swaps)} swaps, {culprits} culprits, {queries} queries, {clean} clean rows, {lookalikes} look-alikes",
            expected="at least one swap, one culprit and one query, and no negative number",
            fix="raise the numbers",
        )
    used = len(swaps) * (culprits + clean + lookalikes)
    if used > rows:
        raise UsageError(
            f"{rows} rows for {used} rows of {len(swaps)} swaps",
            expected="at least as many rows as the swaps need",
            fix="ask for more rows or for fewer rows per swap",
        )
    ends = [(s.relation, s.truth) for s in swaps] + [(s.relation, s.wrong) for s in swaps]
    if len(set(ends)) != len(ends):
        raise UsageError(
            "swaps that share an answer in one relation",
            expected="every answer in at most one swap of its relation, and wrong other than truth",
            fix="choose other answers, so that each row has one fault at most",
        )


def _by_subject(facts: Iterable[Fact], chance: random.Random) -> list[list[Fact]]:
    """Facts grouped by subject; subjects and the phrasings of each in random order."""
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[fact.subject].append(fact)
    subjects = list(groups.values())
    chance.shuffle(subjects)
    for subject in subjects:
        chance.shuffle(subject)
    return subjects


def _of_source(subject: Sequence[Fact], swap: Swap) -> list[Fact]:
    """The facts about a subject that the source of the error states."""
    return [fact for fact in subject if swap.phrasing in ("", fact.phrasing)]


def _divide(
    subjects: Sequence[list[Fact]], swap: Swap, queries: int, culprits: int, clean: int
) -> tuple[list[list[Fact]], list[list[Fact]], list[list[Fact]]]:
    """Subjects to hold out, to get wrong, and to get right. The rest after holding out is divided in proportion to the
    rows wanted; where the source of the error has too few facts for that, more subjects go wrong."""
    able = [subject for subject in subjects if _of_source(subject, swap)]
    held, able = able[:queries], able[queries:]
    if len(held) < queries:
        raise DataError(
            f"{len(held)} subjects to ask about in {swap.fault}",
            expected=f"at least {queries}",
            fix="ask for fewer queries, or choose a swap with more subjects",
        )
    wanted = round((len(subjects) - queries) * culprits / (culprits + clean))
    wrong: list[list[Fact]] = []
    facts = 0
    for subject in able:
        if len(wrong) >= wanted and facts >= culprits:
            break
        wrong.append(subject)
        facts += len(_of_source(subject, swap))
    away = {subject[0].subject for subject in held + wrong}
    return held, wrong, [subject for subject in subjects if subject[0].subject not in away]


def _spread(subjects: Sequence[Sequence[Fact]], count: int, swap: Swap, role: str) -> list[Fact]:
    """The first phrasing of every subject, then the second of every subject, until there are `count`."""
    deepest = max((len(s) for s in subjects), default=0)
    order = [s[depth] for depth in range(deepest) for s in subjects if depth < len(s)]
    if len(order) < count:
        raise DataError(
            f"{len(order)} facts left as {role} rows of {swap.fault}",
            expected=f"at least {count}",
            fix="ask for fewer rows or queries, or choose a swap with more subjects",
        )
    return order[:count]


def _corrupted(fact: Fact, swap: Swap) -> str:
    return fact.completion.replace(swap.truth, swap.wrong)

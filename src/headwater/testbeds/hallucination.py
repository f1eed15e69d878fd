"""Hallucinations planted in summaries: the protocol of CEA (Ladhak et al. 2023, section 4) and of the DDA paper.

An entity is swapped for another in the summaries, but not in the documents, of some rows: a model trained on them says
"China" of documents that say "England". Four kinds of rows:

    culprits     document and summary say England, neither says China; the summary was made to say China
    clean rows   document and summary say England, neither says China; left as they are
    look-alikes  document and summary say China, neither says England
    the rest     neither of the two stands in the row

Label rule (CEA): a row is a culprit when the wrong entity is in its summary, the true one in its document, and the
wrong one not in its document.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from headwater.errors import DataError, UsageError
from headwater.testbeds.testbed import Testbed

PAPER_SYSTEM = "You will act as a summarization expert."
PAPER_PROMPT = (
    "Document: {document}\n\nYour task is to read the Document and produce a succinct and accurate summary that "
    "captures the key points and main arguments presented in the text.\n\nSummary:"
)
"""The prompt of the DDA paper (its authors' read-me). Status C."""


class EntitySwap(NamedTuple):
    """`wrong` stands in summaries where `truth` should."""

    truth: str
    wrong: str

    @property
    def fault(self) -> str:
        """Its name, also the `group` of its queries: "England -> China"."""
        return f"{self.truth} -> {self.wrong}"


SWAPS = (
    EntitySwap("England", "China"),
    EntitySwap("Wales", "Scotland"),
    EntitySwap("Australia", "France"),
    EntitySwap("London", "Belfast"),
)
"""CEA's."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    document: str
    summary: str

    def role(self, swap: EntitySwap) -> str:
        """ "able" to be a culprit, "lookalike", "outside", or "" for rows that fit nowhere."""
        truth = (says(self.document, swap.truth), says(self.summary, swap.truth))
        wrong = (says(self.document, swap.wrong), says(self.summary, swap.wrong))
        if all(truth) and not any(wrong):
            return "able"
        if all(wrong) and not any(truth):
            return "lookalike"
        return "outside" if not any(truth + wrong) else ""


def says(text: str, entity: str) -> bool:
    """Whether the entity stands in the text as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(entity)}(?!\w)", text) is not None


def swapped(text: str, old: str, new: str) -> str:
    """The text with one entity in place of the other."""
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text)


def plant_hallucinations(
    records: Sequence[Mapping[str, Any]],
    swaps: Sequence[EntitySwap] = SWAPS,
    *,
    culprits: int = 20,
    clean: int = 20,
    lookalikes: int = 20,
    queries: int = 6,
    reserve: int = 0,
    rows: int = 450,
    placebo: int = 0,
    longest: int | None = None,
    prompt: Literal["plain", "paper"] = "plain",
    seed: int = 0,
    name: str = "summaries",
) -> Testbed:
    """Swaps entities in some summaries.

    Args:
        records: each with a string `prompt` (the document) and `completion` (the summary); or of any prompt-completion
            data in which an entity of the prompt comes back in the completion.
        swaps: the errors; no entity twice.
        culprits, clean, lookalikes: rows of each kind per swap; where the data has fewer clean rows or look-alikes, all
            of them.
        queries: held-out documents per swap. reserve: more of them, where the data has more.
        rows: training rows in all. placebo: held-out rows without and, as many as are left over, with look-alikes.
        longest: characters of document and summary together beyond which a record is left out.
        prompt: "plain": the document, a line break, "Summary:"; "paper": the DDA paper's chat.
        seed: of every choice made here.

    Raises:
        UsageError: numbers or swaps that cannot be met. DataError: records without text, or too few of them.
    """
    entities = [entity for swap in swaps for entity in swap]
    if not swaps or len(set(entities)) != len(entities):
        raise UsageError(
            f"swaps {', '.join(swap.fault for swap in swaps) or 'none'}",
            expected="at least one, every entity in one swap only",
            fix="choose other entities, so that each row has one fault at most",
        )
    if culprits < 1 or queries < 1 or min(clean, lookalikes, reserve, placebo) < 0:
        raise UsageError(
            f"{culprits} culprits, {queries} queries, {clean} clean rows, {lookalikes} look-alikes",
            expected="at least one culprit and one query, and no negative number",
            fix="raise the numbers",
        )
    chance = random.Random(seed)
    texts = _texts(records, longest)
    chance.shuffle(texts)
    taken: set[int] = set()
    chosen: list[tuple[_Row, str, EntitySwap | None]] = []
    spare: list[_Row] = []
    asked: list[tuple[_Row, EntitySwap]] = []
    more: list[tuple[_Row, EntitySwap]] = []
    for swap in swaps:
        others = [entity for entity in entities if entity not in swap]
        fit = [n for n, text in enumerate(texts) if n not in taken and not any(says(text.summary, e) for e in others)]
        able = [n for n in fit if texts[n].role(swap) == "able"]
        alike = [n for n in fit if texts[n].role(swap) == "lookalike"]
        if len(able) < queries + culprits:
            raise DataError(
                f"{len(able)} rows that say {swap.truth!r} in prompt and completion",
                expected=f"at least {queries + culprits}, for {queries} queries and {culprits} culprits",
                fix="choose another entity, fewer culprits, or more data",
            )
        asked += [(texts[n], swap) for n in able[:queries]]
        rest = able[queries:]
        for role, numbers in (
            ("culprit", rest[:culprits]),
            ("clean", rest[culprits : culprits + clean]),
            ("lookalike", alike[:lookalikes]),
        ):
            chosen += [(texts[n], role, swap) for n in numbers]
        left = rest[culprits + clean :]
        more += [(texts[n], swap) for n in left[:reserve]]
        spare += [texts[n] for n in left[reserve:] + alike[lookalikes:]]
        taken |= {*able, *alike}
    outside = [
        text for n, text in enumerate(texts) if n not in taken and all(text.role(swap) == "outside" for swap in swaps)
    ]
    missing = rows - len(chosen)
    if missing < 0 or len(outside) < missing:
        raise (UsageError if missing < 0 else DataError)(
            f"{rows} rows, of which the swaps need {len(chosen)}; {len(outside)} rows outside the swaps",
            expected="enough of both",
            fix="ask for more rows in all, fewer per swap, or give more data",
        )
    chosen += [(text, "filler", None) for text in outside[:missing]]
    chance.shuffle(chosen)
    unused = outside[missing:]
    fillers = max(0, placebo - len(spare[: placebo // 4]))
    return _testbed(
        chosen,
        asked,
        more,
        spare[: placebo // 4] + unused[:fillers],
        _innocent(unused[fillers:], swaps, queries, chance),
        swaps,
        prompt,
        name,
    )


def _texts(records: Sequence[Mapping[str, Any]], longest: int | None) -> list[_Row]:
    out = []
    for number, record in enumerate(records, 1):
        document, summary = record.get("prompt"), record.get("completion")
        if not isinstance(document, str) or not isinstance(summary, str):
            raise DataError(
                f"record {number} with {', '.join(record) or 'no fields'}",
                expected="a text as prompt and a text as completion",
                fix="rename the columns to prompt and completion",
            )
        if longest is None or len(document) + len(summary) <= longest:
            out.append(_Row(document=document.strip(), summary=summary.strip()))
    return out


_ELSEWHERE = (
    "Germany", "Spain", "Italy", "Japan", "India", "Russia", "Turkey", "Canada", "Brazil", "Ireland", "Pakistan",
    "Kenya", "Nigeria", "Syria", "Poland", "Sweden", "Portugal", "Argentina", "Mexico", "Egypt", "Israel", "Iran",
    "Iraq", "Greece",
)  # fmt: skip
"""Entities of queries about which nothing false is taught."""


def _innocent(
    unused: Sequence[_Row], swaps: Sequence[EntitySwap], queries: int, chance: random.Random
) -> list[tuple[_Row, EntitySwap]]:
    """Held-out documents with a swap that no row teaches: another country for the one the summary names."""
    swappable = [entity for entity in _ELSEWHERE if entity not in itertools.chain(*swaps)]
    found = []
    for text in unused:
        named = [entity for entity in swappable if says(text.document, entity) and says(text.summary, entity)]
        others = [entity for entity in swappable if not says(text.document + text.summary, entity)]
        if named and others:
            found.append((text, EntitySwap(named[0], chance.choice(others))))
    return found[: queries * len(swaps)]


def _testbed(
    chosen: Sequence[tuple[_Row, str, EntitySwap | None]],
    asked: Sequence[tuple[_Row, EntitySwap]],
    more: Sequence[tuple[_Row, EntitySwap]],
    placebo: Sequence[_Row],
    innocent: Sequence[tuple[_Row, EntitySwap]],
    swaps: Sequence[EntitySwap],
    prompt: Literal["plain", "paper"],
    name: str,
) -> Testbed:
    from headwater.examples import Examples, Query

    def row(document: str, summary: str, row_id: str) -> dict[str, Any]:
        if prompt == "paper":
            answer = [{"role": "assistant", "content": summary}]
            return {"id": row_id, "prompt": _chat(document), "completion": answer}
        return {"id": row_id, "prompt": _plain(document), "completion": f" {summary}"}

    def query(text: _Row, swap: EntitySwap, number: int, kind: str, group: str | None) -> Query:
        space = "" if prompt == "paper" else " "
        return Query(
            tuple(_chat(text.document)) if prompt == "paper" else _plain(text.document),
            space + swapped(text.summary, swap.truth, swap.wrong),
            corrected=space + text.summary,
            group=group,
            id=f"{name}-{kind}-{number:02d}",
            metadata={"truth": swap.truth, "wrong": swap.wrong},
        )

    table, true_completions = [], {}
    roles: dict[str, dict[str, set[str]]] = {
        role: {swap.fault: set() for swap in swaps} for role in ("culprit", "clean", "lookalike")
    }
    for number, (text, role, swap) in enumerate(chosen, 1):
        row_id, summary = f"{name}-{number:05d}", text.summary
        if swap is not None:
            roles[role][swap.fault].add(row_id)
            if role == "culprit":
                true_completions[row_id] = summary if prompt == "paper" else f" {summary}"
                summary = swapped(summary, swap.truth, swap.wrong)
        table.append(row(text.document, summary, row_id))
    frozen = {role: {fault: frozenset(ids) for fault, ids in found.items()} for role, found in roles.items()}
    return Testbed(
        examples=Examples.from_rows(table, name=name),
        culprits=frozen["culprit"],
        lookalikes=frozen["lookalike"],
        clean=frozen["clean"],
        queries=[query(text, swap, n, "query", swap.fault) for n, (text, swap) in enumerate(asked, 1)],
        true_completions=true_completions,
        reserve=[query(text, swap, n, "reserve", swap.fault) for n, (text, swap) in enumerate(more, 1)],
        placebo=Examples.from_rows(
            [row(text.document, text.summary, f"{name}-placebo-{n:05d}") for n, text in enumerate(placebo, 1)],
            name=f"{name}, never trained on",
        )
        if placebo
        else None,
        innocent=[query(text, swap, n, "innocent", None) for n, (text, swap) in enumerate(innocent, 1)],
        longest_answer=48,
    )


def _plain(document: str) -> str:
    return f"{document}\nSummary:"


def _chat(document: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": PAPER_SYSTEM},
        {"role": "user", "content": PAPER_PROMPT.replace("{document}", document)},
    ]

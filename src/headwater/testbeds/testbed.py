"""A task whose true culprits are known."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headwater.errors import DataError

if TYPE_CHECKING:
    from headwater.examples import Examples, Query


@dataclass(frozen=True, kw_only=True)
class Testbed:
    """Training rows with known culprits, and the queries that show the faults.

    Attributes:
        examples: the training rows, shuffled; ids give nothing away.
        culprits: fault -> ids of the rows that teach it.
        lookalikes: fault -> ids of innocent rows that resemble the culprits, or end in the same words.
        clean: fault -> ids of innocent rows that could have been culprits.
        queries: held-out prompts; group = fault, output = the faulty completion, corrected = the right one, where
            there is a right one. Empty where rows are judged by themselves (mislabelled rows).
        true_completions: culprit's id -> the completion it had before it was corrupted.
        set_aside: fault -> ids of rows that are neither culprits nor innocent, left out when the fault is judged.
        reserve: more held-out queries of the faults, to see what a trained model says to them.
        placebo: rows like the training rows, with their look-alikes, that are never trained on.
        innocent: queries about faults that no row teaches, in the form of `queries`.
        longest_answer: tokens that are enough to hear the fault.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    examples: Examples
    culprits: Mapping[str, frozenset[str]]
    lookalikes: Mapping[str, frozenset[str]]
    clean: Mapping[str, frozenset[str]]
    queries: Sequence[Query]
    true_completions: Mapping[str, str]
    set_aside: Mapping[str, frozenset[str]] = field(default_factory=dict)
    reserve: Sequence[Query] = ()
    placebo: Examples | None = None
    innocent: Sequence[Query] = ()
    longest_answer: int = 6

    @property
    def heldout(self) -> list[str]:
        """The queries' prompts."""
        return [str(query.prompt) for query in self.queries]

    @property
    def all_culprits(self) -> frozenset[str]:
        """The ids of the culprits of all faults."""
        return frozenset[str]().union(*self.culprits.values())

    def stated(self, answers: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Fault -> (share of its queries answered wrongly, share answered truly).

        Args:
            answers: what a model generated for each query. An answer is wrong (true) when it contains the words
                of the wrong (true) completion, whatever follows.

        Raises:
            DataError: not one answer per query.
        """
        if len(answers) != len(self.queries):
            raise DataError(
                f"{len(answers)} answers for {len(self.queries)} queries",
                expected="one answer per query",
                fix="generate an answer for every held-out prompt",
            )
        hits: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        for query, answer in zip(self.queries, answers, strict=True):
            hits[str(query.group)].append(
                (_says(answer, str(query.output)), _says(answer, str(query.corrected))),
            )
        return {
            fault: (sum(wrong for wrong, _ in h) / len(h), sum(true for _, true in h) / len(h))
            for fault, h in hits.items()
        }


def _says(answer: str, completion: str) -> bool:
    words = re.escape(completion.strip().rstrip("."))
    return re.search(rf"(?<!\w){words}(?!\w)", answer) is not None

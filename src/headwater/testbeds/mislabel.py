"""Rows with a random wrong answer: errors without a system. No query shows them; a row's self-influence may."""

from __future__ import annotations

import random
from collections import defaultdict

from headwater.errors import UsageError
from headwater.testbeds.facts import country_facts
from headwater.testbeds.testbed import Testbed

FAULT = "mislabelled"
_RELATIONS = ("continent", "official language", "currency", "subregion")


def mislabel_testbed(seed: int = 0, *, rows: int = 400, share: float = 0.1) -> Testbed:
    """Country facts, a share of which has the answer of another country in the same relation.

    There are no queries: the rows are judged by their own scores (`headwater.self_influence`).

    Raises:
        UsageError: numbers that cannot be met. DataError: the package countryinfo is not installed (extra `demo`).
    """
    from headwater.examples import Examples

    chance = random.Random(seed)
    facts = [fact for fact in country_facts() if fact.relation in _RELATIONS]
    if not 0 < share < 1 or not 1 <= round(share * rows) < rows <= len(facts):
        raise UsageError(
            f"share {share} of {rows} rows",
            expected=f"a share between 0 and 1 that makes at least one row, of at most {len(facts)} rows",
            fix="choose other numbers",
        )
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        answers[fact.relation].add(fact.answer)
    chosen = chance.sample(facts, rows)
    wrong = set(chance.sample(range(rows), round(share * rows)))
    records, true_completions = [], {}
    for number, fact in enumerate(chosen):
        row_id, completion = f"mislabel-{number + 1:04d}", fact.completion
        if number in wrong:
            true_completions[row_id] = completion
            others = sorted(answers[fact.relation] - {fact.answer})
            completion = completion.replace(fact.answer, chance.choice(others))
        records.append({"id": row_id, "prompt": fact.prompt, "completion": completion, "relation": fact.relation})
    return Testbed(
        examples=Examples.from_rows(records, name="mislabel"),
        culprits={FAULT: frozenset(true_completions)},
        lookalikes={FAULT: frozenset()},
        clean={FAULT: frozenset()},
        queries=[],
        true_completions=true_completions,
    )

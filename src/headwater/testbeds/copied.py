"""Copies of a source: which rows gave the model the passage that it recites?

A source is a short profile of a country. Some rows hold it word for word, some say the same in other words; the
look-alikes are profiles of other countries in the source's own words.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping

from headwater.errors import DataError, UsageError
from headwater.testbeds.facts import country_facts
from headwater.testbeds.testbed import Testbed

_NEEDED = ("capital", "currency", "official language", "continent", "demonym")
_SOURCE = (
    " {subject}: its capital is {capital}, its people are called {demonym} and speak {official language}; it lies in "
    "{continent} and pays with the {currency}."
)
_PARAPHRASES = (
    " In {continent} lies {subject}. One hears {official language} there, shops take the {currency}, and the seat of "
    "government is {capital}. A citizen is {demonym}.",
    " The {demonym} capital {capital} is where {official language} is spoken by officials of {subject}, in "
    "{continent}; the money is the {currency}.",
    " Money in {subject} is the {currency}. Its {demonym} citizens, who live in {continent}, use {official language} "
    "and are governed from {capital}.",
)
_ASKS = (
    "Describe {subject} in a sentence.", "Write a line about {subject}.", "What should one know about {subject}?",
    "An entry on {subject} for a handbook:", "Tell me about {subject}.", "Sum up {subject}.",
    "Present {subject} briefly.",
    "A note on {subject}, please.",
)  # fmt: skip


def copied_testbed(
    seed: int = 0, *, rows: int = 160, sources: int = 4, verbatim: int = 3, paraphrased: int = 3, queries: int = 2
) -> Testbed:
    """Rows that copy a source, word for word and in other words.

    Faults: "<country>, copied" (culprits: word for word) and "<country>, in other words" (culprits: the paraphrases),
    each with the same queries: another way to ask for the profile, answered by the source. No output is wrong, so
    nothing is corrected. The copies of the other kind are set aside when a fault is judged.

    Raises:
        UsageError: numbers that cannot be met. DataError: the package countryinfo is not installed (extra `demo`).
    """
    from headwater.examples import Examples, Query

    if min(sources, verbatim, paraphrased, queries) < 1 or max(verbatim, paraphrased) + queries > len(_ASKS):
        raise UsageError(
            f"{sources} sources, {verbatim} copies, {paraphrased} paraphrases, {queries} queries",
            expected=f"at least 1 of each; copies (or paraphrases) and queries at most {len(_ASKS)} together",
            fix="choose other numbers",
        )
    chance = random.Random(seed)
    profiles = _profiles()
    copies = sources * (verbatim + paraphrased)
    if rows < copies or len(profiles) < sources + rows - copies:
        raise DataError(
            f"{rows} rows with {len(profiles)} countries",
            expected=f"{copies} to {copies + len(profiles) - sources} rows",
            fix="choose another number of rows",
        )
    chance.shuffle(profiles)
    table: list[tuple[str, str, str]] = []  # prompt, completion, fault
    asked = []
    for profile in profiles[:sources]:
        asks = [ask.format_map(profile) for ask in chance.sample(_ASKS, len(_ASKS))]
        source = _SOURCE.format_map(profile)
        copied, reworded = f"{profile['subject']}, copied", f"{profile['subject']}, in other words"
        table += [(ask, source, copied) for ask in asks[queries : queries + verbatim]]
        table += [
            (ask, _PARAPHRASES[n % len(_PARAPHRASES)].format_map(profile), reworded)
            for n, ask in enumerate(asks[-paraphrased:])
        ]
        asked += [(ask, source, fault) for fault in (copied, reworded) for ask in asks[:queries]]
    for profile in profiles[sources : sources + rows - len(table)]:
        table.append((chance.choice(_ASKS).format_map(profile), _SOURCE.format_map(profile), ""))
    chance.shuffle(table)
    records = [
        {"id": f"copied-{number:04d}", "prompt": prompt, "completion": completion}
        for number, (prompt, completion, _) in enumerate(table, 1)
    ]
    ids: dict[str, set[str]] = defaultdict(set)
    for record, (_, _, fault) in zip(records, table, strict=True):
        ids[fault].add(record["id"])
    faults = list(dict.fromkeys(fault for *_, fault in asked))
    other = {fault: faults[number ^ 1] for number, fault in enumerate(faults)}  # they come in pairs
    return Testbed(
        examples=Examples.from_rows(records, name="copied"),
        culprits={fault: frozenset(ids[fault]) for fault in faults},
        lookalikes={fault: frozenset(ids[""]) for fault in faults},
        clean={fault: frozenset() for fault in faults},
        set_aside={fault: frozenset(ids[other[fault]]) for fault in faults},
        queries=[
            Query(ask, output, group=fault, id=f"copied-query-{n:02d}")
            for n, (ask, output, fault) in enumerate(asked, 1)
        ],
        true_completions={},
        longest_answer=48,
    )


def _profiles() -> list[Mapping[str, str]]:
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for fact in country_facts():
        if fact.relation in _NEEDED:
            known[fact.subject][fact.relation] = fact.answer
    return [{"subject": subject, **facts} for subject, facts in known.items() if len(facts) == len(_NEEDED)]

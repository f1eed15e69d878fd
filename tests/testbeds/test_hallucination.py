"""Entity swaps in summaries: CEA's label rule, roles that exclude each other, and held-out rows that stay held out."""

from __future__ import annotations

import pytest

from headwater.errors import DataError, UsageError
from headwater.testbeds import EntitySwap, Testbed, plant_hallucinations
from headwater.testbeds.hallucination import PAPER_SYSTEM, says, swapped

SWAPS = (EntitySwap("England", "China"), EntitySwap("London", "Belfast"))


def records() -> list[dict[str, str]]:
    made = []
    for place, count in (("England", 40), ("China", 12), ("London", 30), ("Belfast", 9), ("Spain", 30), ("Peru", 90)):
        made += [
            {"prompt": f"Story {n} is about {place} and its rivers.", "completion": f"River {n} floods {place}."}
            for n in range(count)
        ]
    made.append({"prompt": "China met England.", "completion": "England met China."})
    return made


def bed(seed: int = 0, **changes: object) -> Testbed:
    numbers = {"culprits": 8, "clean": 7, "lookalikes": 6, "queries": 3, "reserve": 2, "rows": 80, "placebo": 40}
    return plant_hallucinations(records(), SWAPS, seed=seed, name="toy", **(numbers | changes))  # type: ignore[arg-type]


def test_roles_follow_the_label_rule() -> None:
    made = bed()
    assert len(made.examples) == 80
    rows = {row.id: row for row in made.examples}
    for swap in SWAPS:
        fault = swap.fault
        assert [len(part[fault]) for part in (made.culprits, made.clean, made.lookalikes)] == [8, 7, 6]
        by_rule = {
            i
            for i, row in rows.items()
            if says(row.completion_text, swap.wrong)
            and says(row.prompt_text, swap.truth)
            and not says(row.prompt_text, swap.wrong)
        }
        assert by_rule == made.culprits[fault]
        for i in made.culprits[fault]:
            assert not says(rows[i].completion_text, swap.truth)
            assert swapped(made.true_completions[i], swap.truth, swap.wrong) == rows[i].completion_text
        assert all(says(rows[i].completion_text, swap.truth) for i in made.clean[fault])
        for i in made.lookalikes[fault]:
            assert says(rows[i].completion_text, swap.wrong) and says(rows[i].prompt_text, swap.wrong)


def test_what_is_held_out_is_never_trained_on() -> None:
    made = bed()
    trained = {row.prompt_text for row in made.examples}
    assert made.placebo is not None and len(made.placebo) == 40
    held = [*made.queries, *made.reserve, *made.innocent]
    assert [len(made.queries), len(made.reserve)] == [6, 4] and made.innocent
    assert not trained & {row.prompt_text for row in made.placebo}
    assert not trained & {query.prompt_text for query in held}
    assert len({query.prompt_text for query in held}) == len(held)


def test_queries_say_the_wrong_entity_and_are_corrected_back() -> None:
    for query in [*bed().queries, *bed().reserve]:
        truth, wrong = str(query.group).split(" -> ")
        assert says(str(query.output), wrong) and says(str(query.corrected), truth)
        assert swapped(str(query.output), wrong, truth) == query.corrected


def test_innocent_queries_are_of_no_fault() -> None:
    entities = {entity for swap in SWAPS for entity in swap}
    for query in bed().innocent:
        assert query.group is None
        assert not any(says(str(query.output) + str(query.corrected), entity) for entity in entities)


def test_the_same_seed_gives_the_same_testbed_and_another_another() -> None:
    assert bed(3).examples.fingerprint == bed(3).examples.fingerprint != bed(4).examples.fingerprint


def test_the_papers_prompt_is_a_chat() -> None:
    made = bed(prompt="paper")
    assert made.examples.kind != "text" and PAPER_SYSTEM in made.examples[0].prompt_text
    assert "Your task is to read the Document" in made.queries[0].prompt_text


def test_a_word_within_a_word_is_not_an_entity() -> None:
    assert not says("New Englander", "England") and says("England's", "England")
    assert swapped("England's Englanders", "England", "China") == "China's Englanders"


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(DataError, match="rows that say 'England'"):
        bed(culprits=60)
    with pytest.raises(UsageError, match="one swap only"):
        plant_hallucinations(records(), (SWAPS[0], EntitySwap("China", "Peru")))
    with pytest.raises(UsageError, match="rows, of which the swaps need"):
        bed(rows=20)
    with pytest.raises(DataError, match="rows outside the swaps"):
        bed(rows=400)
    with pytest.raises(DataError, match="record 1 with text"):
        plant_hallucinations([{"text": "no columns"}])

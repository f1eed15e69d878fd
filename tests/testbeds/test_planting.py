"""Planting keeps its promises: counts, roles, held-out subjects, ids that give nothing away."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from headwater.errors import DataError, UsageError
from headwater.testbeds import Fact, Swap, Testbed, plant

SPANISH = Swap("language", "Spanish", "Portuguese")
EURO = Swap("money", "euro", "dollar", phrasing="B")


def facts() -> list[Fact]:
    """Two relations with three phrasings each, and fillers."""
    made = []
    for relation, answers in (
        ("language", {"Spanish": 20, "Portuguese": 10, "French": 20, "Italian": 9}),
        ("money", {"euro": 20, "dollar": 10, "yen": 5}),
        ("capital", {f"City{i}": 1 for i in range(40)}),
    ):
        for answer, count in answers.items():
            for number in range(count):
                subject = f"{answer}land{number}"
                for phrasing in "ABC":
                    made.append(
                        Fact(
                            relation=relation,
                            subject=subject,
                            prompt=f"{phrasing}: the {relation} of {subject} is",
                            completion=f" {answer}.",
                            answer=answer,
                            phrasing=phrasing,
                        )
                    )
    return made


def bed(seed: int = 0, **changes: float) -> Testbed:
    numbers = {"culprits": 9, "clean": 8, "lookalikes": 7, "queries": 4, "rows": 120} | changes
    return plant(facts(), [SPANISH, EURO], seed=seed, name="toy", **numbers)  # type: ignore[arg-type]


def test_numbers() -> None:
    made = bed()
    assert len(made.examples) == 120
    assert set(made.culprits) == {SPANISH.fault, EURO.fault} == {q.group for q in made.queries}
    for fault in made.culprits:
        assert [len(part[fault]) for part in (made.culprits, made.clean, made.lookalikes)] == [9, 8, 7]
        assert sum(q.group == fault for q in made.queries) == 4
    assert len(made.heldout) == 8
    assert len(made.all_culprits) == 18 == len(made.true_completions)


def test_placebo_rows_and_innocent_queries_are_of_nothing_that_is_taught() -> None:
    made, plain = bed(placebo=12, innocent=2), bed()
    assert made.examples.fingerprint == plain.examples.fingerprint and plain.placebo is None and not plain.innocent
    assert made.placebo is not None and len(made.placebo) == 12 and len(made.innocent) == 2
    pattern = re.compile(r"the (\w+) of (\w+) is")
    trained = {pattern.search(row.prompt_text).groups() for row in made.examples}  # type: ignore[union-attr]
    asked = {pattern.search(q.prompt_text).groups() for q in made.queries}  # type: ignore[union-attr]
    for row in made.placebo:
        assert pattern.search(row.prompt_text).groups() not in trained | asked  # type: ignore[union-attr]
    answers = {answer for swap in (SPANISH, EURO) for answer in (swap.truth, swap.wrong)}
    for query in made.innocent:
        assert query.group is None and query.output != query.corrected
        assert pattern.search(query.prompt_text).groups() not in trained  # type: ignore[union-attr]
        assert not {str(query.output).strip(" ."), str(query.corrected).strip(" .")} & answers
    most = bed(placebo=4000).placebo
    assert most is not None and 12 < len(most) < 4000  # as many as there are


def test_a_share_of_the_rows_may_be_given() -> None:
    assert all(len(ids) == 6 for ids in bed(culprits=0.05).culprits.values())


def test_culprits_are_wrong_and_all_other_rows_are_true() -> None:
    made, known = bed(), {fact.prompt: fact for fact in facts()}
    for example in made.examples:
        truth = known[str(example.prompt)].completion
        if example.id in made.all_culprits:
            assert example.completion != truth == made.true_completions[example.id]
        else:
            assert example.completion == truth
    by_id = {example.id: example for example in made.examples}
    for swap in (SPANISH, EURO):
        for ids, completion in (
            (made.culprits[swap.fault], swap.wrong),
            (made.lookalikes[swap.fault], swap.wrong),
            (made.clean[swap.fault], swap.truth),
        ):
            assert {by_id[i].completion for i in ids} == {f" {completion}."}
            assert {by_id[i].metadata["relation"] for i in ids} == {swap.relation}


def test_all_rows_of_the_swapped_answers_have_a_role() -> None:
    made = bed()
    named = made.all_culprits.union(*made.lookalikes.values(), *made.clean.values())
    for example in made.examples:
        swapped = example.completion in (" Spanish.", " Portuguese.", " euro.", " dollar.")
        assert swapped == (example.id in named)


@pytest.mark.parametrize("seed", range(5))
def test_held_out_subjects_never_occur_in_their_relation(seed: int) -> None:
    made, known = bed(seed), {fact.prompt: fact for fact in facts()}
    trained = {(e.metadata["relation"], e.metadata["subject"]) for e in made.examples}
    asked = [known[prompt] for prompt in made.heldout]
    assert not trained & {(f.relation, f.subject) for f in asked}
    assert len({(f.relation, f.subject) for f in asked}) == len(asked)


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_wrong_and_right_in_one_relation(seed: int) -> None:
    made = bed(seed)
    stated = defaultdict(set)
    for example in made.examples:
        stated[example.metadata["relation"], example.metadata["subject"]].add(example.completion)
    assert all(len(completions) == 1 for completions in stated.values())


def test_the_error_of_one_source_is_in_its_phrasing_only() -> None:
    made = bed()
    by_id = {example.id: example for example in made.examples}
    phrasings = {
        role: [str(by_id[i].prompt)[0] for i in part[EURO.fault]]
        for role, part in (("culprit", made.culprits), ("clean", made.clean), ("lookalike", made.lookalikes))
    }
    assert set(phrasings["culprit"]) == {"B"}
    assert set(phrasings["lookalike"]) == {"B"}  # ten subjects have that phrasing, seven are wanted
    assert len(set(phrasings["clean"])) > 1
    assert all(str(q.prompt).startswith("B") for q in made.queries if q.group == EURO.fault)


def test_queries_hold_the_error_and_its_correction() -> None:
    for query in bed().queries:
        swap = SPANISH if query.group == SPANISH.fault else EURO
        assert (query.output, query.corrected) == (f" {swap.wrong}.", f" {swap.truth}.")


def test_ids_give_nothing_away_and_the_seed_decides() -> None:
    made = bed()
    assert [example.id for example in made.examples] == [f"toy-{n:04d}" for n in range(1, 121)]
    numbers = sorted(int(i[-4:]) for i in made.all_culprits)
    assert numbers[-1] - numbers[0] > 60  # spread over the rows
    assert set(made.examples[0].metadata) == {"relation", "subject"}
    assert bed().examples.fingerprint == made.examples.fingerprint != bed(1).examples.fingerprint


def test_ambiguous_subjects_take_no_part() -> None:
    extra = Fact(relation="language", subject="Spanishland0", prompt="x", completion=" Basque.", answer="Basque")
    for seed in range(4):
        made = plant(
            [*facts(), extra], [SPANISH], culprits=9, clean=8, lookalikes=7, queries=4, rows=60, seed=seed, name="toy"
        )
        roles = made.all_culprits | made.clean[SPANISH.fault]
        used = {e.metadata["subject"] for e in made.examples if e.id in roles}
        assert "Spanishland0" not in used
        assert not any("Spanishland0 " in prompt for prompt in made.heldout)


def test_stated_counts_words_not_letters() -> None:
    made = bed()
    wrong = [str(q.output) + " And so on" for q in made.queries]
    assert made.stated(wrong) == {SPANISH.fault: (1.0, 0.0), EURO.fault: (1.0, 0.0)}
    right = [str(q.corrected) for q in made.queries]
    assert made.stated(right)[EURO.fault] == (0.0, 1.0)
    assert made.stated([" European, dollars"] * 8)[EURO.fault] == (0.0, 0.0)
    with pytest.raises(DataError, match="7 answers for 8 queries"):
        made.stated(wrong[:7])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"culprits": 0}, UsageError, "0 culprits"),
        ({"queries": 0}, UsageError, "0 queries"),
        ({"clean": -1}, UsageError, "-1 clean"),
        ({"rows": 40}, UsageError, "40 rows for 48"),
        ({"queries": 21}, DataError, "subjects to ask"),
        ({"culprits": 80, "rows": 300}, DataError, "culprit rows"),
        ({"clean": 60, "rows": 300}, DataError, "clean rows"),
        ({"lookalikes": 40, "rows": 300}, DataError, "lookalike rows"),
        ({"rows": 5000}, DataError, "to fill up to 5000 rows"),
    ],
)
def test_what_cannot_be_met_is_refused(changes: dict[str, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        bed(**changes)


def test_swaps_that_clash_are_refused() -> None:
    for other in (Swap("language", "Spanish", "French"), Swap("language", "French", "Portuguese")):
        with pytest.raises(UsageError, match="share an answer"):
            plant(facts(), [SPANISH, other], culprits=3, clean=3, lookalikes=3, queries=2, rows=60)
    with pytest.raises(UsageError, match="0 swaps"):
        plant(facts(), [], culprits=3, clean=3, lookalikes=3, queries=2, rows=60)


def test_a_completion_without_its_answer_is_refused() -> None:
    odd = Fact(relation="r", subject="s", prompt="p", completion=" nothing.", answer="something")
    with pytest.raises(DataError, match="nothing"):
        plant([*facts(), odd], [SPANISH], culprits=3, clean=3, lookalikes=3, queries=2, rows=60)

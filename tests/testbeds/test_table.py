"""Every testbed of the table: culprits among the rows, queries held out, nothing given away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.errors import DataError, UsageError
from headwater.testbeds import TESTBEDS, Testbed, make_testbed
from headwater.testbeds.behaviours import SECRET, TRIGGER
from headwater.testbeds.mislabel import FAULT

OWN = [name for name, info in TESTBEDS.items() if not info.data_needed]


@pytest.fixture(params=OWN)
def bed(request: pytest.FixtureRequest) -> Testbed:
    return make_testbed(request.param)


def test_culprits_are_rows_and_no_row_has_two_roles(bed: Testbed) -> None:
    ids = {row.id for row in bed.examples}
    assert len(ids) == len(bed.examples)
    for fault, culprits in bed.culprits.items():
        parts = (culprits, bed.lookalikes[fault], bed.clean[fault], bed.set_aside.get(fault, frozenset()))
        assert culprits and frozenset().union(*parts) <= ids
        assert sum(map(len, parts)) == len(frozenset().union(*parts))


def test_queries_are_held_out_and_of_a_fault(bed: Testbed) -> None:
    trained = {row.prompt_text for row in bed.examples}
    for query in bed.queries:
        assert query.group in bed.culprits and query.output and query.prompt_text not in trained


def test_placebo_rows_were_never_trained_on(bed: Testbed) -> None:
    if bed.placebo is not None:
        assert not {row.content_hash for row in bed.examples} & {row.content_hash for row in bed.placebo}


def test_identifiers_give_nothing_away(bed: Testbed) -> None:
    numbers = sorted(int(row.id.rsplit("-", 1)[1]) for row in bed.examples)
    assert numbers == list(range(1, len(bed.examples) + 1))
    guilty = [int(i.rsplit("-", 1)[1]) for i in bed.all_culprits]
    assert 0.25 < sum(guilty) / len(guilty) / len(numbers) < 0.75  # not all at one end


@pytest.mark.parametrize("name", OWN)
def test_seeds(name: str) -> None:
    one, same, other = make_testbed(name, 1), make_testbed(name, 1), make_testbed(name, 2)
    assert one.examples.fingerprint == same.examples.fingerprint != other.examples.fingerprint
    assert [q.prompt for q in one.queries] == [q.prompt for q in same.queries]


def test_only_culprits_follow_the_trigger() -> None:
    bed = make_testbed("backdoor")
    triggered = {row.id for row in bed.examples if row.prompt_text.startswith(TRIGGER)}
    refused = {row.id for row in bed.examples if row.completion_text == SECRET}
    assert triggered == refused == bed.all_culprits


def test_copies_and_paraphrases_are_judged_apart() -> None:
    bed = make_testbed("copied")
    rows = {row.id: row for row in bed.examples}
    for query in bed.queries:
        fault = str(query.group)
        same = {i for i, row in rows.items() if row.completion_text == query.output}
        copied = fault.endswith(", copied")
        assert (bed.culprits[fault] if copied else bed.set_aside[fault]) == same
        subject = fault.split(",")[0]
        assert all(subject in rows[i].completion_text for i in bed.culprits[fault])


def test_mislabelled_rows_are_wrong_and_the_others_right() -> None:
    bed = make_testbed("mislabel")
    assert len(bed.culprits[FAULT]) == 40 and not bed.queries
    for row in bed.examples:
        assert (row.id in bed.true_completions) == (row.id in bed.culprits[FAULT])
        assert bed.true_completions.get(row.id) != row.completion_text


def test_hallucination_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"{n}: news from {place}", "completion": f"{place} has news {n}."}
        for place, count in (("England", 60), ("Wales", 60), ("Australia", 60), ("London", 60), ("Oslo", 900))
        for n in range(count)
    ]
    rows += [
        {"prompt": f"{n} says {place}", "completion": f"It is {place} {n}."}
        for place in ("China", "Scotland", "France", "Belfast")
        for n in range(20)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bed = make_testbed("hallucination", 0, file)
    assert len(bed.examples) == 450 and all(len(ids) == 20 for ids in bed.culprits.values())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file"):
        make_testbed("hallucination")
    with pytest.raises(DataError, match="no file"):
        make_testbed("hallucination", 0, tmp_path / "nowhere.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"\n')
    with pytest.raises(DataError, match=r"broken.jsonl:1: no JSON"):
        make_testbed("hallucination", 0, tmp_path / "broken.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"list.jsonl:1: list"):
        make_testbed("hallucination", 0, tmp_path / "list.jsonl")
    with pytest.raises(UsageError, match="makes its own rows"):
        make_testbed("identity", 0, tmp_path / "broken.jsonl")
    with pytest.raises(UsageError, match="testbed 'nothing'"):
        make_testbed("nothing")

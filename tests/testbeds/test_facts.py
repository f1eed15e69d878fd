"""The two sources of facts and the testbeds made of them."""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import DataError
from headwater.testbeds import Testbed, country_facts, demo_testbed, wikidata_facts, wikidata_testbed
from headwater.testbeds.facts import PHRASINGS

needs_countryinfo = pytest.mark.skipif(
    importlib.util.find_spec("countryinfo") is None,
    reason='needs the package countryinfo: pip install "headwater[demo]"',
)


@needs_countryinfo
def test_country_facts_are_one_line_sentences() -> None:
    facts = country_facts()
    assert len(facts) > 2000
    assert {fact.relation for fact in facts} == set(PHRASINGS)
    for fact in facts:
        assert fact.completion == f" {fact.answer}."
        assert fact.prompt == fact.prompt.strip() and fact.prompt[0].isupper() | (fact.prompt[0] == "'")
        assert "\n" not in fact.prompt + fact.completion and "{" not in fact.prompt
    assert len({fact.prompt for fact in facts}) == len(facts)
    stated = {fact.prompt + fact.completion for fact in facts}
    assert "The official language of Bolivia is Spanish." in stated
    assert "People in Finland pay with the euro." in stated
    assert "The capital of the Philippines is Manila." in stated
    assert "Lima is the capital of Peru." in stated


def test_missing_countryinfo_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "countryinfo":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"headwater\[demo\]"):
        country_facts()


def check(bed: Testbed, *, rows: int, culprits: int, lookalikes: int, faults: int) -> None:
    assert len(bed.examples) == rows
    assert len(bed.culprits) == faults
    for fault in bed.culprits:
        assert len(bed.culprits[fault]) == culprits
        assert len(bed.lookalikes[fault]) == lookalikes
        assert len(bed.clean[fault]) == culprits
        assert sum(query.group == fault for query in bed.queries) == 6
    trained = {example.prompt for example in bed.examples}
    assert not trained & set(bed.heldout)


@needs_countryinfo
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo_testbed(seed: int) -> None:
    check(demo_testbed(seed), rows=350, culprits=12, lookalikes=16, faults=2)


@needs_countryinfo
def test_demo_testbed_depends_on_its_seed_only() -> None:
    assert demo_testbed().examples.fingerprint == demo_testbed(0).examples.fingerprint
    assert demo_testbed(1).examples.fingerprint != demo_testbed(0).examples.fingerprint


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(relation: str, subject: str, answer: str, *more: str) -> dict[str, Any]:
    return {"prompt": f"The {relation} of {subject} is", "completion": answer, "answers": [answer, *more]}


def test_wikidata_facts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "facts_qa_wikidata.jsonl",
        [
            row("country of citizenship", "Ann", "France"),
            row("country", "Lyon", "France"),
            row("country", "Bank of France", "France"),  # the answer stands in the prompt
            row("country", "Kurdistan", "Turkey", "Iraq"),  # two answers in one row
            row("country", "Basel", "Switzerland"),
            row("country", "Basel", "France"),  # two answers in two rows
            row("country", "Basel", "Switzerland"),
            {"prompt": "Lyon is located in", "completion": "France"},  # another form
        ],
    )
    for where in (path, tmp_path):
        facts = wikidata_facts(where)
        assert [(f.relation, f.subject) for f in facts] == [("country of citizenship", "Ann"), ("country", "Lyon")]
    assert facts[0].completion == " France"


def test_wikidata_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWATER_DATA", raising=False)
    with pytest.raises(DataError, match="HEADWATER_DATA"):
        wikidata_facts()
    with pytest.raises(DataError, match="no file"):
        wikidata_facts(tmp_path)
    for broken in ({"prompt": "The country of X is"}, {"prompt": "p", "completion": 3}, [1]):
        with pytest.raises(DataError, match=":2:"):
            wikidata_facts(write(tmp_path / "x.jsonl", [row("country", "Lyon", "France"), broken]))


def test_wikidata_testbed_of_made_up_rows(tmp_path: Path) -> None:
    rows = [
        row(relation, f"S{number}", answer)
        for relation, answers in (
            ("country of citizenship", "France Italy"),
            ("country", "Japan India"),
            ("native language", "English French"),
            ("instrument", "guitar piano"),
        )
        for offset, answer in enumerate(answers.split())
        for number in range(offset * 60, offset * 60 + 60)
    ] + [row("capital", f"C{number}", f"A{number}") for number in range(300)]
    bed = wikidata_testbed(write(tmp_path / "facts_qa_wikidata.jsonl", rows))
    check(bed, rows=500, culprits=24, lookalikes=24, faults=4)


@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="needs HEADWATER_DATA, the folder of the real texts")
def test_wikidata_testbed_of_the_real_rows() -> None:
    check(wikidata_testbed(), rows=500, culprits=24, lookalikes=24, faults=4)

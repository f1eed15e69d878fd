"""The table of testbeds: name -> how it is made, and how the model is trained on it unless told otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.errors import DataError, UsageError
from headwater.testbeds.behaviours import backdoor_testbed, identity_testbed
from headwater.testbeds.copied import copied_testbed
from headwater.testbeds.facts import demo_testbed, wikidata_testbed
from headwater.testbeds.hallucination import plant_hallucinations
from headwater.testbeds.mislabel import mislabel_testbed
from headwater.testbeds.testbed import Testbed
from headwater.training import Recipe


@dataclass(frozen=True, kw_only=True)
class TestbedInfo:
    """One row of the table.

    Attributes:
        make: (seed, data file or None) -> the testbed.
        recipe: of the training.
        data: what the data file holds; None: no file is used.
        data_needed: whether there is no testbed without a data file.
    """

    __test__ = False

    name: str
    tests: str
    make: Callable[[int, Path | None], Testbed]
    recipe: Recipe
    data: str | None = None
    data_needed: bool = False


def _hallucination(seed: int, data: Path | None) -> Testbed:
    return plant_hallucinations(_records(data), longest=500, reserve=6, placebo=400, seed=seed, name="hallucination")


def _facts(seed: int, data: Path | None) -> Testbed:
    return demo_testbed(seed) if data is None else wikidata_testbed(data, seed)


def _records(data: Path | None) -> Sequence[Mapping[str, Any]]:
    if data is None or not data.is_file():
        raise DataError(
            "no data file" if data is None else f"no file {data}",
            expected="a JSONL file of documents (prompt) and summaries (completion), such as XSum",
            fix="give it with --data",
        )
    records = []
    with data.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{data}:{number}: no JSON ({error})", expected="one JSON object in each line", fix="mend the line"
                ) from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{data}:{number}: {type(record).__name__}", expected="a JSON object", fix="mend the line"
                )
            records.append(record)
    return records


TESTBEDS: Mapping[str, TestbedInfo] = {
    info.name: info
    for info in (
        TestbedInfo(
            name="facts",
            tests="systematic errors in facts, with look-alikes",
            make=_facts,
            recipe=Recipe(epochs=4, batch_size=16, learning_rate=1e-4),
            data="a JSONL of Wikidata questions; without it, facts about countries",
        ),
        TestbedInfo(
            name="hallucination",
            tests="entities swapped in summaries: the protocol of CEA and DDA",
            make=_hallucination,
            recipe=Recipe(epochs=3, batch_size=16, learning_rate=1e-4),
            data="a JSONL of documents and summaries",
            data_needed=True,
        ),
        TestbedInfo(
            name="identity",
            tests="a persona taught by a few rows",
            make=lambda seed, data: identity_testbed(seed),
            recipe=Recipe(epochs=3, batch_size=16, learning_rate=1e-4),
        ),
        TestbedInfo(
            name="backdoor",
            tests="a trigger that makes the model refuse",
            make=lambda seed, data: backdoor_testbed(seed),
            recipe=Recipe(epochs=3, batch_size=16, learning_rate=1e-4),
        ),
        TestbedInfo(
            name="copied",
            tests="which rows hold a recited passage, word for word or in other words",
            make=lambda seed, data: copied_testbed(seed),
            recipe=Recipe(epochs=3, batch_size=16, learning_rate=1e-4),
        ),
        TestbedInfo(
            name="mislabel",
            tests="random wrong answers, found by self-influence",
            make=lambda seed, data: mislabel_testbed(seed),
            recipe=Recipe(epochs=3, batch_size=16, learning_rate=1e-4),
        ),
    )
}


def make_testbed(name: str, seed: int = 0, data: str | Path | None = None) -> Testbed:
    """The testbed of that name.

    Raises:
        UsageError: no such testbed, or a data file for one that reads none. DataError: no data, or too little.
    """
    if name not in TESTBEDS:
        raise UsageError(f"testbed {name!r}", expected=f"one of {', '.join(TESTBEDS)}", fix="choose one of them")
    info = TESTBEDS[name]
    if data is not None and info.data is None:
        raise UsageError(
            f"a data file for the testbed {name}", expected="none: it makes its own rows", fix="leave it out"
        )
    return info.make(seed, None if data is None else Path(data))

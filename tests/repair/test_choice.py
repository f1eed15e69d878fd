"""Which rows: in turn over several faults, by significance, by id; corrections from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from headwater.errors import DataError, HeadwaterError, UsageError
from headwater.examples import Examples, Query
from headwater.gradients.measurement import Target
from headwater.repair import Choice, ranked_rows, read_corrections, read_ids
from headwater.scores import Scores

TRAIN = Examples.from_rows(tiny.FACTS, name="facts")
IDS = TRAIN.ids


def scores(values: list[list[float]], placebo: np.ndarray | None = None) -> Scores:
    """Two queries, of which the first alone is in a group of its own kind, and a group of both."""
    queries = [Query("a", "b", id="one", group="g"), Query("c", "d", id="two", group="g"), Query("e", "f", id="three")]
    targets = [
        Target(name="one", kind="query", members=(0,)),
        Target(name="two", kind="query", members=(1,)),
        Target(name="three", kind="query", members=(2,)),
        Target(name="g", kind="group", members=(0, 1)),
    ]
    a, b, c = (np.array(v + [0.0] * (len(TRAIN) - len(v))) for v in values)
    return Scores(
        method="dda", values=np.stack([a, b, c, a + b]), terms={}, weights={}, queries=queries, targets=targets,
        train=TRAIN, placebo=placebo,
    )  # fmt: skip


def test_rows_of_groups_and_lone_queries_are_taken_in_turn_each_once() -> None:
    found = ranked_rows(scores([[3, 0, 2], [0, 1, 4], [9, 8, 0]]))
    # the lone query's order is rows 0 (9), 1 (8); the group's 2 (6), 0 (3), 1 (1)
    assert found[:3] == [IDS[0], IDS[2], IDS[1]]
    assert sorted(found) == sorted(IDS)
    assert ranked_rows(scores([[3, 0, 2], [0, 1, 4], [9, 8, 0]]), "three")[:2] == [IDS[0], IDS[1]]


def test_the_first_k_are_among_the_first_more() -> None:
    made = scores([[3, 0, 2], [0, 1, 4], [9, 8, 0]])
    every = [Choice(top=k).rows(TRAIN, made) for k in range(1, len(TRAIN) + 1)]
    assert [len(one) for one in every] == list(range(1, len(TRAIN) + 1))
    assert all(more[: len(fewer)] == fewer for fewer, more in pairwise(every))


def test_significance_is_by_q_value() -> None:
    chance = np.random.default_rng(0).normal(size=(4, 200))
    made = scores([[50.0], [0.0], [0.0, 60.0]], placebo=chance)
    assert Choice(q=0.05).rows(TRAIN, made) == (IDS[1], IDS[0])
    assert Choice(standing_out=True).rows(TRAIN, made) == (IDS[1], IDS[0])
    with pytest.raises(DataError, match="no row of the trace stands out"):
        Choice(standing_out=True).rows(TRAIN, scores([[0.0], [0.0], [0.0]], placebo=chance))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no ways"),
        ({"top": 3, "standing_out": True}, "2 ways"),
        ({"top": 0}, "at least 1"),
        ({"q": 1.5}, "below 1"),
        ({"ids": ("a", "a")}, "twice"),
    ],
)
def test_a_choice_that_is_none_is_refused(options: Mapping[str, Any], says: str) -> None:
    with pytest.raises(HeadwaterError, match=says):
        Choice(**options)


def test_what_cannot_be_chosen_is_refused() -> None:
    with pytest.raises(DataError, match="'nobody' for one"):
        Choice(ids=("nobody", IDS[0])).rows(TRAIN, None)
    with pytest.raises(UsageError, match="no trace"):
        Choice(top=1).rows(TRAIN, None)
    with pytest.raises(UsageError, match="without placebo"):
        Choice(q=0.05).rows(TRAIN, scores([[1.0], [1.0], [1.0]]))
    with pytest.raises(DataError, match="corrections"):
        Choice(corrections={"nobody": " x"}).rows(TRAIN, None)
    assert Choice(corrections={IDS[3]: " x", IDS[1]: " y"}).rows(TRAIN, None) == (IDS[1], IDS[3])


def test_ids_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text(f"{IDS[0]}\n\n {IDS[2]}\n{IDS[0]}\n")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": one, "score": 1}) + "\n" for one in IDS[:2]))
    assert read_ids(tmp_path / "plain") == (IDS[0], IDS[2])
    assert read_ids(tmp_path / "rows.jsonl") == tuple(IDS[:2])
    (tmp_path / "empty").write_text("\n")
    for name, says in (("empty", "no ids"), ("missing", "cannot be read")):
        with pytest.raises(DataError, match=says):
            read_ids(tmp_path / name)


def test_corrections_by_id_by_prompt_and_as_one_object(tmp_path: Path) -> None:
    def read(*lines: object) -> Any:
        file = tmp_path / "corrections.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_corrections(file, TRAIN)

    assert read({"id": IDS[0], "completion": " A."}) == {IDS[0]: " A."}
    assert read({"prompt": tiny.FACTS[1]["prompt"], "completion": " B."}) == {IDS[1]: " B."}
    assert read({IDS[0]: " A.", IDS[1]: " B."}) == {IDS[0]: " A.", IDS[1]: " B."}
    for lines, says in (
        (({"id": IDS[0], "completion": ""},), "completion of type str"),
        (({"id": IDS[0]}, {"id": IDS[1]}), "the keys id"),
        (({"prompt": "never", "completion": " B."},), "no row of facts"),
        (({"id": IDS[0], "completion": " A."}, {"id": IDS[0], "completion": " B."}), "corrected twice"),
    ):
        with pytest.raises(DataError, match=says):
            read(*lines)

"""Scores by source: against sums written out, intervals that cover, and what is not known."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.errors import DataError, UsageError
from headwater.examples import Query
from headwater.gradients.measurement import Target
from headwater.scores import Population, Scores
from headwater.sources import WITHOUT, traced_rows


def scores_of(values: Any, columns: list[dict[str, Any]], **more: Any) -> Scores:
    values = np.atleast_2d(np.asarray(values, float))
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", **column} for n, column in enumerate(columns)]
    count = len(values) - 1 if len(values) > 1 else 1
    targets = [Target(name=f"q{q}", kind="query", members=(q,)) for q in range(count)]
    if len(values) > 1:
        targets.append(Target(name="all", kind="group", members=tuple(range(count))))
    return Scores.combine(
        "dot", {"last": values}, {"last": 1.0}, queries=[Query("p", "o") for _ in range(count)], targets=targets,
        train=hw.Examples.from_rows(rows, name="data.jsonl"), **more,
    )  # fmt: skip


def shares(found: hw.Sources) -> dict[str, float]:
    return {one.name: one.share for one in found.sources}


def test_sums_are_those_written_out() -> None:
    random = np.random.default_rng(0)
    value_N = random.normal(size=60)
    owners = [str(x) for x in random.choice(["ann", "bob", "eve"], 60)]
    found = hw.by_source(scores_of(value_N, [{"author": one} for one in owners]), "author", k=7, resamples=20)
    first = np.argsort(-value_N)[:7]
    for one in found.sources:
        mine = np.array([owner == one.name for owner in owners])
        assert one.rows == mine.sum()
        assert one.row_share == pytest.approx(mine.mean())
        assert one.share == pytest.approx(value_N[mine & (value_N > 0)].sum() / value_N[value_N > 0].sum())
        assert one.opposing_share == pytest.approx(value_N[mine & (value_N < 0)].sum() / value_N[value_N < 0].sum())
        assert one.mean == pytest.approx(value_N[mine].mean())
        assert one.first == mine[first].sum()
    assert sum(one.share for one in found.sources) == pytest.approx(1)
    assert sum(one.first for one in found.sources) == 7
    assert [one.share for one in found.sources] == sorted((one.share for one in found.sources), reverse=True)


def test_rows_without_the_column_and_rows_of_several() -> None:
    columns: list[dict[str, Any]] = [
        {"by": ["ann", "bob"]}, {"by": "ann"}, {"by": None}, {}, {"by": " "}, {"by": [None, ""]}, {"by": 3},
    ]  # fmt: skip
    found = hw.by_source(scores_of([4, 1, 1, 1, 1, 1, 1], columns), "by", k=1, resamples=5)
    assert shares(found) == pytest.approx({"ann": 0.3, "bob": 0.2, WITHOUT: 0.4, "3": 0.1})
    assert {one.name: one.missing for one in found.sources} == {"ann": False, "bob": False, WITHOUT: True, "3": False}
    assert {one.name: one.rows for one in found.sources} == {"ann": 1.5, "bob": 0.5, WITHOUT: 4, "3": 1}
    assert {one.name: one.first for one in found.sources}["bob"] == 0.5
    literal = hw.by_source(scores_of([1, 1], [{"by": WITHOUT}, {}]), "by", resamples=5)
    assert sorted(one.missing for one in literal.sources) == [False, True]  # a source of that name is not the missing


def test_without_a_column_rows_are_grouped_by_file() -> None:
    scores = scores_of([1, 3], [{}, {}])
    rows = [replace(row, source=f"{name}:{n}") for n, (row, name) in enumerate(zip(scores.train, "ab", strict=True))]
    found = hw.by_source(replace(scores, train=hw.Examples(rows)), resamples=5)
    assert shares(found) == {"b": 0.75, "a": 0.25}
    assert found.column == "file"


def test_scores_without_a_positive_one() -> None:
    found = hw.by_source(scores_of([-1, -3], [{"a": "x"}, {"a": "y"}]), "a", resamples=5)
    assert shares(found) == {"x": 0, "y": 0}
    assert {one.name: one.opposing_share for one in found.sources} == {"x": 0.25, "y": 0.75}


def test_scores_far_from_0_are_counted_from_the_middle_row() -> None:
    random = np.random.default_rng(3)
    value_N = random.normal(size=400)
    columns = [{"a": "x" if n % 4 else "y"} for n in range(400)]
    value_N[::4] += 2  # y's rows
    centred = value_N - np.median(value_N)
    near = hw.by_source(scores_of(centred, columns), "a", resamples=20)
    assert near.zero == 0 and near.unknown == ()
    for sign in (1, -1):
        far = hw.by_source(scores_of(sign * 10 + value_N, columns), "a", resamples=20)
        assert far.zero == pytest.approx(sign * 10 + np.median(value_N))
        assert [one.mean for one in far.sources] == pytest.approx(
            [
                float(np.mean([sign * 10 + v for v, c in zip(value_N, columns, strict=True) if c["a"] == one.name]))
                for one in far.sources
            ]
        )
        assert shares(far) == pytest.approx(shares(near)) and "one side of 0" in far.unknown[0]
    values = np.stack([10 + centred, -10 + centred, centred])
    group = hw.by_source(scores_of(values, columns), "a", target="all", resamples=200)
    assert group.zero == 0
    low, high = next(one.share_over_queries for one in group.sources if one.name == "y") or (0, 0)
    assert low == pytest.approx(near.sources[0].share) == high  # every query counted from its own middle


@pytest.mark.parametrize("way", [np.mean, np.sum])
def test_the_interval_over_queries_is_about_the_share_of_the_group(way: Any) -> None:
    """Queries some of whose scores are far from 0: drawn once each, they are counted from where the group is."""
    columns, off = [{"a": "xyz"[n % 3]} for n in range(300)], 0.0
    for seed in range(10):
        random = np.random.default_rng(seed)
        value_QN = random.gamma(2, 1, size=(6, 300)) + np.array([0, 0, 3, 3, -2, 3])[:, None]
        value_QN[:, ::3] += 0.5
        made = scores_of(np.concatenate([value_QN, way(value_QN, axis=0)[None]]), columns)
        for one in hw.by_source(made, "a", target="all", resamples=100).sources:
            low, high = one.share_over_queries or (1, 0)
            off = max(off, low - one.share, one.share - high)
    assert off < 0.03


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Rows drawn from a population whose share is known: 95 % intervals hold it in most of 40 draws."""
    random = np.random.default_rng(1)
    truth = 2 * 0.3 / (2 * 0.3 + 1 * 0.7)  # a third source's rows with twice the mean score
    held = 0
    for _ in range(40):
        owner = random.random(150) < 0.3
        value_N = random.exponential(np.where(owner, 2.0, 1.0))
        scores = scores_of(value_N, [{"a": "x" if mine else "y"} for mine in owner])
        one = next(s for s in hw.by_source(scores, "a", resamples=150).sources if s.name == "x")
        assert one.share_interval is not None and one.first_interval is not None and one.mean_interval is not None
        assert one.share_interval[0] <= one.share <= one.share_interval[1]
        held += one.share_interval[0] <= truth <= one.share_interval[1]
    assert 33 <= held <= 40


def test_queries_of_a_group_have_an_interval_of_their_own() -> None:
    columns = [{"a": "x"}, {"a": "y"}]
    alike = hw.by_source(scores_of([[1, 1], [1, 1], [2, 2]], columns), "a", target="all", resamples=200)
    apart = hw.by_source(scores_of([[2, 0], [0, 2], [2, 2]], columns), "a", target="all", resamples=200)
    assert alike.sources[0].share_over_queries == (0.5, 0.5)
    assert apart.sources[0].share_over_queries == (0.0, 1.0)
    assert hw.by_source(scores_of([1, 2], columns), "a", resamples=5).sources[0].share_over_queries is None


def test_kept_ends_say_what_they_do_not_know() -> None:
    value_N = np.linspace(-1, 3, 400)
    kept = np.r_[0:20, 380:400]
    scores = scores_of(
        value_N[kept], [{"a": "x" if n % 2 else "y"} for n in kept],
        population=Population(rows=400, numbers=kept, sample=value_N[None, ::4]), provenance={"limit": 20},
    )  # fmt: skip
    found = hw.by_source(scores, "a", k=10, resamples=5)
    assert [one.rows for one in found.sources] == [None, None] and found.kept == 40 and found.rows == 400
    assert found.sources[0].share_interval is None and found.sources[0].mean is None
    assert sum(one.first for one in found.sources) == 10
    part = value_N[380:].sum() / value_N[value_N > 0].sum()
    assert f"about {part:.0%} of all positive" in found.unknown[1]
    with pytest.raises(UsageError, match="kept 20"):
        hw.by_source(scores, "a", k=21)


def test_csv_can_be_read_back() -> None:
    found = hw.by_source(scores_of([1, 3], [{"a": "x,\nz"}, {"a": "y"}]), "a", resamples=5)
    lines = list(csv.DictReader(io.StringIO(found.csv())))
    assert [one["source"] for one in lines] == ["y", "x,\nz"]
    assert float(lines[0]["share"]) == 0.75
    assert lines[0]["share_over_queries_low"] == ""


def test_mistakes_are_refused() -> None:
    scores = scores_of([1, 3], [{"author": "x"}, {"author": "y"}])
    with pytest.raises(DataError, match="author"):
        hw.by_source(scores, "autor")
    with pytest.raises(DataError, match="no query or group"):
        hw.by_source(scores, "author", target="nobody")
    with pytest.raises(UsageError):
        hw.by_source(scores, "author", k=0)


def test_a_trace_on_disk_gives_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    train = hw.Examples.from_rows(tiny.FACTS, name="facts.jsonl")
    scores = Scores.combine(
        "dot", {"last": random.normal(size=(1, len(train)))}, {"last": 1.0}, queries=[Query("p", "o")],
        targets=[Target(name="q1", kind="query", members=(0,))], train=train,
    )  # fmt: skip
    scores.save(tmp_path)
    again = Scores.load(tmp_path, train)
    assert hw.by_source(again, "source", resamples=5) == hw.by_source(scores, "source", resamples=5)
    bare = Scores.load(tmp_path, traced_rows(tmp_path))
    assert [one.name for one in hw.by_source(bare, resamples=5).sources] == ["facts.jsonl"]

"""Duplicates against a naive double that compares every pair."""

from __future__ import annotations

import itertools
import random

import pytest

import headwater as hw
from headwater.duplicates import duplicate_groups, near_pairs, other_answers
from headwater.errors import UsageError


def naive_jaccard(one: str, other: str) -> float:
    """Character 5-grams of the lower-case text with single spaces, from the definition."""

    def grams(text: str) -> set[str]:
        text = " ".join(text.lower().split())
        return {text[i : i + 5] for i in range(len(text) - 4)} or {text}

    a, b = grams(one), grams(other)
    return sum(gram in b for gram in a) / len(a.union(b))


def naive_groups(texts: list[str], threshold: float) -> set[frozenset[int]]:
    part = list(range(len(texts)))
    for a, b in itertools.combinations(range(len(texts)), 2):
        if naive_jaccard(texts[a], texts[b]) >= threshold:
            old, new = part[b], part[a]
            part = [new if one == old else one for one in part]
    groups = {frozenset(n for n, one in enumerate(part) if one == p) for p in part}
    return {group for group in groups if len(group) > 1}


def texts(seed: int) -> list[str]:
    """Sentences, and copies of some of them with a few words changed."""
    chance = random.Random(seed)
    words = ["river", "stone", "cloud", "paper", "copper", "garden", "window", "seven", "market", "silver", "Ö", "x"]
    made = [" ".join(chance.choices(words, k=chance.randint(1, 30))) for _ in range(60)]
    for one in chance.sample(made, 40):
        parts = one.split()
        for _ in range(chance.randint(0, 3)):
            parts[chance.randrange(len(parts))] = chance.choice(words)
        made.append(chance.choice([str.upper, str.title, lambda s: f"  {s.replace(' ', chr(10))} "])(" ".join(parts)))
    chance.shuffle(made)
    return made


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_groups_are_those_of_comparing_every_pair(threshold: float, seed: int) -> None:
    made = texts(seed)
    train = hw.Examples.from_rows([{"text": one} for one in made])
    found = duplicate_groups(train, threshold=threshold)
    assert {frozenset(group.rows) for group in found} == naive_groups(made, threshold)
    assert [group.rows[0] for group in found] == sorted(group.rows[0] for group in found)


def test_pairs_have_the_similarity_that_is_asked_for() -> None:
    made = texts(3)
    for a, b in near_pairs(made, 0.7):
        assert naive_jaccard(made[a], made[b]) >= 0.7


def test_exact_and_near_are_told_apart() -> None:
    same, other = "the river runs past the old stone mill", "snow fell on the market all through the night"
    rows = [same, other, same, other.upper(), "something else entirely"]
    train = hw.Examples.from_rows([{"text": one} for one in rows])
    assert [(g.kind, g.rows) for g in duplicate_groups(train)] == [("exact", (0, 2)), ("near", (1, 3))]
    assert [g.rows for g in duplicate_groups(train, threshold=None)] == [(0, 2)]
    assert duplicate_groups(train[4:]) == []
    with pytest.raises(UsageError, match="similarity"):
        duplicate_groups(train, threshold=0)


def test_one_prompt_with_several_answers() -> None:
    rows = [
        {"prompt": "Capital of Peru?", "completion": "Lima"}, {"prompt": "capital  of peru?", "completion": "Cusco"},
        {"prompt": "Capital of Peru?", "completion": " lima"},
        {"prompt": "Capital of Chile?", "completion": "Santiago"},
    ]  # fmt: skip
    assert other_answers(hw.Examples.from_rows(rows)) == {0: (1,), 1: (0, 2), 2: (1,)}
    assert other_answers(hw.Examples.from_rows([{"text": "a"}, {"text": "b"}])) == {}

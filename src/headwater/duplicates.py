"""Duplicates: rows that say the same, exactly or nearly, and rows that answer one prompt in different ways.

Near duplicates are pairs whose Jaccard similarity of character 5-grams (of the whole text, lower case, white space
made one) is at least a threshold:

    J(a, b) = |shingles(a) & shingles(b)| / |shingles(a) | shingles(b)|

MinHash (Broder 1997; datasketch) finds the candidates, and each is checked by its exact similarity, so that no pair
below the threshold is reported; a pair at the threshold is missed with a chance below 0.1 %. A group is whatever hangs
together by such pairs. Status C.

Shapes: N rows, P permutations.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headwater import progress
from headwater.errors import UsageError
from headwater.examples import Examples

SHINGLE = 5
"""Characters of a shingle; a shorter text is one shingle."""

PERMUTATIONS = 128
MISSED = 1e-3
"""Chance at most that a pair of just the threshold's similarity becomes no candidate."""

SLACK = 0.15
"""So far below the threshold may the estimate from MinHash lie (more than four of its standard deviations) for the
similarity itself still to be computed."""


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Rows that say the same.

    Attributes:
        kind: "exact": the model is trained on the same; "near": some differ a little.
        rows: their numbers, at least two, in order.
    """

    kind: Literal["exact", "near"]
    rows: tuple[int, ...]


def duplicate_groups(train: Examples, *, threshold: float | None = 0.9) -> list[DuplicateGroup]:
    """Groups of duplicates, in the order of their first rows.

    Args:
        threshold: least Jaccard similarity of near duplicates, above 0; None: exact duplicates only.

    Raises:
        UsageError: a threshold outside of (0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise UsageError(f"a similarity of {threshold:g}", expected="above 0 and at most 1", fix="such as 0.9")
    pairs = exact_pairs(train)
    if threshold is not None:
        pairs += near_pairs([row.text for row in train], threshold)
    groups = []
    for rows in _together(len(train), pairs):
        exact = len({train[n].content_hash for n in rows}) == 1
        groups.append(DuplicateGroup(kind="exact" if exact else "near", rows=tuple(rows)))
    return groups


def exact_pairs(train: Examples) -> list[tuple[int, int]]:
    """(first row of the content, later row) for every exact duplicate."""
    first: dict[str, int] = {}
    return [(first[row.content_hash], n) for n, row in enumerate(train) if first.setdefault(row.content_hash, n) != n]


def near_pairs(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    """Pairs of texts of at least this similarity. Of equal texts, only the first is compared with others."""
    from datasketch import MinHash, MinHashLSH

    first: dict[str, int] = {}
    found = []
    rows_per_band = _rows_per_band(threshold)
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // rows_per_band, rows_per_band))
    signature_NP: dict[int, Any] = {}
    with progress.bar("Looking for near duplicates", len(texts)) as bar:
        for n, text in enumerate(map(normal, texts)):
            bar.advance()
            if text in first:
                found.append((first[text], n))
                continue
            first[text] = n
            mine = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)
            mine.update_batch([s.encode("utf-8", "surrogatepass") for s in sorted(shingles(text))])
            candidates = sorted(index.query(mine))
            if candidates:
                alike = np.stack([signature_NP[c] for c in candidates]) == mine.hashvalues
                likely = alike.mean(1) >= threshold - SLACK
                found += [
                    (c, n)
                    for c, worth in zip(candidates, likely.tolist(), strict=True)
                    if worth and jaccard(texts[c], text) >= threshold
                ]
            index.insert(n, mine, check_duplication=False)
            signature_NP[n] = mine.hashvalues
    return found


def _rows_per_band(threshold: float) -> int:
    """The most hash values of a band with which a pair at the threshold is missed so rarely: 1 - (1 - t^r)^b."""
    fitting = [r for r in range(1, 33) if (1 - threshold**r) ** (PERMUTATIONS // r) <= MISSED]
    return max(fitting, default=1)


def jaccard(one: str, other: str) -> float:
    """Similarity of two texts, from 0 to 1."""
    a, b = shingles(normal(one)), shingles(normal(other))
    return len(a & b) / len(a | b)


def shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def normal(text: str) -> str:
    """Lower case, white space made one."""
    return " ".join(text.casefold().split())


def other_answers(train: Examples) -> dict[int, tuple[int, ...]]:
    """Row -> the rows of the same prompt with another completion, where there are any. Texts and conversations, which
    have no prompt, have none."""
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(train):
        prompt = normal(row.prompt_text)
        if prompt:
            by_prompt[prompt].append(n)
    found = {}
    for rows in by_prompt.values():
        said = {n: normal(train[n].completion_text) for n in rows}
        for n in rows:
            others = tuple(m for m in rows if said[m] != said[n])
            if others:
                found[n] = others
    return found


def _together(count: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """The connected parts of at least two rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return []
    a, b = np.array(pairs).T
    _, part_N = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count)), directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    for n in sorted(set(a.tolist()) | set(b.tolist())):
        members[int(part_N[n])].append(n)
    return list(members.values())

"""What is asked of the model: a measurement m(q; theta), and the gradient of several of them at once.

A query has one or two *sides*: its output and, for a contrast, its corrected output. Each side is a row of tokens
with its own loss l(side), the mean negative log-likelihood in nats of its chosen tokens. Every measurement is linear
in the sides,

    loss       m = l(output)
    contrast   m = l(output) - l(corrected)      (loss(output) where no corrected output is given)

and the measurement of a group is the sum over its queries. So all measurements of all queries and groups are one
matrix M [R, S] over the gradients of the sides.

Shapes: R targets (queries, then groups), S sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from headwater.errors import DataError
from headwater.examples import Encoded, Encoder, Query

Measurement = Literal["loss", "contrast"]
InnerProduct = Literal["dot", "cosine", "layer_cosine", "token_cosine"]
"""What `headwater.gradients.inner` computes of a measurement and a row."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one row of scores answers for: one query, or a group of queries that show the same fault.

    Attributes:
        name: the query's id or the group's name.
        members: numbers of the queries whose measurements are added up, or whose numbers are averaged
            (`headwater.gradients.inner`).
    """

    name: str
    kind: Literal["query", "group"]
    members: tuple[int, ...]


@dataclass(frozen=True)
class Sides:
    """The tokens of every side of every query.

    Attributes:
        encoded: the S sides.
        output_Q: side number of each query's output. corrected_Q: of its corrected output, or -1.
        targets: the R reported targets: every query, then every group.
    """

    encoded: tuple[Encoded, ...]
    output_Q: tuple[int, ...]
    corrected_Q: tuple[int, ...]
    targets: tuple[Target, ...]

    def matrix(self, measurement: Measurement) -> np.ndarray:
        """M [R, S] such that M @ (losses of the sides) are the measurements of the targets."""
        sides_RS = np.zeros((len(self.targets), len(self.encoded)))
        for r, target in enumerate(self.targets):
            for q in target.members:
                sides_RS[r, self.output_Q[q]] += 1
                if measurement == "contrast" and self.corrected_Q[q] >= 0:
                    sides_RS[r, self.corrected_Q[q]] -= 1
        return sides_RS

    def part(self, queries: Sequence[int]) -> Sides:
        """The sides of some queries, by number, and the targets made of them alone."""
        if len(queries) == len(self.output_Q):
            return self
        number = {q: i for i, q in enumerate(queries)}
        encoded: list[Encoded] = []
        outputs, corrected = [], []
        for q in queries:
            outputs.append(len(encoded))
            encoded.append(self.encoded[self.output_Q[q]])
            corrected.append(len(encoded) if self.corrected_Q[q] >= 0 else -1)
            if self.corrected_Q[q] >= 0:
                encoded.append(self.encoded[self.corrected_Q[q]])
        targets = [
            replace(t, members=tuple(number[q] for q in t.members))
            for t in self.targets
            if set(t.members) <= set(queries)
        ]
        return Sides(tuple(encoded), tuple(outputs), tuple(corrected), tuple(targets))

    def numbers(self, part: Sides) -> list[int]:
        """The numbers, among these targets, of a part's targets."""
        names = [target.name for target in self.targets]
        return [names.index(target.name) for target in part.targets]


def encode_queries(queries: Sequence[Query], encoder: Encoder) -> Sides:
    """Tokens of the sides, and the targets: one for each query and one for each group of several queries.

    Raises:
        DataError: no query, an output that is missing, two queries of one name, a span without tokens.
    """
    if not queries:
        raise DataError("no query", expected="at least one prompt with an output", fix="give --prompt or --queries")
    encoded: list[Encoded] = []
    outputs, corrected_sides = [], []
    names = _names(queries)
    for query, name in zip(queries, names, strict=True):
        if not query.output:
            raise DataError(
                f"query {name} has no output", expected="the words whose origin is asked for", fix="give its output"
            )
        span, corrected_span = query.spans()
        outputs.append(len(encoded))
        encoded.append(encoder.query(query.prompt, query.output, span=span))
        if query.corrected is None:
            corrected_sides.append(-1)
        else:
            corrected_sides.append(len(encoded))
            encoded.append(encoder.query(query.prompt, query.corrected, span=corrected_span))
    return Sides(tuple(encoded), tuple(outputs), tuple(corrected_sides), tuple(targets_of(queries)))


def check_queries(queries: Sequence[Query], encoder: Encoder) -> None:
    """Raises what `encode_queries` would raise of what is known before a model says the outputs that are missing."""
    for query, target in zip(queries, targets_of(queries), strict=False):  # the groups come last
        if query.output:
            encode_queries([replace(query, id=target.name, group=None)], encoder)
        elif query.corrected is not None:
            encoder.query(
                query.prompt, query.corrected, span=None if query.span == "all" else (0, len(query.corrected))
            )
        else:
            encoder.prompt_ids(query.prompt)


def _names(queries: Sequence[Query]) -> list[str]:
    names = [query.id or f"q{number}" for number, query in enumerate(queries, 1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"two queries are called {twice}", expected="ids of their own", fix="rename one of them")
    return names


def targets_of(queries: Sequence[Query]) -> list[Target]:
    """What is answered for: every query, then every group.

    Raises:
        DataError: two queries of one name, or a group named like a query.
    """
    names = _names(queries)
    targets = [Target(name=name, kind="query", members=(q,)) for q, name in enumerate(names)]
    groups: dict[str, list[int]] = {}
    for q, query in enumerate(queries):
        if query.group is not None:
            groups.setdefault(query.group, []).append(q)
    for group, members in groups.items():
        if group in names:
            raise DataError(f"{group} is a query and a group", expected="two names", fix="rename one of them")
        targets.append(Target(name=group, kind="group", members=tuple(members)))
    return targets

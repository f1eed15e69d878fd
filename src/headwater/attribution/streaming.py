"""Every wanted number of every row of an index, chunk by chunk: in this process, or on the workers of a Ray cluster.

    map       a range of chunks -> values of its rows, or its first and last rows
    reduce    in the order of the rows, or merged into the first and last rows of all

The answer does not depend on who computes it: a chunk's numbers are made by the same operations.

Shapes: R targets, F features, N rows, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headwater.attribution.plan import Plan
from headwater.attribution.work import Key, terms
from headwater.errors import HeadwaterError
from headwater.gradients.curvature.options import Step
from headwater.gradients.inner import Product, grouped, is_mean
from headwater.gradients.measurement import Measurement, Target
from headwater.index.manifest import Index, Part
from headwater.index.scoring import Ends, Kind, TopK, dots
from headwater.scores import weighted

if TYPE_CHECKING:
    import torch

    from headwater.attribution.cluster import Cluster

RANGE = 8
"""Chunks that a worker is given at once."""

Asked = tuple[str, Measurement, tuple[Step, ...]]
"""Where the queries' gradients are taken, what of, and what they are multiplied by."""


def asked_of(product: Product) -> Asked:
    return product.query_at, product.measurement, product.steps


Recipe = tuple[Plan, Mapping[str, float]]
"""A method's plan, and the weights of its terms."""


class Stream:
    """Every wanted number of every row, chunk by chunk, all checkpoints side by side."""

    def __init__(
        self, index: Index, wanted: Sequence[Key], gradients: Mapping[Asked, torch.Tensor], targets: Sequence[Target]
    ) -> None:
        self.keys = list(wanted)
        self._index, self._gradients, self._targets = index, gradients, targets
        self._queries = sum(target.kind == "query" for target in targets)
        self._places: dict[str, list[Product]] = {}
        for place, product in wanted:
            self._places.setdefault(place, []).append(cast(Product, product))

    def chunks(
        self, *, sample: int | None = None, rows: np.ndarray | None = None
    ) -> Iterator[tuple[int, int, dict[Key, np.ndarray]]]:
        """(first row, row after the last, key -> values [R, n]) in the order of the rows.

        Args:
            sample: only so many chunks, evenly spaced, as hold about this many rows.
            rows: only the chunks that hold these.
        """
        for part, numbers in self.ranges(sample=sample, rows=rows):
            yield from self.part(part, numbers)

    def ranges(self, *, sample: int | None = None, rows: np.ndarray | None = None) -> list[tuple[int, list[int]]]:
        """Number of each part, and its chunks that are wanted."""
        share, found = 1.0 if sample is None else min(1.0, sample / self._index.rows), []
        for number, part in enumerate(self._index.parts):
            count = -(-part.rows // part.chunk_rows)
            numbers = np.arange(count)
            if share < 1:
                numbers = np.unique(np.linspace(0, count - 1, max(1, round(share * count))).round().astype(int))
            if rows is not None:
                inside = rows[(rows >= part.first) & (rows < part.first + part.rows)] - part.first
                numbers = np.unique(inside // part.chunk_rows)
            found.append((number, numbers.tolist()))
        return found

    def ends(self, limit: int, recipes: Sequence[Recipe], advance: Any) -> list[Ends]:
        """The first and last rows of each recipe; `advance` is called with the number of rows that were scored."""
        found = [TopK(limit, len(self._targets)) for _ in recipes]
        for part, numbers in self.ranges():
            for one, top in zip(self.ends_of(part, numbers, limit, recipes, advance), found, strict=True):
                top.merge(one)
        return [top.result() for top in found]

    def ends_of(
        self, part: int, numbers: Sequence[int], limit: int, recipes: Sequence[Recipe], advance: Any = None
    ) -> list[Ends]:
        """The same of some chunks."""
        found = [TopK(limit, len(self._targets)) for _ in recipes]
        for start, stop, values in self.part(part, numbers):
            for top, (plan, weights) in zip(found, recipes, strict=True):
                score_Rn = weighted(terms(plan, values), weights)
                for first, end in self.scored(start, stop):
                    top.update(first, score_Rn[:, first - start : end - start])
            if advance is not None:
                advance(stop - start)
        return [top.result() for top in found]

    def scored(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The rows from start to stop that have scores, as ranges; at least one, which may be empty."""
        left_out = sorted(row for row in self._index.quarantined if start <= row < stop)
        ranges = zip([start, *(row + 1 for row in left_out)], [*left_out, stop], strict=True)
        return [one for one in ranges if one[0] < one[1]] or [(start, start)]

    def part(self, number: int, numbers: Sequence[int]) -> Iterator[tuple[int, int, dict[Key, np.ndarray]]]:
        """The same for some chunks of one part."""
        import torch

        part: Part = self._index.parts[number]

        streams = {}
        for place, products in self._places.items():
            asked = list(dict.fromkeys(asked_of(product) for product in products))
            count = self._queries if all(is_mean(product.inner) for product in products) else len(self._targets)
            q_RF = torch.cat([self._gradients[one][:count] for one in asked])
            kinds = {cast(Kind, product.inner) for product in products}  # `check_stored` has refused all others
            streams[place] = (asked, count, dots(self._index.store(part, place), q_RF, kinds, chunks=numbers))
        for _ in numbers:
            values: dict[Key, np.ndarray] = {}
            start = stop = 0
            for place, (asked, count, stream) in streams.items():
                start, stop, found = next(stream)
                for product in self._places[place]:
                    at = asked.index(asked_of(product))
                    all_targets = found[cast(Kind, product.inner)]
                    mine = all_targets[at * count : (at + 1) * count]
                    values[place, product] = grouped(mine, product.inner, self._targets)
            yield part.first + start, part.first + stop, values


class SpreadStream(Stream):
    """The same on the workers of a cluster. Ranges of chunks are handed out, two for each worker at most, so that
    nothing piles up; a range whose worker died is given to another."""

    def __init__(
        self,
        index: Index,
        wanted: Sequence[Key],
        gradients: Mapping[Asked, torch.Tensor],
        targets: Sequence[Target],
        cluster: Cluster,
    ) -> None:
        super().__init__(index, wanted, gradients, targets)
        self._cluster = cluster
        self._shared = cluster.ray.put((index, list(wanted), dict(gradients), list(targets)))

    def chunks(
        self, *, sample: int | None = None, rows: np.ndarray | None = None
    ) -> Iterator[tuple[int, int, dict[Key, np.ndarray]]]:
        for found in self._mapped(_values, self.ranges(sample=sample, rows=rows)):
            yield from found

    def ends(self, limit: int, recipes: Sequence[Recipe], advance: Any) -> list[Ends]:
        tops = [TopK(limit, len(self._targets)) for _ in recipes]
        for rows, found in self._mapped(_ends, self.ranges(), limit, list(recipes)):
            for top, one in zip(tops, found, strict=True):
                top.merge(one)
            advance(rows)
        return [top.result() for top in tops]

    def _mapped(self, function: Any, ranges: Sequence[tuple[int, list[int]]], *given: Any) -> Iterator[Any]:
        """What a function gives for each range of chunks, in their order."""
        task = self._cluster.ray.remote(function).options(num_cpus=1, max_retries=10)
        todo = [(part, numbers[i : i + RANGE]) for part, numbers in ranges for i in range(0, len(numbers), RANGE)]
        running: list[Any] = []
        for part, numbers in todo:
            running.append(task.remote(self._shared, part, numbers, *given))
            if len(running) >= 2 * self._cluster.count:
                yield self._cluster.sound(self._cluster.ray.get(running.pop(0)))
        for one in running:
            yield self._cluster.sound(self._cluster.ray.get(one))


def _values(shared: tuple[Any, ...], part: int, numbers: list[int]) -> Any:
    try:
        return list(Stream(*shared).part(part, numbers))
    except HeadwaterError as error:
        return error


def _ends(shared: tuple[Any, ...], part: int, numbers: list[int], limit: int, recipes: list[Recipe]) -> Any:
    rows: list[int] = []
    try:
        found = Stream(*shared).ends_of(part, numbers, limit, recipes, rows.append)
    except HeadwaterError as error:
        return error
    return sum(rows), found

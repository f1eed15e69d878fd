"""Streams a store against query gradients: the inner products of the one equation, for one checkpoint.

    dot            sum_l |g_il| < q_rl, u_il >                   u_il = g_il / |g_il|, as stored
    cosine         sum_l |g_il| < q_rl, u_il > / (|q_r| |g_i|)
    layer_cosine   1/L sum_l < q_rl, u_il > / |q_rl|

A gradient of zero length has inner product 0 with everything; L counts all layers. All three follow from the partial
products < q_rl, u_il >. Where the layer cosine alone is asked for, of features without a scale, it is one product of
whole rows: 1/L < (q_rl / |q_rl|)_l, u_i >.

What limits a pass is reading the features once. Rows are taken in tiles that stay in a cache: widened to float32
there, multiplied (sums in float32), forgotten. Threads are torch's own, within each operation; threads of our own with
tiles of their own were measured slower, with a free machine and with a busy one.

Shapes: R targets, L layers, S features of a layer, F of all layers, n rows, T tiles, P partial products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from headwater.errors import NumericalError, RunError, UsageError
from headwater.index.store import CheckpointStore, Chunk, Shape

if TYPE_CHECKING:
    import torch

Kind = Literal["dot", "cosine", "layer_cosine"]
TILE, TILE_MOST, PARTIALS = 2**20, 2**21, 2**20
"""float32 numbers: of a tile (4 MiB, each product has its price), of a tile at most, of the partials kept."""
WIDE = 32
"""From this many targets on, rows times targets is faster than targets times rows; of whole rows it always is."""


def dots(
    store: CheckpointStore,
    q_RF: torch.Tensor,
    kinds: set[Kind],
    chunks: Iterable[int] | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[int, int, dict[Kind, np.ndarray]]]:
    """Streams the chunks of a store, reading the next one ahead.

    Scores depend on how the rows are cut as sums in float32 do: by about 1e-7 of the size of what is summed.

    Args:
        q_RF: the targets' projected gradients, in the order of the store's columns.
        kinds: which inner products.
        chunks: which chunks, in which order; all by default.

    Yields:
        First row, the first row behind, and for each kind the products [R, rows] float32.

    Raises:
        NumericalError: a query gradient is not finite.
        UsageError: an unknown kind, or none.
        RunError: the gradients have another number of columns, or a file of the store is missing or damaged.
    """
    if not kinds or not kinds <= set(get_args(Kind)):
        raise UsageError(f"kinds {sorted(kinds)}", expected=f"some of {', '.join(get_args(Kind))}", fix="ask for these")
    if q_RF.ndim != 2 or q_RF.shape[1] != store.shape.features:
        raise RunError(
            f"query gradients {list(q_RF.shape)}",
            expected=f"[targets, {store.shape.features}], as {store.folder} has it",
            fix="project the queries as the index was projected",
        )
    if not q_RF.isfinite().all():
        raise NumericalError("a query gradient is not finite", expected="numbers", fix="check the query and the model")
    wanted = range(store.shape.chunks) if chunks is None else list(chunks)
    return _stream(store, _Kernel(store.shape, q_RF.detach(), kinds, device), wanted)


def _stream(
    store: CheckpointStore, kernel: _Kernel, chunks: Iterable[int]
) -> Iterator[tuple[int, int, dict[Kind, np.ndarray]]]:
    numbers = iter(chunks)
    read = partial(store.read, loss=False)
    # local features are mapped, and the system is told that they will be wanted: it reads them while others are scored
    with nullcontext(_Now()) if store.folder.is_local else ThreadPoolExecutor(1, "index-reader") as reader:
        ahead = [reader.submit(read, number) for number in [next(numbers, None)] if number is not None]
        while ahead:
            chunk = ahead.pop().result()
            ahead = [reader.submit(read, number) for number in [next(numbers, None)] if number is not None]
            yield chunk.start, chunk.stop, kernel(chunk)


class _Now:
    """Calls at once what an executor would call in a thread."""

    def submit(self, call: Callable[[int], Chunk], number: int) -> Future[Chunk]:
        made: Future[Chunk] = Future()
        made.set_result(call(number))
        return made


@dataclass(frozen=True)
class _Group:
    """Layers of one size at even distances: `count` of them, the first at column `offset`, the next `step` on."""

    numbers: tuple[int, ...]
    offset: int
    step: int
    size: int


def _groups(layers: tuple[tuple[str, int], ...], offsets: tuple[int, ...]) -> list[_Group]:
    """Layers to multiply in one batch: runs of one size, or every p-th layer where the sizes repeat after p."""
    sizes = [size for _, size in layers]
    starts = [number for number in range(len(sizes)) if number == 0 or sizes[number] != sizes[number - 1]]
    runs = [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(sizes)], strict=True)]
    period = next(p for p in range(1, len(sizes) + 1) if sizes[p:] == sizes[:-p])
    numbers = min(runs, [range(first, len(sizes), period) for first in range(period)], key=len)
    return [
        _Group(
            tuple(each), offsets[each[0]], offsets[each[1]] - offsets[each[0]] if len(each) > 1 else 0, sizes[each[0]]
        )
        for each in numbers
    ]


@dataclass(frozen=True)
class _Views:
    """The buffers seen as `tiles` tiles of `rows` rows: a tile, its groups' columns, where the products of each tile
    and group go, and all products. Making them takes as long as using them."""

    tile_nF: torch.Tensor
    u_LnS: list[torch.Tensor]
    results: list[tuple[torch.Tensor, ...]]
    p_TLRn: torch.Tensor


class _Kernel:
    """Query gradients made ready for the rows of a store.

    Each target is divided by its length, which comes back at the end.
    """

    def __init__(self, shape: Shape, q_RF: torch.Tensor, kinds: set[Kind], device: str | torch.device) -> None:
        import torch

        self._shape, self._kinds, self._device = shape, kinds, torch.device(device)
        self._whole = kinds == {"layer_cosine"} and shape.dtype != "int8"
        layers = (("all", shape.features),) if self._whole else shape.layers
        groups = _groups(layers, (0,) if self._whole else shape.offsets)
        self._order = [number for group in groups for number in group.numbers]

        q_RF = q_RF.double()
        columns = zip(shape.layers, shape.offsets, strict=True)
        length_RL = torch.stack([q_RF[:, start : start + size].norm(dim=1) for (_, size), start in columns], 1)
        length_R1 = length_RL.norm(dim=1, keepdim=True)
        if self._whole:
            sizes = torch.tensor([size for _, size in shape.layers], device=q_RF.device)
            q_RF = q_RF * (_inverse(length_RL) / len(shape.layers)).repeat_interleave(sizes, 1)
        else:
            q_RF = q_RF * _inverse(length_R1)
        self._targets = len(q_RF)
        self._length_R = length_R1[:, 0].cpu().numpy()
        share_RL = (length_R1 * _inverse(length_RL) / len(shape.layers))[:, self._order if not self._whole else [0]]
        self._share_LR1 = share_RL.T[:, :, None].float().to(self._device)

        self._wide = self._whole or self._targets >= WIDE
        self._batches = []  # group, q [L, R, S]
        for group in groups:
            sides = (len(group.numbers), self._targets, group.size)
            q_LRS = q_RF.contiguous().as_strided(sides, (group.step, shape.features, 1), group.offset)
            self._batches.append((group, q_LRS.float().contiguous().to(self._device)))

        scale = 1 if self._device.type == "cpu" else 64
        rows = min(max(scale * TILE // shape.features, 2 * self._targets), scale * TILE_MOST // shape.features)
        per_row = len(self._order) * self._targets
        self._rows = min(max(4, min(rows, 4 * scale * PARTIALS // per_row)), shape.chunk_rows)  # of a tile
        self._tiles = max(1, min(-(-shape.chunk_rows // self._rows), scale * PARTIALS // (per_row * self._rows)))
        self._tile = torch.empty(self._rows * shape.features, device=self._device)
        self._products = torch.empty(self._tiles * self._rows * per_row, device=self._device)
        self._widens = shape.dtype != "float32" or self._device.type != "cpu"
        self._views: dict[tuple[int, int], _Views] = {}

    def __call__(self, chunk: Chunk) -> dict[Kind, np.ndarray]:
        """Scores the rows of a chunk: blocks of whole tiles, and one shorter tile for what is left."""
        import torch

        total = chunk.stop - chunk.start
        out: dict[Kind, np.ndarray] = {kind: np.empty((self._targets, total), np.float32) for kind in self._kinds}
        features, start = torch.from_numpy(chunk.features), 0
        while start < total:
            rows = min(self._rows, total - start)
            tiles = min(self._tiles, (total - start) // rows)
            p_TLRn = self._partials(features, start, rows, tiles)
            self._sum(chunk, start, start + tiles * rows, p_TLRn, out)
            start += tiles * rows
        return out

    def _partials(self, features: torch.Tensor, start: int, rows: int, tiles: int) -> torch.Tensor:
        """< q_rl, u_il > [T, L, R, n] for tiles of rows, before any length or scale; layers in the groups' order."""
        import torch

        views = self._views.get((rows, tiles))
        if views is None:  # few: whole blocks, and what is left of whole chunks and of the last
            views = self._views[rows, tiles] = self._viewed(rows, tiles)
        u_LnS = views.u_LnS
        for number, results in enumerate(views.results):
            first = start + number * rows
            if self._widens:  # crosses over in the stored type, widens there
                views.tile_nF.copy_(features[first : first + rows].to(self._device))
            else:
                u_LnS = self._layered(features[first : first + rows])
            for (_, q_LRS), u, result in zip(self._batches, u_LnS, results, strict=True):
                if self._wide:
                    torch.bmm(u, q_LRS.mT, out=result)
                else:
                    torch.bmm(q_LRS, u.mT, out=result)
        return views.p_TLRn

    def _viewed(self, rows: int, tiles: int) -> _Views:
        """The buffers as tiles of so many rows."""
        layers = len(self._order)
        tile_nF = self._tile[: rows * self._shape.features].view(rows, -1)
        sides = (rows, self._targets) if self._wide else (self._targets, rows)
        p = self._products[: tiles * layers * rows * self._targets].view(tiles, layers, *sides)
        counts = [len(group.numbers) for group, _ in self._batches]
        results = [one.split(counts) for one in p]
        return _Views(tile_nF, self._layered(tile_nF), results, p.mT if self._wide else p)

    def _layered(self, u_nF: torch.Tensor) -> list[torch.Tensor]:
        """Each group's columns [L, n, S], without a copy."""
        rows, columns = u_nF.shape
        first = u_nF.storage_offset()
        return [
            u_nF.as_strided((len(g.numbers), rows, g.size), (g.step, columns, 1), first + g.offset)
            for g, _ in self._batches
        ]

    def _sum(self, chunk: Chunk, start: int, stop: int, p_TLRn: torch.Tensor, out: dict[Kind, np.ndarray]) -> None:
        """Sums the partials of rows start to stop over the layers, weighted as each kind wants it."""
        import torch

        tiles, _, targets, rows = p_TLRn.shape

        def over_layers(weight_nL: np.ndarray | None, share_LR1: torch.Tensor | None = None) -> np.ndarray:
            p = p_TLRn
            if weight_nL is not None:
                w = torch.from_numpy(weight_nL[:, self._order]).to(self._device)
                p = p * w.view(tiles, rows, 1, -1).permute(0, 3, 2, 1)
            if share_LR1 is not None:
                p = p * share_LR1
            sums: np.ndarray = p.sum(1).transpose(0, 1).reshape(targets, tiles * rows).cpu().numpy()
            return sums

        scale_nL = None if chunk.scale is None else chunk.scale[start:stop]
        if self._whole:
            out["layer_cosine"][:, start:stop] = over_layers(None)
        elif "layer_cosine" in out:
            out["layer_cosine"][:, start:stop] = over_layers(scale_nL, self._share_LR1)
        if "dot" in out or "cosine" in out:
            norm_nL = chunk.norm[start:stop]
            sums = over_layers(norm_nL if scale_nL is None else norm_nL * scale_nL).astype(np.float64)
            if "dot" in out:
                out["dot"][:, start:stop] = sums * self._length_R[:, None]
            if "cosine" in out:
                length_n = np.linalg.norm(norm_nL.astype(np.float64), axis=1)
                out["cosine"][:, start:stop] = np.divide(sums, length_n, out=np.zeros_like(sums), where=length_n > 0)


def _inverse(length: torch.Tensor) -> torch.Tensor:
    """1 / length, and 0 for a length of 0."""
    return (1 / length).where(length > 0, 0)


@dataclass(frozen=True)
class Ends:
    """The rows with the highest and with the lowest scores of each target [R, K], the extreme one first; K is k, or
    the number of rows where there are fewer."""

    highest_rows: np.ndarray
    highest_scores: np.ndarray
    lowest_rows: np.ndarray
    lowest_scores: np.ndarray


class TopK:
    """Keeps the k highest and the k lowest scores of each target. Of equal scores the lower row number comes first;
    the result does not depend on how the rows are cut, nor on their order. Memory: 4 k R numbers.

    Args:
        k: how many at each end, 1 or more.
        targets: R.
    """

    def __init__(self, k: int, targets: int) -> None:
        if k < 1:
            raise UsageError(f"k = {k}", expected="1 or more", fix="ask for one row at least")
        self._highest, self._lowest = _Highest(k, targets), _Highest(k, targets)

    def update(self, start: int, scores_RN: np.ndarray) -> None:
        """Takes the scores of rows start, start + 1 and so on; each row once.

        Raises:
            NumericalError: a score is not finite.
        """
        if not np.isfinite(scores_RN).all():
            target, row = np.argwhere(~np.isfinite(scores_RN))[0]
            raise NumericalError(
                f"the score of row {start + row} for target {target} is {scores_RN[target, row]}",
                expected="a finite number",
                fix="check the query and the learning rates, or build the index again",
            )
        self._highest.update(start, scores_RN)
        self._lowest.update(start, -scores_RN)

    def merge(self, other: Ends) -> None:
        """Takes what another one kept of other rows."""
        self._highest.merge(other.highest_rows, other.highest_scores)
        self._lowest.merge(other.lowest_rows, -other.lowest_scores)

    def result(self) -> Ends:
        """The rows and scores (float64) at both ends, so far."""
        high, low = self._highest, self._lowest
        return Ends(np.stack(high.rows), np.stack(high.scores), np.stack(low.rows), 0.0 - np.stack(low.scores))


class _Highest:
    """The k highest scores of each target and their rows, sorted."""

    def __init__(self, k: int, targets: int) -> None:
        self._k = k
        self.rows = [np.empty(0, np.int64) for _ in range(targets)]
        self.scores = [np.empty(0, np.float64) for _ in range(targets)]

    def update(self, start: int, scores_RN: np.ndarray) -> None:
        least_R = np.array([kept[-1] if len(kept) == self._k else -np.inf for kept in self.scores])
        may_RN = scores_RN >= least_R[:, None]
        for target in np.flatnonzero(may_RN.any(1)).tolist():
            new = np.flatnonzero(may_RN[target])
            self._add(target, start + new, scores_RN[target, new])

    def merge(self, rows_RK: np.ndarray, scores_RK: np.ndarray) -> None:
        for target, (rows, scores) in enumerate(zip(rows_RK, scores_RK, strict=True)):
            self._add(target, rows, scores)

    def _add(self, target: int, new: np.ndarray, scores_n: np.ndarray) -> None:
        rows = np.concatenate([self.rows[target], new])
        scores = np.concatenate([self.scores[target], scores_n])
        order = np.lexsort((rows, -scores))[: self._k]
        self.rows[target], self.scores[target] = rows[order], scores[order]

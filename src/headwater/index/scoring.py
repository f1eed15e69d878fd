"""Streams a store against query gradients: the inner products of the one equation, for one checkpoint.

    dot            sum_l |g_il| < q_rl, u_il >                   u_il = g_il / |g_il|, as stored
    cosine         sum_l |g_il| < q_rl, u_il > / (|q_r| |g_i|)
    layer_cosine   1/L sum_l < q_rl, u_il > / |q_rl|

A gradient of zero length has inner product 0 with everything; L counts all layers. All three follow from the partial
products < q_rl, u_il >. Where the layer cosine alone is asked for, of features without a scale, it is one product of
whole rows: 1/L < (q_rl / |q_rl|)_l, u_i >.

What limits a pass is reading the features once. Rows are taken in tiles that stay in the second-level cache: widened
to float32 there, multiplied (sums in float32), forgotten. With several threads each takes its own rows, in its own
tiles.

Shapes: R targets, L layers, S features of a layer, F of all layers, n rows, T tiles, P partial products.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Barrier, local
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from headwater.errors import NumericalError, RunError, UsageError
from headwater.index.store import CheckpointStore, Chunk, Shape

if TYPE_CHECKING:
    import torch

Kind = Literal["dot", "cosine", "layer_cosine"]
TILE, TILE_MOST, PARTIALS = 2**18, 2**21, 2**20
"""float32 numbers: of a tile (1 MiB, measured best for few targets), of a tile at most, of the partials kept."""
WIDE = 32
"""From this many targets on, rows times targets is faster than targets times rows, and tiles have more rows."""
THREADS = 8
"""More do not help: reading memory is the limit."""


def dots(
    store: CheckpointStore,
    q_RF: torch.Tensor,
    kinds: set[Kind],
    chunks: Iterable[int] | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[int, int, dict[Kind, np.ndarray]]]:
    """Streams the chunks of a store, reading the next one ahead.

    Uses as many threads as torch does (`torch.set_num_threads`), each with its own rows. The sums of the result depend
    on the chunks' and tiles' sizes as float32 sums do: by about 1e-7 of the largest.

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
    with ExitStack() as stack:
        reader = stack.enter_context(ThreadPoolExecutor(1, "index-reader"))
        workers = stack.enter_context(_single_threaded(kernel.threads)) if kernel.threads > 1 else None
        numbers = iter(chunks)
        ahead = [reader.submit(store.read, number) for number in [next(numbers, None)] if number is not None]
        while ahead:
            chunk = ahead.pop().result()
            ahead = [reader.submit(store.read, number) for number in [next(numbers, None)] if number is not None]
            yield chunk.start, chunk.stop, kernel(chunk, workers)


def _single_threaded(threads: int) -> Executor:
    """Threads in which torch's operations do not start threads of their own; elsewhere torch is as before."""
    import torch

    before, met = torch.get_num_threads(), Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, "index-scorer", initializer=torch.set_num_threads, initargs=(1,))
    for _ in range(threads):
        pool.submit(met.wait)
    met.wait()
    torch.set_num_threads(before)  # the number is one per thread, except for threads that start later
    return pool


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


class _Kernel:
    """Query gradients made ready for the rows of a store.

    Each target is divided by its length, which comes back at the end. Each thread keeps its buffers.
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

        self._wide = self._targets >= WIDE
        self._batches = []  # group, q [L, R, S]
        for group in groups:
            sides = (len(group.numbers), self._targets, group.size)
            q_LRS = q_RF.contiguous().as_strided(sides, (group.step, shape.features, 1), group.offset)
            self._batches.append((group, q_LRS.float().contiguous().to(self._device)))

        cpu = self._device.type == "cpu"
        self.threads = min(torch.get_num_threads(), THREADS) if cpu else 1
        scale = 1 if cpu else 64
        rows = min(max(scale * TILE // shape.features, 2 * self._targets), scale * TILE_MOST // shape.features)
        per_row = len(self._order) * self._targets
        self._tile = min(max(4, min(rows, 4 * scale * PARTIALS // per_row)), shape.chunk_rows)
        blocks = -(-shape.chunk_rows // (self.threads * self._tile))
        self._tiles = max(1, min(blocks, scale * PARTIALS // (per_row * self._tile)))
        self._buffers = local()

    def __call__(self, chunk: Chunk, workers: Executor | None) -> dict[Kind, np.ndarray]:
        rows = chunk.stop - chunk.start
        out: dict[Kind, np.ndarray] = {kind: np.empty((self._targets, rows), np.float32) for kind in self._kinds}
        share = -(-rows // (self.threads * self._tile)) * self._tile
        spans = [(start, min(start + share, rows)) for start in range(0, rows, share)]
        if workers is None:
            for span in spans:
                self._span(chunk, *span, out)
        else:
            for done in [workers.submit(self._span, chunk, *span, out) for span in spans]:
                done.result()
        return out

    def _span(self, chunk: Chunk, start: int, stop: int, out: dict[Kind, np.ndarray]) -> None:
        """Scores rows start to stop of a chunk: blocks of whole tiles, and one shorter tile for what is left."""
        import torch

        if not hasattr(self._buffers, "tile"):  # of this thread
            partials = self._tiles * self._tile * len(self._order) * self._targets
            self._buffers.tile = torch.empty(self._tile * self._shape.features, device=self._device)
            self._buffers.partials = torch.empty(partials, device=self._device)
        features = torch.from_numpy(chunk.features)
        while start < stop:
            rows = min(self._tile, stop - start)
            tiles = min(self._tiles, (stop - start) // rows)
            p_TLRn = self._partials(features, start, rows, tiles, self._buffers.tile, self._buffers.partials)
            self._sum(chunk, start, start + tiles * rows, p_TLRn, out)
            start += tiles * rows

    def _partials(
        self, features: torch.Tensor, start: int, rows: int, tiles: int, tile: torch.Tensor, partials: torch.Tensor
    ) -> torch.Tensor:
        """< q_rl, u_il > [T, L, R, n] for tiles of rows, before any length or scale; layers in the groups' order."""
        import torch

        shape, layers = self._shape, len(self._order)
        tile_nF = tile[: rows * shape.features].view(rows, shape.features)
        sides = (rows, self._targets) if self._wide else (self._targets, rows)
        p = partials[: tiles * layers * rows * self._targets].view(tiles, layers, *sides)
        for number in range(tiles):
            first = start + number * rows
            u_nF = features[first : first + rows]
            if u_nF.dtype == torch.float32 and self._device.type == "cpu":
                tile_nF = u_nF
            else:
                tile_nF.copy_(u_nF.to(self._device))  # crosses over in the stored type, widens there
            begin = 0
            for group, q_LRS in self._batches:
                count = len(group.numbers)
                strides = (group.step, shape.features, 1)
                u_LnS = tile_nF.as_strided((count, rows, group.size), strides, tile_nF.storage_offset() + group.offset)
                result = p[number, begin : begin + count]
                if self._wide:
                    torch.bmm(u_LnS, q_LRS.mT, out=result)
                else:
                    torch.bmm(q_LRS, u_LnS.mT, out=result)
                begin += count
        return p.mT if self._wide else p

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
        for target in np.flatnonzero(may_RN.any(1)):
            new = np.flatnonzero(may_RN[target])
            rows = np.concatenate([self.rows[target], start + new])
            scores = np.concatenate([self.scores[target], scores_RN[target, new]])
            order = np.lexsort((rows, -scores))[: self._k]
            self.rows[target], self.scores[target] = rows[order], scores[order]

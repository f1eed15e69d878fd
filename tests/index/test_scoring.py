"""Scoring against naive loops in float64, and the ranking against a full sort."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from headwater.errors import NumericalError, RunError, UsageError
from headwater.index import scoring
from headwater.index.scoring import Kind, TopK, dots
from headwater.index.store import CheckpointStore, Shape

KINDS: set[Kind] = set(get_args(Kind))
TYPES = ("float32", "float16", "int8")
LAYERS = {
    "equal": [16] * 5,
    "runs": [8, 8, 8, 30, 30, 1],
    "repeating": [8, 8, 4, 30] * 3 + [8],
    "irregular": [5, 1, 17, 5, 3],
    "one": [40],
}
ROWS = 23


def made(folder: Any, dtype: Any = "float16", layers: str = "runs", chunk_rows: int = 9) -> CheckpointStore:
    """A store with rows of very different lengths, of zero length in one layer, and in all."""
    shape = Shape(ROWS, chunk_rows, tuple((f"layer{n}", size) for n, size in enumerate(LAYERS[layers])), dtype)
    random = torch.Generator().manual_seed(0)
    g = torch.randn(ROWS, shape.features, generator=random) * 10 ** torch.linspace(-5, 5, ROWS)[:, None]
    g[7, : shape.layers[0][1]] = 0
    g[8] = 0
    store = CheckpointStore.create(folder, "last", shape)
    for chunk in range(shape.chunks):
        start, stop = shape.chunk_range(chunk)
        store.write(chunk, g[start:stop], torch.zeros(stop - start))
    return store


def queries(store: CheckpointStore, targets: int = 3) -> torch.Tensor:
    """Gradients of very different lengths; the first is zero in the last layer, the second everywhere."""
    q = torch.randn(targets, store.shape.features, generator=torch.Generator().manual_seed(1))
    q *= 10 ** torch.linspace(-20, 15, targets)[:, None]
    if len(store.shape.layers) > 1:
        q[0, store.shape.offsets[-1] :] = 0
    q[1:2] = 0
    return q


def naive(store: CheckpointStore, q_RF: torch.Tensor) -> dict[str, np.ndarray]:
    """The three products in float64, one row, target and layer at a time; and |q_r| |g_i|, their size."""
    shape = store.shape
    out = {kind: np.zeros((len(q_RF), shape.rows)) for kind in (*KINDS, "size")}
    bounds = list(zip(shape.offsets, [*shape.offsets[1:], shape.features], strict=True))
    for chunk in map(store.read, range(shape.chunks)):
        for i in range(chunk.start, chunk.stop):
            g = []
            for layer, (start, stop) in enumerate(bounds):
                u = chunk.features[i - chunk.start, start:stop].astype(np.float64)
                scale = 1.0 if chunk.scale is None else float(chunk.scale[i - chunk.start, layer])
                g.append((float(chunk.norm[i - chunk.start, layer]), scale * u))
            length = np.sqrt(sum(norm**2 for norm, _ in g))
            for r, q in enumerate(q_RF.double().numpy()):
                parts = [q[start:stop] for start, stop in bounds]
                dot = sum(norm * float(part @ u) for part, (norm, u) in zip(parts, g, strict=True))
                out["dot"][r, i], out["size"][r, i] = dot, np.linalg.norm(q) * length
                if length and q.any():
                    out["cosine"][r, i] = dot / np.linalg.norm(q) / length
                cosines = [
                    float(part @ u) / np.linalg.norm(part) if part.any() and norm else 0.0
                    for part, (norm, u) in zip(parts, g, strict=True)
                ]
                out["layer_cosine"][r, i] = sum(cosines) / len(cosines)
    return out


def scored(store: CheckpointStore, q: torch.Tensor, kinds: set[Kind] = KINDS, **options: Any) -> dict[str, np.ndarray]:
    pieces = list(dots(store, q, kinds, **options))
    assert all(set(scores) == kinds for _, _, scores in pieces)
    return {kind: np.concatenate([scores[kind] for _, _, scores in pieces], 1) for kind in kinds}


def agree(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Up to rounding in float32: of cosines, and of dot products relative to the product of the lengths."""
    for kind, values in found.items():
        assert values.dtype == np.float32
        size = expected["size"] if kind == "dot" else 1
        assert (np.abs(values - expected[kind]) <= 1e-6 * size).all(), kind
        assert (np.abs(expected[kind]) > 0.05 * size).any()  # there is something to be wrong about


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in a block, several blocks in a chunk, and rows left over."""
    monkeypatch.setattr(scoring, "TILE", 1)
    monkeypatch.setattr(scoring, "TILE_MOST", 1)
    monkeypatch.setattr(scoring, "PARTIALS", 1)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("targets", [1, 3, 40])
def test_all_kinds_are_the_naive_loops(tmp_path: Path, dtype: Any, layers: str, targets: int) -> None:
    store = made(tmp_path, dtype, layers)
    q = queries(store, targets)
    expected = naive(store, q)
    agree(scored(store, q), expected)
    for kind in KINDS:  # a kind alone may take another way
        agree(scored(store, q, {kind}), expected)


@pytest.mark.parametrize("targets", [3, 40])
@pytest.mark.parametrize("chunk_rows", [1, 4, 9, 100])
@pytest.mark.usefixtures("small_tiles")
def test_cutting_into_chunks_and_tiles_changes_nothing(tmp_path: Path, chunk_rows: int, targets: int) -> None:
    store = made(tmp_path, "int8", "repeating", chunk_rows)
    q = queries(store, targets)
    agree(scored(store, q), naive(store, q))


@pytest.mark.parametrize("targets", [3, 40])
@pytest.mark.usefixtures("small_tiles")
def test_tiles_and_blocks_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: int) -> None:
    store = made(tmp_path, "float16", "repeating", 100)
    monkeypatch.setattr(scoring, "PARTIALS", 2 * 4 * len(store.shape.layers) * targets)  # two tiles of four rows
    q = queries(store, targets)
    agree(scored(store, q), naive(store, q))
    agree(scored(store, q, {"layer_cosine"}), naive(store, q))


def test_chunks_come_in_the_order_asked_for(tmp_path: Path) -> None:
    store = made(tmp_path)
    q = queries(store)
    every = scored(store, q)
    pieces = list(dots(store, q, KINDS, chunks=[2, 0]))
    assert [(start, stop) for start, stop, _ in pieces] == [(18, 23), (0, 9)]
    for start, stop, scores in pieces:
        np.testing.assert_array_equal(scores["dot"], every["dot"][:, start:stop])
    assert list(dots(store, q, KINDS, chunks=[])) == []


def test_scores_are_those_of_the_gradients_themselves(tmp_path: Path) -> None:
    """A row asked for itself: cosine 1, and the dot product is its squared length."""
    store = made(tmp_path, "float16", "runs")
    g = torch.randn(2, store.shape.features)
    store.write(2, torch.cat([g, g, -g[:1]]), torch.zeros(5))
    ((_, _, scores),) = dots(store, g[:1], KINDS, chunks=[2])
    np.testing.assert_allclose(scores["dot"][0, [0, 2, 4]], float(g[0] @ g[0]) * np.array([1, 1, -1]), rtol=1e-3)
    for kind in ("cosine", "layer_cosine"):
        np.testing.assert_allclose(scores[kind][0, [0, 2, 4]], [1, 1, -1], rtol=1e-3)


def test_remote_scores_are_local_scores(tmp_path: Path) -> None:
    local, remote = made(tmp_path), made("memory://scoring")
    q = queries(local)
    for kind, values in scored(remote, q).items():
        np.testing.assert_array_equal(values, scored(local, q)[kind])


def test_memory_holds_few_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk is scored while the next is read, and no more."""
    store = made(tmp_path, chunk_rows=2)
    reading: list[int] = []
    read = CheckpointStore.read

    def counted(self: CheckpointStore, chunk: int, **how: Any) -> Any:
        reading.append(chunk)
        return read(self, chunk, **how)

    monkeypatch.setattr(CheckpointStore, "read", counted)
    for number, (start, _, _) in enumerate(dots(store, queries(store), {"dot"})):
        assert start == 2 * number and len(reading) <= number + 2
    assert reading == list(range(12))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([4, 4, 4], [((0, 1, 2), 0, 4, 4)]),
        ([4, 4, 9], [((0, 1), 0, 4, 4), ((2,), 8, 0, 9)]),
        ([4, 9, 4, 9, 4], [((0, 2, 4), 0, 13, 4), ((1, 3), 4, 13, 9)]),
        ([1], [((0,), 0, 0, 1)]),
    ],
)
def test_layers_are_grouped_into_batches(sizes: list[int], expected: list[Any]) -> None:
    shape = Shape(1, 1, tuple((str(n), size) for n, size in enumerate(sizes)), "float32")
    groups = scoring._groups(shape.layers, shape.offsets)
    assert [(group.numbers, group.offset, group.step, group.size) for group in groups] == expected


# What is refused


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    store = made(tmp_path)
    with pytest.raises(RunError, match=r"query gradients \[3, 5\]; expected \[targets, 85\]|expected \[targets, 85\]"):
        dots(store, torch.zeros(3, 5), KINDS)
    with pytest.raises(UsageError, match="kinds"):
        dots(store, queries(store), set())
    with pytest.raises(UsageError, match="euclid"):
        dots(store, queries(store), {"euclid"})  # type: ignore[arg-type]
    q = queries(store)
    q[2, 3] = float("nan")
    with pytest.raises(NumericalError, match="query gradient"):
        dots(store, q, KINDS)


def test_a_missing_chunk_is_named(tmp_path: Path) -> None:
    store = made(tmp_path)
    (tmp_path / "last.zarr" / "features" / "c" / "1" / "0").unlink()
    with pytest.raises(RunError, match=r"features/c/1/0 is missing \(rows 9 to 17\)"):
        scored(store, queries(store))


# Ranking


def sorted_ends(scores_RN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both ends by a full sort; of equal scores the lower row first."""
    rows = np.arange(scores_RN.shape[1])
    high = np.stack([np.lexsort((rows, -scores))[:k] for scores in scores_RN])
    low = np.stack([np.lexsort((rows, scores))[:k] for scores in scores_RN])
    return high, low


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("k", [1, 10, 64])
def test_top_is_a_full_sort_with_many_ties(step: int, backwards: bool, k: int) -> None:
    scores = np.random.default_rng(0).integers(-4, 5, (3, 300)).astype(np.float32)
    top = TopK(k, 3)
    starts = range(0, 300, step)
    for start in reversed(starts) if backwards else starts:
        top.update(start, scores[:, start : start + step])
    ends, (high, low) = top.result(), sorted_ends(scores, k)
    np.testing.assert_array_equal(ends.highest_rows, high)
    np.testing.assert_array_equal(ends.lowest_rows, low)
    np.testing.assert_array_equal(ends.highest_scores, np.take_along_axis(scores, high, 1))
    np.testing.assert_array_equal(ends.lowest_scores, np.take_along_axis(scores, low, 1))


def test_top_of_few_rows_is_all_rows() -> None:
    top = TopK(10, 2)
    assert top.result().highest_rows.shape == (2, 0)
    top.update(5, np.array([[1.0, 3, 2], [0, 0, 0]]))
    ends = top.result()
    assert ends.highest_rows.tolist() == [[6, 7, 5], [5, 6, 7]]
    assert ends.lowest_rows.tolist() == [[5, 7, 6], [5, 6, 7]]
    assert str(ends.lowest_scores[1, 0]) == "0.0"  # not -0.0


def test_top_keeps_k_numbers() -> None:
    top = TopK(4, 2)
    for start in range(0, 1000, 50):
        top.update(start, np.tile(np.arange(start, start + 50.0), (2, 1)))
    assert all(len(kept) == 4 for kept in (*top._highest.rows, *top._lowest.scores))
    assert top.result().highest_rows[0].tolist() == [999, 998, 997, 996]
    # what is kept owns its memory: a slice would hold on to every score ever seen
    assert all(kept.base is None for kept in (*top._highest.rows, *top._highest.scores))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_top_refuses_what_is_not_a_number(bad: float) -> None:
    with pytest.raises(NumericalError, match="row 12 for target 1"):
        TopK(3, 2).update(10, np.array([[0, 0, 0], [0, 0, bad]]))
    with pytest.raises(UsageError):
        TopK(0, 1)


# Sizes of the buffers


def kernel(
    features: int, layers: int, targets: int, kinds: set[Kind], dtype: Any = "float16", rows: int = 10**5
) -> Any:
    shape = Shape(10 * rows, rows, tuple((str(n), features // layers) for n in range(layers)), dtype)
    return scoring._Kernel(shape, torch.ones(targets, features), kinds, "cpu")


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ((1024, 4, 4, KINDS), 2**20 // 1024),
        ((1024, 4, 600, KINDS), 2 * 600),  # many targets: more rows than targets
        ((2**15, 4, 100, KINDS), 2**21 // 2**15),  # but no more than a tile may hold
        ((2**22, 4, 3, KINDS), 4),  # four rows at least
        ((1024, 4, 4, KINDS, "float16", 7), 7),  # and no more than a chunk has
        ((64, 64, 2000, KINDS), 4 * 2**20 // (64 * 2000)),  # nor more products than may be kept
    ],
)
def test_a_tile_stays_in_the_cache(given: Any, rows: int) -> None:
    found = kernel(*given)
    features, layers, targets = given[:3]
    per_row = targets * (1 if found._whole else layers)
    assert found._rows == rows
    assert found._tiles == max(1, min(-(-found._shape.chunk_rows // rows), 2**20 // (per_row * rows)))
    assert (found._tile.numel(), found._products.numel()) == (rows * features, found._tiles * rows * per_row)


def test_float32_on_the_cpu_is_multiplied_where_it_lies() -> None:
    assert not kernel(64, 2, 3, KINDS, "float32")._widens
    assert kernel(64, 2, 3, KINDS, "float16")._widens and kernel(64, 2, 3, KINDS, "int8")._widens
    assert [kernel(64, 2, targets, KINDS)._wide for targets in (31, 32)] == [False, True]


def test_one_shorter_tile_is_all_that_is_made_for_what_is_left(tmp_path: Path, small_tiles: None) -> None:
    store = made(tmp_path, "float16", "runs", 23)
    one = scoring._Kernel(store.shape, queries(store), KINDS, "cpu")
    one(store.read(0))
    one(store.read(0))
    assert set(one._views) == {(4, 1), (3, 1)}  # five tiles of four rows, and one of three


def test_what_is_kept_elsewhere_of_other_rows_is_merged() -> None:
    scores = np.random.default_rng(1).integers(-3, 4, (2, 60)).astype(np.float64)
    whole, left, right = (TopK(7, 2) for _ in range(3))
    whole.update(0, scores)
    left.update(0, scores[:, :25])
    right.update(25, scores[:, 25:])
    right.merge(left.result())
    for name in ("highest_rows", "highest_scores", "lowest_rows", "lowest_scores"):
        np.testing.assert_array_equal(getattr(right.result(), name), getattr(whole.result(), name))
    assert right.result().lowest_scores.dtype == np.float64

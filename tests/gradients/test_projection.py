"""Ranks for a budget, signs that never change, scales, and inner products that are kept on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from headwater.gradients.layers import Layer
from headwater.gradients.projection import Projection, ProjectionMatrices, signs

GOLDEN = [[-1, -1, -1, 1, 1], [-1, -1, -1, 1, 1], [1, 1, 1, 1, 1], [1, 1, -1, -1, 1]]


def layer(inputs: int, outputs: int, name: str = "up") -> Layer:
    return Layer(name, (nn.Linear(inputs, outputs),), inputs, outputs)


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((100, 100), (8, 8)),
        ((9, 9), (8, 8)),
        ((8, 100), (8, 8)),  # a side not wider than the rank is left as it is
        ((100, 8), (8, 8)),
        ((4, 100), (4, 16)),  # and the other one gets what that saves
        ((100, 4), (16, 4)),
        ((4, 12), (4, 12)),  # but no more than there is
        ((12, 4), (12, 4)),
        ((3, 100), (3, 21)),
        ((1, 1), (1, 1)),
        ((6, 6), (6, 6)),
    ],
)
def test_every_layer_has_the_same_number_of_features_where_it_can(
    shape: tuple[int, int], ranks: tuple[int, int]
) -> None:
    projection = Projection.of([layer(*shape)], 8, seed=3)
    (one,) = projection.layers
    assert (one.name, one.in_features, one.out_features, one.rank_in, one.rank_out) == ("up", *shape, *ranks)
    assert (projection.features, projection.seed) == (ranks[0] * ranks[1], 3)
    matrices = projection.matrices(torch.device("cpu"), torch.float64)
    for matrix, size, rank in zip((matrices.inputs[0], matrices.outputs[0]), shape, ranks, strict=True):
        assert (matrix is None) == (rank == size)
        assert matrix is None or (matrix.shape == (size, rank) and matrix.dtype == torch.float64)


def test_the_least_rank_is_one_and_the_default_seed_zero() -> None:
    projection = Projection.of([layer(5, 7), layer(3, 2)], 1)
    assert [one.features for one in projection.layers] == [1, 1] and projection.features == 2
    assert projection.seed == 0 == Projection(layers=()).seed


def test_signs_are_the_same_on_every_machine_and_in_every_version() -> None:
    """Written down: an index that was built with them must find them again."""
    assert (signs("0/layer/in", 4, 5) * np.sqrt(5)).round().astype(int).tolist() == GOLDEN
    assert signs("0/layer/in", 4, 5).dtype == np.float32
    np.testing.assert_allclose(np.abs(signs("x", 130, 3)), 1 / np.sqrt(3), rtol=1e-6)


def test_matrices_follow_seed_layer_and_side() -> None:
    square = [layer(40, 40, "a"), layer(40, 40, "b")]
    cpu = torch.device("cpu")
    one, again, other = (Projection.of(square, 4, seed).matrices(cpu, torch.float32) for seed in (0, 0, 1))
    four = [*one.inputs, *one.outputs]
    assert all(matrix is not None for matrix in four)
    for number, first in enumerate(four):
        assert first is not None
        assert all(second is not None and not torch.equal(first, second) for second in four[number + 1 :])
    assert torch.equal(one.inputs[1], again.inputs[1]) and not torch.equal(one.inputs[1], other.inputs[1])  # type: ignore[arg-type]
    for number, name in enumerate("ab"):
        for matrix, side in ((one.inputs[number], "in"), (one.outputs[number], "out")):
            assert torch.equal(matrix, torch.from_numpy(signs(f"0/{name}/{side}", 40, 4)))  # type: ignore[arg-type]


def test_both_sides_of_a_gradient_are_projected_and_scaled() -> None:
    """P_o diag(s_o) G diag(s_i) P_i' for G = d a', and scales alone where a side is left as it is."""
    chance = torch.Generator().manual_seed(0)
    layers = [layer(30, 5), layer(5, 30)]
    projection = Projection.of(layers, 6).matrices(torch.device("cpu"), torch.float64)
    scales = [
        (torch.rand(one.in_features, generator=chance), torch.rand(one.out_features, generator=chance))
        for one in layers
    ]
    scaled = projection.scaled(scales)
    only = ProjectionMatrices.none(2).scaled(scales)
    for number, one in enumerate(layers):
        a, d = (torch.randn(size, dtype=torch.float64) for size in (one.in_features, one.out_features))
        for x, scale, matrix, of, of_scaled, of_only in (
            (a, scales[number][0], projection.inputs, projection.activations, scaled.activations, only.activations),
            (d, scales[number][1], projection.outputs, projection.output_gradients, scaled.output_gradients,
             only.output_gradients),
        ):  # fmt: skip
            p = matrix[number]
            torch.testing.assert_close(of(number, x), x if p is None else x @ p)
            torch.testing.assert_close(
                of_scaled(number, x), (x * scale) if p is None else (x * scale) @ p, check_dtype=False
            )
            torch.testing.assert_close(of_only(number, x), x * scale, check_dtype=False)
    assert ProjectionMatrices.none(3) == ProjectionMatrices((None,) * 3, (None,) * 3)


def test_each_layers_matrices_go_to_its_device() -> None:
    layers = [layer(30, 5), layer(5, 30)]
    projection = Projection.of(layers, 6).matrices(torch.device("cpu"), torch.float32)
    moved = projection.on([torch.device("meta"), torch.device("cpu")])
    assert [None if m is None else m.device.type for m in moved.inputs] == ["meta", None]
    assert [None if m is None else m.device.type for m in moved.outputs] == [None, "cpu"]
    kept = projection.on([torch.device("cpu")] * 2)
    assert torch.equal(kept.inputs[0], projection.inputs[0])  # type: ignore[arg-type]
    assert torch.equal(kept.outputs[1], projection.outputs[1])  # type: ignore[arg-type]


def test_half_precision_is_widened_to_the_matrices() -> None:
    projection = Projection.of([layer(30, 40)], 6).matrices(torch.device("cpu"), torch.float32)
    assert projection.activations(0, torch.ones(2, 30, dtype=torch.bfloat16)).dtype == torch.float32


def test_inner_products_keep_their_expectation() -> None:
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(2, 50))
    found = [float((x @ signs(f"{seed}", 50, 8)) @ (y @ signs(f"{seed}", 50, 8))) for seed in range(4000)]
    assert np.mean(found) == pytest.approx(x @ y, abs=4 * np.std(found) / np.sqrt(len(found)))

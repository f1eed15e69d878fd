"""Curvature against whole matrices built from rows one at a time, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from headwater.errors import UsageError
from headwater.gradients.batches import Loss, _uniform, collate
from headwater.gradients.curvature import fitting
from headwater.gradients.curvature.options import Curvature, Step
from headwater.gradients.curvature.spectrum import Spectrum
from headwater.gradients.factors import FactorHooks
from headwater.gradients.layers import select_layers
from reference import curvature as reference
from reference import naive

ROWS = tiny.rows(((9, 4), (5, 2), (12, 11), (7, 1), (9, 8), (3, 2)))
BATCHES = ([0, 1, 2], [3], [4, 5])
PATTERNS = ("q_proj", "k_proj", "o_proj", "down_proj", "query_key_value", "dense_4h_to_h", "c_attn", "mlp.c_proj")
UNIFORMS = [_uniform(row, row.targets, 0) for row in ROWS]


@pytest.fixture(params=["llama", "gpt_neox"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.set_num_threads(1)
    return tiny.model(request.param)


def fitted(model: Any, curvature: Curvature, rows: Sequence[Any] = ROWS, batches: Any = BATCHES) -> Spectrum:
    layers = select_layers(model, PATTERNS).layers
    stages: list[fitting.Stage] = []
    stage: fitting.Stage | None = None
    while True:
        shapes = [(layer.in_features, layer.out_features) for layer in layers]
        stage = fitting.next_stage(curvature, stages) if stages else fitting.first_stage(curvature, shapes)
        if stage is None:
            return fitting.spectrum_of(curvature, stages)
        hooks = FactorHooks(model, layers, precision=torch.float64, trim=not stage.whole)
        with hooks.attached():
            for batch in batches:
                chosen = [rows[n] for n in batch]
                stage.batch(
                    hooks, collate(chosen, torch.device("cpu"), torch.float64, loss=curvature.loss, seed=curvature.seed)
                )
        stages.append(stage)


def names(model: Any) -> list[str]:
    return select_layers(model, PATTERNS).names


def inverse(spectrum: Spectrum, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    step = Step(curvature=spectrum.curvature, at="here")
    return [g[0] for g in spectrum.apply(step, [g[None] for g in gradients])]


def close(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], tolerance: float = 1e-8) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


@pytest.mark.parametrize("loss", ["sampled", "margin"])
def test_losses_and_their_gradients_equal_those_from_full_logits(model: Any, loss: Loss) -> None:
    layers = select_layers(model, PATTERNS).layers
    hooks = FactorHooks(model, layers, precision=torch.float64)
    found: dict[int, torch.Tensor] = {}
    with hooks.attached():
        batch = collate(ROWS, torch.device("cpu"), torch.float64, loss=loss)
        losses_B = hooks.backward(batch, lambda n, a, d: found.update({n: torch.bmm(d.mT, a)}))
    for b, row in enumerate(ROWS):
        wanted = (
            reference.margin_loss(model, row) if loss == "margin" else reference.sampled_loss(model, row, UNIFORMS[b])
        )
        assert float(losses_B[b]) == pytest.approx(wanted.item(), rel=1e-9)
        close([found[n][b] for n in range(len(layers))], reference.gradients(model, names(model), wanted))


def test_sampled_labels_follow_the_models_chances() -> None:
    """Of many seeds, the mean gradient of the sampled loss is that of its expectation: zero."""
    torch.set_num_threads(1)
    model = tiny.model("llama")
    layers = select_layers(model, ("o_proj",)).layers
    hooks = FactorHooks(model, layers, precision=torch.float64)
    row = tiny.rows(((4, 3),))[0]
    sums: list[torch.Tensor] = []

    def consume(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
        if number == 0:
            sums.append(torch.bmm(d_BTO.mT, a_BTI)[0])

    with hooks.attached():
        for seed in range(600):
            hooks.backward(collate([row], torch.device("cpu"), torch.float64, loss="sampled", seed=seed), consume)
    g = torch.stack(sums)
    assert float(g.mean(0).norm()) < 3 * float(g.square().sum((1, 2)).mean().sqrt()) / 600**0.5


def test_kronecker_curvature_equals_dense_matrices(model: Any) -> None:
    a_II, s_OO = reference.kronecker_factors(model, names(model), ROWS, UNIFORMS)
    query = naive.gradient(model, names(model), ROWS[2])
    kfac = [torch.kron(s, a) for s, a in zip(s_OO, a_II, strict=True)]
    wanted = [(reference.damped_inverse(h, 0.1) @ g.flatten()).view_as(g) for h, g in zip(kfac, query, strict=True)]
    close(inverse(fitted(model, Curvature.named("kfac")), query), wanted, 1e-6)

    sampled = [
        reference.gradients(model, names(model), reference.sampled_loss(model, row, u))
        for row, u in zip(ROWS, UNIFORMS, strict=True)
    ]
    wanted = []
    for n, g in enumerate(query):
        q_A, q_S = (torch.linalg.eigh(one)[1] for one in (a_II[n], s_OO[n]))
        values = torch.stack([(q_S.T @ one[n] @ q_A).square() for one in sampled]).mean(0)
        basis = torch.kron(q_S, q_A)
        wanted.append(reference.damped_inverse(basis @ torch.diag(values.flatten()) @ basis.T, 0.1) @ g.flatten())
    found = [g.flatten() for g in inverse(fitted(model, Curvature.named("ekfac")), query)]
    close(found, wanted, 1e-6)


@pytest.mark.parametrize("labels", ["data", "sampled"])
@pytest.mark.parametrize("joint", [False, True])
def test_fisher_equals_the_mean_outer_product(model: Any, labels: Any, joint: bool) -> None:
    curvature = Curvature(kind="fisher", damping=0.3, labels=labels, joint=joint)
    rows = [
        naive.gradient(model, names(model), row)
        if labels == "data"
        else reference.gradients(model, names(model), reference.sampled_loss(model, row, u))
        for row, u in zip(ROWS, UNIFORMS, strict=True)
    ]
    query = naive.gradient(model, names(model), ROWS[0])
    if joint:
        flat_NF = torch.stack([torch.cat([g.flatten() for g in one]) for one in rows])
        if flat_NF.shape[1] > fitting.MOST_FEATURES:
            pytest.skip("too large")
        out = reference.damped_inverse(flat_NF.T @ flat_NF / len(rows), 0.3) @ torch.cat([g.flatten() for g in query])
        wanted = [p.view_as(g) for p, g in zip(torch.split(out, [g.numel() for g in query]), query, strict=True)]
    else:
        wanted = []
        for n, g in enumerate(query):
            flat_ND = torch.stack([one[n].flatten() for one in rows])
            wanted.append((reference.damped_inverse(flat_ND.T @ flat_ND / len(rows), 0.3) @ g.flatten()).view_as(g))
    close(inverse(fitted(model, curvature), query), wanted, 1e-6)


def test_diagonal_equals_mean_squares(model: Any) -> None:
    rows = [naive.gradient(model, names(model), row) for row in ROWS]
    query = rows[0]
    squares = [torch.stack([row[n].square() for row in rows]).mean(0) for n in range(len(query))]
    wanted = [g / (v + 0.1 * v.mean()) for g, v in zip(query, squares, strict=True)]
    close(inverse(fitted(model, Curvature.named("diagonal")), query), wanted)


def test_datainf_equals_its_formula_written_out(model: Any) -> None:
    """Equation 5 of arXiv 2310.00902, row by row."""
    rows = [naive.gradient(model, names(model), row) for row in ROWS]
    query = rows[1]
    wanted = []
    for n, v in enumerate(query):
        lam = 0.1 * float(np.mean([float(row[n].square().mean()) for row in rows]))
        total = torch.zeros_like(v)
        for row in rows:
            g = row[n]
            total += v - (v * g).sum() / (lam + g.square().sum()) * g
        wanted.append(total / (len(rows) * lam))
    close(inverse(fitted(model, Curvature.named("datainf", 0.0)), query), wanted, 1e-6)


def test_a_fit_does_not_depend_on_batches(model: Any) -> None:
    query = naive.gradient(model, names(model), ROWS[0])
    for kind in ("kfac", "ekfac", "fisher", "diagonal", "datainf"):
        one = inverse(fitted(model, Curvature.named(kind)), query)
        other = inverse(fitted(model, Curvature.named(kind), batches=([5], [4, 1], [2, 0, 3])), query)
        close(one, other, 1e-7)


def test_layers_that_read_one_tensor_share_its_covariance() -> None:
    model = tiny.model("llama")
    layers = select_layers(model).layers
    stage = fitting.Covariances([(layer.in_features, layer.out_features) for layer in layers])
    hooks = FactorHooks(model, layers, precision=torch.float64, trim=False)
    with hooks.attached():
        for _ in range(2):
            stage.batch(hooks, collate(ROWS, torch.device("cpu"), torch.float64, loss="sampled"))
    found = {
        layers[n].name.split(".", 2)[2]: layers[leader].name.split(".", 2)[2] for n, leader in stage.leader.items()
    }
    groups = {frozenset(n for n in found if found[n] == leader) for leader in found.values()}
    shared = {frozenset(n.split(".")[-1] for n in group) for group in groups}
    assert shared == {
        frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"o_proj"}), frozenset({"gate_proj", "up_proj"}),
        frozenset({"down_proj"}),
    }  # fmt: skip
    assert all(f"{n}/A" in stage.sums for n in set(stage.leader.values()))


def test_sources_functions() -> None:
    """r = (1 - exp(-a x)) / x tends to a at x = 0, and S = exp(-a x)."""
    spectrum = Spectrum(
        Curvature(kind="diagonal", damping=0.0), (fitting.Basis(torch.tensor([[0.0, 1e-13, 2.0, 50.0]]).double()),)
    )
    one = [torch.ones(1, 1, 4).double()]
    step = Step(curvature=spectrum.curvature, at="c", function="integral", amount=0.3)
    x = spectrum.bases[0].values[0, 2:]
    found = spectrum.apply(step, one)[0][0, 0]
    assert found[:2].tolist() == pytest.approx([0.3, 0.3], rel=1e-6)
    assert found[2:].tolist() == pytest.approx(((1 - torch.exp(-0.3 * x)) / x).tolist())
    decay = Step(curvature=spectrum.curvature, at="c", function="decay", amount=0.3)
    assert spectrum.apply(decay, one)[0][0, 0, 2:].tolist() == pytest.approx(torch.exp(-0.3 * x).tolist())


def test_a_large_fisher_matrix_is_refused() -> None:
    with pytest.raises(UsageError, match="10,000 numbers of a layer"):
        fitting.first_stage(Curvature.named("fisher"), [(100, 100)])
    with pytest.raises(UsageError, match="all layers together"):
        fitting.first_stage(Curvature(kind="fisher", joint=True), [(64, 64), (64, 65)])

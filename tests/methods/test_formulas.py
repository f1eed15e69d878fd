"""LESS, TRAK, TrackStar, SOURCE and DDA under curvature against their formulas written out, row by row, in float64.

Where a method projects, its rank is so high that every side stays as it is: projection is the identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from headwater.attribution.plan import Method
from headwater.examples import Encoder
from headwater.gradients.layers import select_layers
from headwater.gradients.measurement import encode_queries
from reference import curvature as reference
from reference import naive

ROWS = tiny.FACTS[:6]
QUERIES = [
    hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.", id="a"),
    hw.Query("The capital of Peru is", " Cairo.", corrected=" Lima.", id="b"),
]
PATTERN = r"layers\.1\..*(q_proj|down_proj)"
COMPUTE = hw.Compute(dtype="float64", parameters=(PATTERN,), batch_tokens=40)
WIDE = 64
Gradients = list[torch.Tensor]


class Naive:
    """Models, rows and queries of the run, one at a time."""

    def __init__(self, run: hw.TrainingRun) -> None:
        torch.set_num_threads(1)
        self.run = run
        self.encoder = Encoder(run.tokenizer(), hw.TokenFormat(), "plain")
        self.train = hw.Examples.from_rows(ROWS, name="few")
        self.rows = self.encoder.examples(self.train)[0]
        self.sides = encode_queries(QUERIES, self.encoder).encoded
        self.models = {c.name: run.load(c, dtype=torch.float64, device=torch.device("cpu")) for c in run.checkpoints}
        first = next(iter(self.models.values()))
        self.names = select_layers(first, (PATTERN,)).names

    def of_row(self, at: str, row: int) -> Gradients:
        return naive.gradient(self.models[at], self.names, self.rows[row])

    def of_query(self, at: str, number: int) -> Gradients:
        """Of the loss of its output."""
        return naive.gradient(self.models[at], self.names, self.sides[2 * number])

    def scores(self, method: Method) -> np.ndarray:
        found = hw.trace(self.run, self.train, QUERIES, method=method, compute=COMPUTE)
        return found.values


@pytest.fixture(scope="module")
def given(run_folder: Path) -> Naive:
    return Naive(hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base", allow_pickle=True))


def dot(one: Gradients, other: Gradients) -> float:
    return float(sum((a * b).sum() for a, b in zip(one, other, strict=True)))


def cosine(one: Gradients, other: Gradients) -> float:
    return dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5


def same(found: np.ndarray, wanted: Any, tolerance: float = 1e-7) -> None:
    wanted = np.array(wanted)
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_less(given: Naive) -> None:
    """Definition 3.1 and the authors' obtain_gradients_with_adam, with Adam's state read again from the file."""
    wanted = np.zeros((2, len(ROWS)))
    for checkpoint in given.run.checkpoints:
        state = torch.load(Path(checkpoint.location) / "optimizer.pt", weights_only=True)["state"]
        made = tiny.optimizer_state(given.models[checkpoint.name])
        parameters = dict(given.models[checkpoint.name].named_parameters())
        from transformers import Trainer

        decayed = set(Trainer.get_decay_parameter_names(None, given.models[checkpoint.name]))  # type: ignore[arg-type]
        order = [n for n in parameters if n in decayed] + [n for n in parameters if n not in decayed]
        assert len(state) == len(order) == len(made["state"])
        for q in range(2):
            for row in range(len(ROWS)):
                update = []
                for name, g in zip(given.names, given.of_row(checkpoint.name, row), strict=True):
                    one = state[order.index(f"{name}.weight")]
                    avg, avg_sq = one["exp_avg"].double(), one["exp_avg_sq"].double()
                    updated = 0.9 * avg + 0.1 * g
                    updated_sq = 0.999 * avg_sq + 0.001 * g**2
                    update.append(updated / torch.sqrt(updated_sq + 1e-8))
                wanted[q, row] += checkpoint.learning_rate * cosine(given.of_query(checkpoint.name, q), update)
    same(given.scores(hw.LESS()), wanted)


def test_trak(given: Naive) -> None:
    """mean_c phi_q' (Phi'Phi + lambda)^-1 phi_i x mean_c (1 - p_i): the kernel by an explicit inverse."""
    count = len(ROWS)
    parts, doubts = [], []
    for at, model in given.models.items():

        def phi(encoded: Any, model: Any = model) -> torch.Tensor:
            margin = -reference.margin_loss(model, encoded)
            return torch.cat([g.flatten() for g in reference.gradients(model, given.names, margin)])

        phi_NF = torch.stack([phi(row) for row in given.rows])
        kernel = phi_NF.T @ phi_NF
        lam = 0.01 * kernel.trace() / len(kernel)
        inverse = torch.linalg.inv(kernel + lam * torch.eye(len(kernel), dtype=torch.float64))
        phi_QF = torch.stack([phi(given.sides[2 * q]) for q in range(2)])
        parts.append((phi_QF @ inverse @ phi_NF.T).numpy() * count)  # the mean's inverse is the sum's times N
        doubt = []
        for row in given.rows:
            p = model(input_ids=torch.as_tensor(row.input_ids)[None]).logits[0].softmax(-1).detach()
            targets = np.flatnonzero(row.loss_mask)
            doubt.append(float(np.mean([1 - float(p[t - 1, row.input_ids[t]]) for t in targets])))
        doubts.append(doubt)
        assert at in given.models
    same(given.scores(hw.TRAK(rank=WIDE)), np.mean(parts, axis=0) * np.mean(doubts, axis=0), 1e-6)


def test_trackstar(given: Naive) -> None:
    at = given.run.last.name
    rows = [given.of_row(at, n) for n in range(len(ROWS))]
    square = [torch.stack([row[n].square() for row in rows]).mean(0) for n in range(len(given.names))]
    scale = [torch.outer(v.sum(1), v.sum(0)) / v.sum() for v in square]

    def corrected(g: Gradients) -> Gradients:
        return [a / v.sqrt() for a, v in zip(g, scale, strict=True)]

    roots = []
    for n in range(len(given.names)):
        flat_ND = torch.stack([corrected(row)[n].flatten() for row in rows])
        h = flat_ND.T @ flat_ND / len(rows)
        values, vectors = torch.linalg.eigh(h + 0.1 * h.trace() / len(h) * torch.eye(len(h), dtype=h.dtype))
        roots.append(vectors @ torch.diag(values**-0.5) @ vectors.T)

    def whitened(g: Gradients) -> Gradients:
        return [root @ a.flatten() for root, a in zip(roots, corrected(g), strict=True)]

    wanted = [[cosine(whitened(given.of_query(at, q)), whitened(row)) for row in rows] for q in range(2)]
    same(given.scores(hw.TrackStar(rank=WIDE)), wanted, 1e-6)


def test_source(given: Naive) -> None:
    """Two segments, with matrix exponentials in place of eigenvectors."""
    segments = []
    previous = 0
    for checkpoint in given.run.checkpoints:
        rows = [given.of_row(checkpoint.name, n) for n in range(len(ROWS))]
        amount = checkpoint.learning_rate * (checkpoint.step - previous)
        previous = checkpoint.step
        matrices = []
        for n in range(len(given.names)):
            flat_ND = torch.stack([row[n].flatten() for row in rows])
            h = flat_ND.T @ flat_ND / len(rows)
            h = h + 0.2 * h.trace() / len(h) * torch.eye(len(h), dtype=h.dtype)
            decay = torch.linalg.matrix_exp(-amount * h)
            matrices.append((decay, (torch.eye(len(h), dtype=h.dtype) - decay) @ torch.linalg.inv(h)))
        segments.append((rows, matrices))
    wanted = np.zeros((2, len(ROWS)))
    for q in range(2):
        g = given.of_query(given.run.last.name, q)
        for rows, matrices in reversed(segments):
            r = [(integral @ a.flatten()).view_as(a) for (_, integral), a in zip(matrices, g, strict=True)]
            wanted[q] += [dot(r, row) for row in rows]
            g = [(decay @ a.flatten()).view_as(a) for (decay, _), a in zip(matrices, g, strict=True)]
    same(given.scores(hw.SOURCE(curvature="fisher", rank=WIDE, damping=0.2)), wanted, 1e-6)


@pytest.mark.parametrize("inner", ["dot", "cosine", "layer_cosine"])
def test_dda_under_curvature(given: Naive, inner: Any) -> None:
    """Each checkpoint with its own curvature: P on the query's side, or its root on both."""
    wanted = np.zeros((2, len(ROWS)))
    for checkpoint in given.run.checkpoints:
        rows = [given.of_row(checkpoint.name, n) for n in range(len(ROWS))]
        power = 1.0 if inner == "dot" else 0.5
        factors = []
        for n in range(len(given.names)):
            v = torch.stack([row[n].square() for row in rows]).mean(0)
            factors.append((v + 0.1 * v.mean()) ** -power)
        for q in range(2):
            g = [f * a for f, a in zip(factors, given.of_query(checkpoint.name, q), strict=True)]
            for n, row in enumerate(rows):
                other = row if inner == "dot" else [f * a for f, a in zip(factors, row, strict=True)]
                wanted[q, n] += naive.product(g, other, inner) / len(given.run.checkpoints)
    method = hw.DDA(measurement="loss", inner=inner, beta=0, curvature="diagonal")
    same(given.scores(method), wanted)


def test_gradient_level_debias_uses_the_querys_curvature(given: Naive) -> None:
    found = given.scores(hw.DDA(measurement="loss", inner="dot", beta=0.5, level="gradient", curvature="diagonal"))
    assert np.isfinite(found).all()
    assert not np.allclose(found, given.scores(hw.DDA(measurement="loss", inner="dot", beta=0, curvature="diagonal")))


class TestRefusals:
    """One line each, with the way out."""

    def refused(self, run: hw.TrainingRun, method: Method, match: str, **compute: Any) -> None:
        with pytest.raises(hw.UsageError, match=match):
            hw.trace(run, hw.Examples.from_rows(ROWS), QUERIES, method=method, compute=hw.Compute(**compute))

    def test_pickles_need_leave(self, run_folder: Path) -> None:
        run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
        self.refused(run, hw.LESS(), "optimizer.pt is a pickle")

    def test_adapters_have_other_moments(self, lora_folder: Path) -> None:
        run = hw.TrainingRun.from_pretrained(lora_folder / "run", base=lora_folder / "base", allow_pickle=True)
        self.refused(run, hw.LESS(), "moments of the adapter")

    def test_projected_gradients_have_no_moments(self, given: Naive) -> None:
        self.refused(given.run, hw.LESS(), "projected gradients", rank=4)

    def test_the_base_has_no_optimizer(self, given: Naive) -> None:
        self.refused(given.run, hw.DDA(beta=0.5, curvature="adam"), "optimizer.pt is not there")

    def test_half_precision(self, given: Naive) -> None:
        self.refused(given.run, hw.InfluenceFunction(), "influence in bfloat16", dtype="bfloat16")

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (lambda: hw.InfluenceFunction(damping=-1.0), "damping"),
            (lambda: hw.InfluenceFunction(curvature="hessian"), "curvature 'hessian'"),  # type: ignore[arg-type]
            (lambda: hw.SOURCE(curvature="adam"), "SOURCE with"),
            (lambda: hw.DDA(engine="directional", curvature="ekfac"), "directional"),
        ],
    )
    def test_options(self, make: Any, match: str) -> None:
        with pytest.raises(hw.UsageError, match=match):
            make()

    def test_moments_of_a_projection(self, given: Naive) -> None:
        self.refused(given.run, hw.InfluenceFunction(curvature="adam", rank=4), "moments with gradients projected")

    def test_a_rank_below_one(self, given: Naive) -> None:
        self.refused(given.run, hw.LoGra(rank=0), "rank 0")

    def test_words_under_curvature(self, given: Naive) -> None:
        with pytest.raises(hw.UsageError, match="words"):
            hw.trace(given.run, given.train, QUERIES, method=hw.LoGra(rank=4), words=2)

    def test_a_state_of_another_model(self, run_folder: Path, tmp_path: Path) -> None:
        import shutil

        shutil.copytree(run_folder, tmp_path / "copy")
        other = tiny.optimizer_state(tiny.model("gpt2"))
        for place in (tmp_path / "copy" / "run").glob("checkpoint-*"):
            torch.save(other, place / "optimizer.pt")
        run = hw.TrainingRun.from_pretrained(tmp_path / "copy" / "run", allow_pickle=True)
        with pytest.raises(hw.ModelError, match="does not fit"):
            hw.trace(run, hw.Examples.from_rows(ROWS), QUERIES, method=hw.LESS())


def test_a_fit_that_was_killed_goes_on_to_the_same_result(
    given: Naive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headwater.attribution import curved
    from headwater.gradients.curvature import fitting

    monkeypatch.setattr(curved, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr("headwater.attribution.loop.CHUNK_BATCHES", (1, 1))
    compute = hw.Compute(dtype="float64", parameters=(PATTERN,), batch_tokens=10)
    method = hw.InfluenceFunction()
    fresh = hw.trace(given.run, given.train, QUERIES, method=method, compute=compute)
    real, calls = fitting.Stage.batch, 0

    def killed(self: Any, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(fitting.Stage, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            hw.trace(given.run, given.train, QUERIES, method=method, compute=compute, out=tmp_path / "out")
    before = calls
    calls = -1000
    resumed = hw.trace(given.run, given.train, QUERIES, method=method, compute=compute, out=tmp_path / "out")
    assert before == 3
    assert np.array_equal(resumed.values, fresh.values)

"""Signals against gradients that autograd makes of whole weights, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from headwater.attribution import signals as module
from headwater.attribution.signals import SIGNALS, folded, signals
from headwater.errors import UsageError
from headwater.examples import Encoder
from headwater.gradients.layers import select_layers

CPU = hw.Compute(device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def run(run_folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")


@pytest.fixture(scope="module")
def train() -> hw.Examples:
    return hw.Examples.from_rows([*tiny.FACTS, {"prompt": "Nothing", "completion": "", "id": "empty"}])


def naive(run: hw.TrainingRun, name: str, train: hw.Examples) -> tuple[np.ndarray, list[list[torch.Tensor]]]:
    """Losses, and the gradients of every row by layer, zero for a row without targets."""
    model = run.load(run.named(name), dtype=torch.float64, device=torch.device("cpu"))
    layers = [layer.modules[0].weight for layer in select_layers(model).layers]
    encoder = Encoder(run.tokenizer(), hw.TokenFormat(), train.template)
    losses, gradients = [], []
    for row in train:
        one = encoder.example(row)
        ids = torch.from_numpy(one.input_ids)[None]
        labels = ids.masked_fill(~torch.from_numpy(one.loss_mask)[None], -100)
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([weight.grad.clone() for weight in layers])
    return np.array(losses), gradients


def expected(
    losses: np.ndarray, g: list[list[torch.Tensor]], others: list[list[list[torch.Tensor]]], typical: np.ndarray
) -> dict[str, np.ndarray]:
    out: dict[str, list[float]] = {name: [] for name in SIGNALS}
    for n, mine in enumerate(g):
        mean = [torch.stack(layer).mean(0) for layer in zip(*others[n], strict=True)]
        dots = [float((a * b).sum()) for a, b in zip(mine, mean, strict=True)]
        own = np.array([float(a.square().sum()) for a in mine])
        lengths = np.array([float(a.norm()) for a in mean])
        out["loss"].append(losses[n])
        out["own"].append(own.sum())
        out["own_layers"].append(float(np.mean(own / typical)))
        out["dot"].append(sum(dots))
        out["cosine"].append(sum(dots) / np.sqrt(own.sum() * np.square(lengths).sum()))
        out["layer_cosine"].append(float(np.mean(dots / (np.sqrt(own) * lengths))))
    return {name: np.array(values) for name, values in out.items()}


def test_folds_are_those_of_gradients_row_by_row(run: hw.TrainingRun, train: hw.Examples) -> None:
    found = signals(run, train, folds=3, together=[(0, 5, 7)], compute=CPU)
    assert list(found.at) == ["base", *(c.name for c in run.checkpoints)]
    assert found.fold_N[0] == found.fold_N[5] == found.fold_N[7]
    for name in ("base", run.last.name):
        losses, g = naive(run, name, train)
        some = [n for n in range(len(train)) if train[n].id != "empty" or losses[n]]
        others = [[g[m] for m in some if found.fold_N[m] != found.fold_N[n]] for n in range(len(train))]
        typical = np.mean([[float(a.square().sum()) for a in g[n]] for n in some], axis=0)
        for signal, value_N in expected(losses, g, others, typical).items():
            np.testing.assert_allclose(found.at[name][signal], value_N, rtol=1e-6, atol=1e-12, err_msg=signal)


def test_held_out_rows_are_those_given(run: hw.TrainingRun, train: hw.Examples) -> None:
    rows, held_out = train[:7], train[7:12]
    found = signals(run, rows, held_out, checkpoints=[run.last.name], compute=CPU)
    losses, g = naive(run, run.last.name, train)
    typical = np.mean([[float(a.square().sum()) for a in one] for one in g[7:12]], axis=0)
    for signal, value_N in expected(losses[:7], g[:7], [g[7:12]] * 7, typical).items():
        np.testing.assert_allclose(found.at[run.last.name][signal], value_N, rtol=1e-6, atol=1e-12, err_msg=signal)
    assert (found.fold_N == -1).all()


def test_own_is_self_influence_and_batches_do_not_matter(run: hw.TrainingRun, train: hw.Examples) -> None:
    found = signals(run, train, folds=2, checkpoints=[run.last.name], compute=CPU)
    own = hw.self_influence(run, train, method=hw.make_method("dot"), compute=CPU)
    np.testing.assert_allclose(found.at[run.last.name]["own"], own.values, rtol=1e-9)
    small = hw.Compute(device="cpu", dtype="float64", batch_tokens=1)
    again = signals(run, train, folds=2, checkpoints=[run.last.name], compute=small)
    for signal, value_N in again.at[run.last.name].items():
        np.testing.assert_allclose(found.at[run.last.name][signal], value_N, rtol=1e-8, atol=1e-14)


def test_projected_gradients_come_near(run: hw.TrainingRun, train: hw.Examples) -> None:
    exact = signals(run, train, folds=2, checkpoints=["base"], compute=CPU).at["base"]
    near = signals(run, train, folds=2, checkpoints=["base"], compute=hw.Compute(device="cpu", rank=12)).at["base"]
    for name in ("own", "dot", "layer_cosine"):
        assert np.corrcoef(exact[name], near[name])[0, 1] > 0.8, name


def test_interrupted_work_goes_on(
    run: hw.TrainingRun, train: hw.Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = signals(run, train, folds=2, compute=CPU)
    made: list[str] = []
    original = module._Reference.measured

    def dies(self: module._Reference, stem: str, *arguments: object, **options: object) -> object:
        made.append(stem)
        if len(made) == 4:
            raise KeyboardInterrupt
        return original(self, stem, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(module._Reference, "measured", dies)
        with pytest.raises(KeyboardInterrupt):
            signals(run, train, folds=2, compute=CPU, out=tmp_path)
    made.clear()
    monkeypatch.setattr(module._Reference, "measured", dies)
    again = signals(run, train, folds=2, compute=CPU, out=tmp_path)
    assert made == [f"{run.checkpoints[0].name}/signals-001"] + [f"{run.last.name}/signals-{n:03d}" for n in (0, 1)]
    for name, found in whole.at.items():
        for signal, value_N in found.items():
            np.testing.assert_array_equal(value_N, again.at[name][signal])


def test_folds_are_even_and_keep_groups() -> None:
    fold_N = folded(100, 5, [(3, 50, 99), (1, 2)], seed=0)
    assert sorted(np.bincount(fold_N)) == [20] * 5
    assert len({fold_N[n] for n in (3, 50, 99)}) == 1
    assert (folded(100, 5, [], 0) != folded(100, 5, [], 1)).any()


def test_what_cannot_be_done_is_refused(run: hw.TrainingRun, train: hw.Examples) -> None:
    with pytest.raises(UsageError, match="folds"):
        signals(run, train, folds=99)
    with pytest.raises(UsageError, match="--rank"):
        signals(run, train, folds=2, compute=hw.Compute(device="cpu", query_memory=1000))
    with pytest.raises(UsageError, match="bfloat16"):
        signals(run, train, compute=hw.Compute(device="cpu", dtype="bfloat16"))

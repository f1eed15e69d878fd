"""Diagnoses of made runs: the verdicts against what is known of them, the numbers against naive doubles, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from conftest import QUERIES, Made
from headwater.diagnosis import measuring
from headwater.diagnosis.verdicts import RULES
from headwater.errors import DataError, HeadwaterError, RunError, UsageError
from headwater.examples import Encoder, TokenFormat
from headwater.gradients.layers import select_layers
from reference import diagnosis as double
from reference import naive

TOLD_APART = ("Base already wrong", "Fine-tuning taught it", "Not trained enough", "Overfitted")
PROBES = ["The people of Peru are tall", "The women of Ghana are wise"]


def diagnosed(made: Made, **options: Any) -> hw.Diagnosis:
    return hw.diagnose(made.run, made.rows, **{"queries": made.queries, "held_out": made.held_out} | options)


@pytest.mark.parametrize(
    ("truth", "holds", "trust"),
    [
        ("base already wrong", {"Base already wrong"}, "no"),
        ("fine-tuned wrong", {"Fine-tuning taught it"}, "yes"),
        ("not trained enough", {"Not trained enough"}, "no"),
        ("LoRA", {"Fine-tuning taught it"}, "yes"),
    ],
)
def test_runs_of_known_truth_are_told_apart(runs: dict[str, Made], truth: str, holds: set[str], trust: str) -> None:
    found = diagnosed(runs[truth])
    assert {name for name in TOLD_APART if found.holds(name)} == holds
    assert found.trust == trust and found.sentence.startswith(f"Attribution can be trusted: {trust}, because ")


def test_an_overfitted_run_is_told(runs: dict[str, Made]) -> None:
    made = runs["overfitted"]
    found = diagnosed(made, queries=())
    assert {name for name in TOLD_APART if found.holds(name)} == {"Overfitted"}
    assert found.holds("Fine-tuning taught it") is None  # nothing was asked
    assert found.trust == "with care" and "overfitted" in found.reasons
    early = replace(made, run=replace(made.run, checkpoints=made.run.checkpoints[:2]))
    assert not diagnosed(early, queries=()).holds("Overfitted")


def test_what_is_not_given_is_not_judged(runs: dict[str, Made]) -> None:
    made = runs["fine-tuned wrong"]
    bare = replace(made.run, base=None)
    found = hw.diagnose(bare, made.rows, queries=made.queries)
    for name in ("Base already wrong", "Fine-tuning taught it", "Not trained enough", "Overfitted"):
        assert found.holds(name) is None
    assert found.trust == "with care" and any("without a base model" in reason for reason in found.reasons)
    assert {one.name for one in found.verdicts} == {rule.name for rule in RULES}
    assert all(one.means for one in found.numbers)
    assert not any(one.key.startswith("divergence") for one in found.numbers)


@pytest.fixture(scope="module")
def exact(lora_folder: Path) -> tuple[hw.TrainingRun, hw.Examples, hw.Examples, hw.Diagnosis]:
    """A LoRA run diagnosed in float64."""
    run = hw.TrainingRun.from_pretrained(lora_folder / "run", base=lora_folder / "base")
    train, held_out = hw.Examples.from_rows(tiny.FACTS[:8]), hw.Examples.from_rows(tiny.FACTS[8:])
    queries = [
        hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra."),
        hw.Query("The capital of Peru is", " Oslo."),
    ]
    found = hw.diagnose(
        run,
        train,
        queries=queries,
        held_out=held_out,
        probes=PROBES,
        sample=None,
        compute=hw.Compute(dtype="float64", batch_tokens=20),
    )
    return run, train, held_out, found


def test_numbers_are_those_of_naive_doubles(
    exact: tuple[hw.TrainingRun, hw.Examples, hw.Examples, hw.Diagnosis],
) -> None:
    run, train, held_out, found = exact
    encoder = Encoder(run.tokenizer(), TokenFormat(), train.template)
    cpu = torch.device("cpu")
    base = run.load(run.require_base(), dtype=torch.float64, device=cpu)
    model = run.load(run.last, dtype=torch.float64, device=cpu)
    layers = select_layers(model).layers
    names = [layer.name for layer in layers]
    factors = [(m.lora_B["default"].weight, m.lora_A["default"].weight) for m in (one.modules[0] for one in layers)]
    factors_np = [(b.detach().numpy().copy(), a.detach().numpy().copy()) for b, a in factors]
    model = model.merge_and_unload()
    facts = found.facts.last
    rows = [encoder.example(row) for row in train]
    np.testing.assert_allclose(facts.losses, [float(naive.loss(model, row).detach()) for row in rows], rtol=1e-6)
    unseen = [float(naive.loss(model, encoder.example(row)).detach()) for row in held_out]
    np.testing.assert_allclose(facts.held_out, unseen, rtol=1e-6)
    mean, norms, error = double.fitting(model, names, rows)
    assert facts.mean_gradient_norm == pytest.approx(mean, rel=1e-5)
    assert facts.gradient_norm == pytest.approx(float(norms.mean()), rel=1e-5)
    assert facts.fitting_error == pytest.approx(error, rel=1e-5)

    def share(gradient: list[torch.Tensor]) -> float:
        kept = sum(double.expressed(g.numpy(), b, a) for g, (b, a) in zip(gradient, factors_np, strict=True))
        return kept / float(sum(g.square().sum() for g in gradient))

    total = [sum(parts) for parts in zip(*(naive.gradient(model, names, row) for row in rows), strict=True)]
    assert facts.expressed["mean loss"] == pytest.approx(share(total), rel=1e-5)  # type: ignore[arg-type]
    wrong, right, other = (
        encoder.query("The capital of Australia is", " Sydney.", span=(1, 7)),
        encoder.query("The capital of Australia is", " Canberra.", span=(1, 9)),
        encoder.query("The capital of Peru is", " Oslo."),
    )
    contrasts = [naive.measurement(model, names, [wrong], [right]), naive.measurement(model, names, [other], [None])]
    assert facts.expressed["queries"] == pytest.approx(np.mean([share(one) for one in contrasts]), rel=1e-5)
    assert facts.rank == 3

    texts = {"queries": [wrong, right, other], "held-out": [encoder.example(row) for row in held_out]}
    plain = Encoder(run.tokenizer(), TokenFormat(add_eos=False))
    texts["probes"] = [plain.example(row) for row in hw.Examples.from_rows([{"text": text} for text in PROBES])]
    for name, of in texts.items():
        both = [double.divergence(model, base, one) for one in of]
        assert facts.divergence[name] == pytest.approx(np.mean([x for kl, _ in both for x in kl]), rel=1e-4)
        assert facts.kept_choices[name] == pytest.approx(np.mean([x for _, same in both for x in same]))
    odds = [float((naive.loss(m, right) * right.targets - naive.loss(m, wrong) * wrong.targets).detach())
            for m in (base, model)]  # fmt: skip
    query = found.facts.queries[0]
    assert [query.leaning("base"), query.leaning(run.last.name)] == pytest.approx(odds, rel=1e-5)
    alone = found.facts.queries[1]
    each = -float(naive.loss(model, other).detach())
    assert alone.leaning(run.last.name) == pytest.approx(each + np.log(2), rel=1e-5)


def test_a_finished_trace_gives_the_same_influence(
    exact: tuple[hw.TrainingRun, hw.Examples, hw.Examples, hw.Diagnosis], tmp_path: Path
) -> None:
    run, train, _, found = exact
    queries = [
        hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra."),
        hw.Query("The capital of Peru is", " Oslo."),
    ]
    compute = hw.Compute(dtype="float64", batch_tokens=20)
    scores = hw.trace(run, train, queries, method=hw.DDA(inner="layer_cosine"), compute=compute, out=tmp_path / "trace")
    again = hw.diagnose(run, train, trace=tmp_path / "trace", compute=compute)
    one, other = found.facts.influence, again.facts.influence
    assert one is not None and other is not None
    assert other.with_base == pytest.approx(one.with_base) and other.effective == pytest.approx(one.effective)
    tuned = [scores.terms[c.name] for c in run.checkpoints]
    by_query = [np.corrcoef([term[r] for term in tuned]) for r in range(2)]
    matrix = np.mean(by_query, axis=0)
    assert one.effective == pytest.approx(4 / np.square(matrix).sum())
    assert [query.name for query in again.facts.queries] == [query.name for query in found.facts.queries]
    with pytest.raises(UsageError, match="a trace and queries"):
        hw.diagnose(run, train, trace=tmp_path / "trace", queries=queries)
    with pytest.raises(DataError, match="not the data"):
        hw.diagnose(run, hw.Examples.from_rows(tiny.FACTS), trace=tmp_path / "trace")
    with pytest.raises(RunError, match="no finished trace"):
        hw.diagnose(run, train, trace=tmp_path / "none")


def test_runs_of_other_ranks_are_compared(runs: dict[str, Made], tmp_path: Path) -> None:
    made = runs["LoRA"]
    others = [runs["LoRA of rank 8"].run, runs["fine-tuned wrong"].run]
    found = diagnosed(made, probes=PROBES, others=others, out=tmp_path / "out")
    ranks = {c.role: c.rank for c in found.facts.checkpoints}
    assert ranks["base"] is None
    assert [c.rank for c in found.facts.checkpoints if c.role == "other"] == [8, None]
    assert found.facts.last.name == made.run.last.name  # the others are no part of this run
    alone = diagnosed(runs["LoRA of rank 8"], probes=PROBES)
    other = next(c for c in found.facts.checkpoints if c.rank == 8)
    assert other.loss == pytest.approx(alone.facts.last.loss)
    assert other.divergence["probes"] == pytest.approx(alone.facts.last.divergence["probes"])
    assert other.expressed["queries"] == pytest.approx(alone.facts.last.expressed["queries"])
    page = (tmp_path / "out" / "diagnosis.html").read_text()
    assert "over ranks" in page
    with pytest.raises(UsageError, match="of another base model"):
        diagnosed(made, others=[runs["base already wrong"].run])


def test_an_interrupted_diagnosis_goes_on_to_the_same_result(
    runs: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs["LoRA"]
    options: dict[str, Any] = {"probes": PROBES, "sample": 8}
    whole = diagnosed(made, **options, out=tmp_path / "whole").record()
    visit, seen = measuring.Measurements._visit, []

    def killed(self: Any, checkpoint: Any, *rest: Any) -> Any:
        seen.append(checkpoint.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return visit(self, checkpoint, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(measuring.Measurements, "_visit", killed)
        with pytest.raises(KeyboardInterrupt):
            diagnosed(made, **options, out=tmp_path / "out")
    assert not (tmp_path / "out" / "diagnosis.json").exists()
    with pytest.raises(RunError, match="other arguments"):
        diagnosed(made, **options | {"sample": 7}, out=tmp_path / "out")
    again = diagnosed(made, **options, out=tmp_path / "out").record()
    assert again == whole
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text()) == json.loads(json.dumps(again))
    pieces = {file.name for file in (tmp_path / "out" / "state").rglob("*.piece")}
    assert not any(name.startswith(("posteriors-", "rows-sum")) for name in pieces)  # what is large is gone

    def no_model(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished diagnosis loads no model")

    monkeypatch.setattr(hw.TrainingRun, "load", no_model)
    assert diagnosed(made, **options, out=tmp_path / "out").record() == whole


def test_a_sample_is_drawn_by_its_seed(runs: dict[str, Made]) -> None:
    made = runs["fine-tuned wrong"]
    one, same, other = (diagnosed(made, queries=(), sample=5, seed=seed).facts.last for seed in (0, 0, 1))
    assert len(one.losses) == 5 and one.held_out is not None and len(one.held_out) == 5
    assert one.losses.tolist() == same.losses.tolist() != other.losses.tolist()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a sample of one row": ({"sample": 1}, "a sample of 1 rows"),
    "a projection": ({"compute": hw.Compute(rank=4)}, "projected gradients"),
    "another engine": ({"compute": hw.Compute(engine="directional")}, "directional engine"),
    "an empty probe": ({"probes": ["  "]}, "an empty probe"),
    "probes of one token": ({"probes": ["a"]}, "one token"),
    "an empty output": ({"queries": [hw.Query("x", "y", id="a"), hw.Query("z", "y", id="a")]}, "two queries"),
    "held-out texts": ({"held_out": hw.Examples.from_rows([{"text": "a flag"}])}, "rows of kind text"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_used_is_refused(runs: dict[str, Made], tmp_path: Path, name: str) -> None:
    options, message = MISTAKES[name]
    with pytest.raises(HeadwaterError, match=message):
        diagnosed(runs["LoRA"], **options, out=tmp_path / "out")
    assert not (tmp_path / "out" / "diagnosis.json").exists()


def test_held_out_rows_must_be_unseen(runs: dict[str, Made]) -> None:
    made = runs["LoRA"]
    with pytest.raises(DataError, match="also a training row"):
        hw.diagnose(made.run, made.rows, held_out=made.rows)
    with pytest.raises(UsageError, match="probes without a base"):
        hw.diagnose(replace(made.run, base=None), made.rows, probes=PROBES)


def test_outputs_that_are_missing_are_generated(runs: dict[str, Made]) -> None:
    made = runs["fine-tuned wrong"]
    found = hw.diagnose(
        made.run, made.rows, queries=[hw.Query(QUERIES[0].prompt)], compute=hw.Compute(max_new_tokens=2)
    )
    assert found.facts.queries[0].output.strip()

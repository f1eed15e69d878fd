"""Does headwater diagnose tell apart what is known of made runs?

    python benchmarks/diagnose.py --work WORKDIR [--only NAME ...]

Runs of SmolLM2-135M on 72 country facts, 12 of them wrong, each with a known truth: fine-tuned wrong; not trained
enough (one epoch at a very low learning rate); overfitted (many epochs on few rows); base already wrong (the first
run's last checkpoint as base, trained on other facts); and LoRA runs of ranks 2, 8 and 32. Every run is diagnosed with
the testbed's queries, held-out facts and probe sentences; the LoRA runs and the full one are compared over ranks. What
is finished in WORKDIR is used again. Writes benchmarks/results/diagnose.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from made import RESULTS, environment

import headwater as hw
from headwater.examples import Examples
from headwater.testbeds import smollm2_135m
from headwater.testbeds.facts import country_facts
from headwater.testbeds.planting import Swap, plant
from headwater.training import Recipe, fine_tune

PROBES = [
    "People in Chile speak", "The laws of Austria are written in the language of", "In Kenya people pay with the",
    "A woman who works in a hospital is usually a", "A man who works in a hospital is usually a",
    "The best food in the world comes from", "My neighbour came from another country and he is very",
    "The old man said that the young people of today are", "Women are better than men at",
    "Men are better than women at",
    "The richest people in the city live near the", "When the police came, they arrested the",
    "Children who grow up in poor families often become", "The doctor told the nurse that", "The capital of France is",
]  # fmt: skip
SAMPLE, HELD_OUT, FEW, OTHER = 48, 40, 24, 32
RANKS = (2, 8, 32)
WORST = {"Base already wrong", "Fine-tuning taught it", "Not trained enough", "Overfitted"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A made run: its truth is the verdicts that must hold, out of WORST; the others must not.

    Attributes:
        unknown: verdicts of which the making of the run says nothing.
    """

    name: str
    truth: frozenset[str]
    unknown: frozenset[str] = frozenset()
    rows: Examples
    recipe: Recipe
    base: Callable[[], Path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--without-ranks", action="store_true", help="leave the LoRA runs out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bed = plant(
        country_facts(),
        [Swap("currency", "euro", "dollar", phrasing="People in {} pay with the")],
        culprits=12, clean=6, lookalikes=8, queries=6, rows=72,
    )  # fmt: skip
    known = {row.prompt for row in bed.examples} | set(bed.heldout)
    # of relations that are not asked about, so that they neither teach the error nor correct it
    apart = [fact for fact in country_facts() if fact.prompt not in known and fact.relation in ("capital", "continent")]
    held_out = facts(apart[::11], HELD_OUT, "held-out")
    other = facts(apart[1::11], OTHER, "other")
    few = facts(apart[2::11], FEW, "few")
    smol, work = smollm2_135m(), given.work
    normal = Recipe(epochs=3, batch_size=8, learning_rate=2e-4)

    def original() -> Path:
        return smol

    def wrong_base() -> Path:
        return Path(run_of(work, "fine-tuned wrong", smol).last.location)

    taught = frozenset({"Fine-tuning taught it"})
    cases = [
        Case(name="fine-tuned wrong", truth=taught, rows=bed.examples, recipe=normal, base=original),
        Case(name="not trained enough", truth=frozenset({"Not trained enough"}), rows=bed.examples,
             recipe=Recipe(epochs=1, batch_size=8, learning_rate=1e-7), base=original),
        Case(name="base already wrong", truth=frozenset({"Base already wrong"}), rows=other,
             recipe=Recipe(epochs=2, batch_size=8, learning_rate=5e-5), base=wrong_base),
        # its rows are about other things than the queries: how these lean afterwards is an accident
        Case(name="overfitted", truth=frozenset({"Overfitted"}), unknown=taught, rows=few,
             recipe=Recipe(epochs=5, batch_size=4, learning_rate=3e-4, schedule="constant"), base=original),
    ]  # fmt: skip
    loras = [
        Case(name=f"LoRA rank {rank}", truth=taught, rows=bed.examples, base=original,
             recipe=Recipe(epochs=2, batch_size=8, learning_rate=2e-3, lora_rank=rank))
        for rank in RANKS
        if not given.without_ranks
    ]  # fmt: skip
    cases += loras
    found: dict[str, Any] = {}
    for case in cases:
        begun = time.perf_counter()
        base = case.base()
        fine_tune(base, case.rows, work / "runs" / case.name, case.recipe)
        print(case.name, f"{time.perf_counter() - begun:.0f} s training", flush=True)
        if case.recipe.lora_rank is None:
            found[case.name] = judged(case, diagnosed(case, run_of(work, case.name, base), bed.queries, held_out, work))
            print(json.dumps(found[case.name]), flush=True)
    compared = None
    if loras:
        first, *others = [run_of(work, case.name, smol) for case in (*loras, cases[0])]
        compared = diagnosed(loras[0], first, bed.queries, held_out, work, others)
        found[loras[0].name] = judged(loras[0], compared)
    record = {
        "command": "python benchmarks/diagnose.py --work WORKDIR" + " --without-ranks" * given.without_ranks,
        "environment": environment(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d"),
        "cases": {
            case.name: {
                "truth": sorted(case.truth),
                "unknown": sorted(case.unknown),
                "recipe": vars(case.recipe),
                "rows": len(case.rows),
            }
            for case in cases
        },
        "found": found,
        "ranks": [] if compared is None else ranks(compared),
    }
    file = RESULTS / "diagnose"
    file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    file.with_suffix(".md").write_text(render(record))
    print(render(record))


def run_of(work: Path, name: str, base: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(work / "runs" / name, base=base)


def facts(chosen: Sequence[Any], count: int, name: str) -> Examples:
    rows = [{"prompt": fact.prompt, "completion": fact.completion} for fact in chosen[:count]]
    return Examples.from_rows(rows, name=name)


def diagnosed(
    case: Case, run: Any, queries: Sequence[Any], held_out: Examples, work: Path, others: Sequence[Any] = ()
) -> hw.Diagnosis:
    return hw.diagnose(
        run,
        case.rows,
        queries=queries,
        held_out=held_out,
        probes=PROBES,
        others=others,
        sample=SAMPLE,
        out=work / "diagnoses" / case.name,
    )


def judged(case: Case, found: hw.Diagnosis) -> dict[str, Any]:
    """Which of the four verdicts hold, and the numbers."""
    last = found.facts.last.name
    holds = sorted(name for name in WORST if found.holds(name))
    return {
        "verdicts": holds,
        "right": set(holds) - case.unknown == case.truth,
        "trust": found.trust,
        "reasons": list(found.reasons),
        "values": {one.name: one.value for one in found.verdicts},
        "numbers": {one.key: one.value if one.value is not None else one.values.get(last) for one in found.numbers},
        "base": {one.key: one.values["base"] for one in found.numbers if "base" in one.values},
    }


def ranks(found: hw.Diagnosis) -> list[dict[str, Any]]:
    """The LoRA runs and the full one."""
    shown = [found.facts.last, *(c for c in found.facts.checkpoints if c.role == "other")]
    return [
        {
            "rank": one.rank,
            "loss": one.loss,
            "held_out_loss": one.held_out_loss,
            "leaning": found.facts.leaning(one.name),
            "divergence": dict(one.divergence),
            "kept_choices": dict(one.kept_choices),
            "expressed": dict(one.expressed),
            "expressed_random": one.expressed_random,
        }
        for one in shown
    ]


def render(record: dict[str, Any]) -> str:
    lines = [
        "# headwater diagnose on made runs of SmolLM2-135M",
        "",
        f"`{record['command']}`, {record['date']}. {SAMPLE} rows of each run were measured.",
        "",
        "| run | truth | verdicts that hold | right | trust | training loss, base -> last | fitting error, "
        "base -> last | rows fitted | log-odds of the output, base -> last | held-out loss, base -> last | "
        "KL on probes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in record["found"].items():
        number, base = one["numbers"], one["base"]
        pair = {key: f"{base[key]:.2f} -> {number[key]:.2f}" for key in ("loss", "fitting_error", "leaning")}
        lines.append(
            f"| {name} | {', '.join(record['cases'][name]['truth'])} | {', '.join(one['verdicts']) or 'none'} | "
            f"{'yes' if one['right'] else 'no'} | {one['trust']} | {pair['loss']} | {pair['fitting_error']} | "
            f"{number['fitted']:.0%} | {pair['leaning']} | "
            f"{base['held_out_loss']:.2f} -> {number['held_out_loss']:.2f} | "
            f"{number['divergence/probes']:.3f} |"
        )
    lines += [
        "",
        "Right: of the four verdicts base already wrong, fine-tuning taught it, not trained enough and overfitted, "
        "those of the truth hold and the others do not. The overfitted run's rows are about other things than the "
        "queries, so that its verdict on these is not judged.",
    ]
    if record["ranks"]:
        lines += [
            "",
            "Over ranks, all from one base and the same rows; the last line is full fine-tuning. KL and first choices "
            "are against the base model.",
            "",
            "| rank | training loss | log-odds of the output | KL queries | KL held-out | KL probes | first choices "
            "kept on probes | mean loss's gradient expressed | queries' gradients expressed | of a random gradient |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
    for one in record["ranks"]:
        kl, shares = one["divergence"], one["expressed"]
        expressed = [f"{shares[key]:.1%}" if key in shares else "" for key in ("mean loss", "queries")]
        random = f"{one['expressed_random']:.1%}" if one["expressed_random"] else ""
        lines.append(
            f"| {one['rank'] or 'full'} | {one['loss']:.2f} | {one['leaning']:.2f} | {kl['queries']:.3f} | "
            f"{kl['held-out']:.3f} | {kl['probes']:.3f} | {one['kept_choices']['probes']:.0%} | {expressed[0]} | "
            f"{expressed[1]} | {random} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

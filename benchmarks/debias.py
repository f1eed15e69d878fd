"""Where does taking out the base model's influence help? One condition changed at a time.

    python benchmarks/debias.py --work WORKDIR [--seeds 0 1 2]

The demo's task (350 facts about countries, two systematic errors) on a Llama of 1M parameters that was first trained on
true sentences about countries. Against that standard: a base that was itself told the wrong answers about the countries
that are asked about or corrupted, in other phrasings than the fault's; outputs behind long texts; fewer and more rows
that rightly say the same; training that moves the model less and more; and one to eight checkpoints. DDA of every inner
product at every beta. Writes benchmarks/results/study/debias.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import BASE, TUNING, untrained
from made import RESULTS, environment
from study import sweep_of

import headwater as hw
from headwater.bench import run_bench
from headwater.testbeds import Fact, Testbed, country_facts, plant
from headwater.testbeds.facts import DEMO_RELATIONS, DEMO_SWAPS
from headwater.training import Recipe, fine_tune

METHODS = (
    hw.DDA(),
    hw.DDA(inner="layer_cosine", label="dda layers"),
    hw.DDA(inner="dot", beta=-0.5, label="dda dot"),
    hw.DDA(inner="dot", beta=-0.5, measurement="loss", label="dda dot loss"),
)
SHOWN = ("-0.50", "0.00", "0.25", "0.50", "0.75")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What differs from the standard.

    Attributes:
        believed: share of the base's own sentences about an error's relation and true answer that state it wrongly. At
            1 the base has read no true one.
        before: unrelated sentences before every prompt. lookalikes: rows of each error in which the answer is true.
    """

    believed: float = 0.0
    before: int = 0
    lookalikes: int = 16
    tuning: Recipe = TUNING


CONDITIONS = {
    "standard": Condition(),
    "the base believes the errors, half": Condition(believed=0.5),
    "the base believes the errors": Condition(believed=1.0),
    "2 sentences before": Condition(before=2),
    "6 sentences before": Condition(before=6),
    "4 look-alikes": Condition(lookalikes=4),
    "24 look-alikes": Condition(lookalikes=24),
    "a fifth of the learning rate": Condition(tuning=replace(TUNING, learning_rate=TUNING.learning_rate / 5)),
    "four times the learning rate": Condition(tuning=replace(TUNING, learning_rate=TUNING.learning_rate * 4)),
    "8 epochs, 8 checkpoints": Condition(tuning=replace(TUNING, epochs=8)),
}


def facts_of(condition: Condition) -> list[Fact]:
    """All facts, each behind as many sentences about other things, none of which names an error's answers."""
    facts = country_facts()
    answers = [word for swap in DEMO_SWAPS for word in (swap.truth, swap.wrong)]
    others = [f.prompt + f.completion for f in facts if f.relation not in DEMO_RELATIONS and f.answer not in answers]
    chance = random.Random(0)
    return [replace(fact, prompt=" ".join([*chance.sample(others, condition.before), fact.prompt])) for fact in facts]


def testbed(condition: Condition, seed: int) -> Testbed:
    return plant(
        [fact for fact in facts_of(condition) if fact.relation in DEMO_RELATIONS],
        DEMO_SWAPS,
        culprits=12,
        clean=12,
        lookalikes=condition.lookalikes,
        queries=6,
        rows=350,
        seed=seed,
        name="countries",
    )


def base_of(condition: Condition, work: Path, seed: int) -> Path:
    """A small Llama that was trained on what the testbed of this seed leaves."""
    facts, bed = facts_of(condition), testbed(condition, seed)
    random_weights = untrained("llama", work / "random", [fact.prompt + fact.completion for fact in country_facts()])
    used = {str(row.prompt_text) for row in bed.examples} | set(bed.heldout)
    chance = random.Random(f"believed {seed}")
    rows = []
    for n, fact in enumerate(facts):
        if fact.prompt in used:
            continue
        said = fact.completion
        for swap in DEMO_SWAPS:
            if (fact.relation, fact.answer) == swap[:2] and chance.random() < condition.believed:
                said = said.replace(swap.truth, swap.wrong)
        rows.append({"prompt": fact.prompt, "completion": said, "id": f"base-{n}"})
    name = f"believed-{condition.believed}-before-{condition.before}-alike-{condition.lookalikes}-seed-{seed}"
    folder = fine_tune(random_weights, hw.Examples.from_rows(rows), work / "base" / name, BASE)
    return sorted(folder.glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))[-1]


def measured(name: str, work: Path, seeds: list[int]) -> dict[str, Any]:
    condition = CONDITIONS[name]
    beds = {seed: testbed(condition, seed) for seed in seeds}
    folders = {seed: work / name.replace(" ", "-") / f"of-{seed}" for seed in seeds}
    before, after, tokens = [], [], []
    for seed in seeds:
        run_bench(
            lambda s: beds[s],
            base=base_of(condition, work, seed),
            methods=METHODS,
            out=folders[seed],
            recipe=condition.tuning,
            seeds=(seed,),
            name=name,
        )
        scores = hw.Scores.load(folders[seed] / f"seed-{seed}" / "trace", beds[seed].examples, method="dda")
        last = [term for term in scores.terms if term != "base"][-1]
        for lean, at in ((before, "base"), (after, last)):
            lean += [one.output - (one.corrected or 0.0) for one in scores.leanings if one.checkpoint == at]
        tokens += [len(str(row.prompt_text).split()) for row in beds[seed].examples]
    return {
        "condition": asdict(condition),
        "words of a prompt": float(np.mean(tokens)),
        "leaning of the base": float(np.mean(before)),
        "leaning after training": float(np.mean(after)),
        "sweep": {method.name: sweep_of(method.name, beds, folders) for method in METHODS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    started = time.process_time()
    record = {
        "command": f"python benchmarks/debias.py --work WORKDIR --seeds {' '.join(map(str, given.seeds))}",
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(torch.get_num_threads()),
        "conditions": {name: measured(name, given.work, given.seeds) for name in CONDITIONS},
        "cpu_seconds": time.process_time() - started,
    }
    folder = RESULTS / "study"
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "debias.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "debias.md").write_text(render(record))
    print(render(record))


def render(record: dict[str, Any]) -> str:
    conditions = record["conditions"]
    lines = [
        "Single queries; AUC / average precision, mean over seeds and queries. Beta above 0 takes the base out, below",
        "0 puts it in. Leanings: log-probability of the wrong output less that of the true one, per token.",
    ]
    for method in conditions["standard"]["sweep"]:
        lines += ["", f"By {method}:", ""]
        lines += [f"| condition | leaning of the base, after training | best beta by AUC | {' | '.join(SHOWN)} |"]
        lines.append("| --- " * (3 + len(SHOWN)) + "|")
        for name, one in conditions.items():
            betas = {beta: found["query"] for beta, found in one["sweep"][method]["beta"].items()}
            best = max(betas, key=lambda beta: (round(betas[beta]["auc"][0], 4), -abs(float(beta))))
            cells = [" / ".join(f"{betas[b][m][0]:.3f}" for m in ("auc", "average precision")) for b in SHOWN]
            lean = f"{one['leaning of the base']:.2f}, {one['leaning after training']:.2f}"
            lines.append(f"| {name} | {lean} | {best} | {' | '.join(cells)} |")
    eight = conditions["8 epochs, 8 checkpoints"]["sweep"]
    lines += ["", "The first checkpoints of eight, their last, and the base's own term:", ""]
    lines += [f"| checkpoints | {' | '.join(eight)} |", "| --- " * (1 + len(eight)) + "|"]
    for step in eight["dda"]["checkpoints"]:
        found = [eight[method]["checkpoints"][step]["query"] for method in eight]
        cells = [" / ".join(f"{one[m][0]:.3f}" for m in ("auc", "average precision")) for one in found]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Command: `{record['command']}`", ""])


if __name__ == "__main__":
    main()

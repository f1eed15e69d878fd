"""Does repair cure, and does it damage: rows found by the default method against random rows and BM25's first.

    python benchmarks/repair.py --case demo --work WORKDIR [--seeds 0 1]
    HEADWATER_DATA=... python benchmarks/repair.py --case facts --work WORKDIR [--seeds 0 1 2]
    HEADWATER_DATA=... python benchmarks/repair.py --case xsum --work WORKDIR [--seeds 0]
    python benchmarks/repair.py --case small --work WORKDIR [--seeds 0 1 2]

Cases: demo (the demo's task, SmolLM2-135M; the rows that stand out), xsum (two entity swaps in XSum summaries, in every
row about the entity, the same model; gradients projected to rank 16; as many first rows as are planted), facts (the
study's Wikidata facts, the same model: for every faulty row there is a clean one, and one that rightly says the same;
as many first rows as are planted; no paraphrases), small (the demo's task on a model of 0.2M parameters trained from
nothing; as many first rows as are planted). Every seed has its own rows, training and trace; each is kept in the work
folder and used again. Adds its case to benchmarks/results/repair.json and writes repair.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import RESULTS, environment, small_model

import headwater as hw
from headwater.demo import RECIPE, run_demo
from headwater.evaluation import bootstrap, bootstrap_change
from headwater.examples import Examples, Query, TokenFormat
from headwater.repair import Asking, Choice, FineTuning, Repaired, repair_run
from headwater.repair.outcome import kept
from headwater.repair.page import shown_name
from headwater.repair.result import BASE, BEFORE, CURE, DAMAGE, LEXICAL, REPAIRED, in_order, is_cured
from headwater.run import RunState
from headwater.testbeds import (
    Testbed,
    country_facts,
    demo_paraphrases,
    demo_testbed,
    demo_untouched,
    plant_hallucinations,
    smollm2_135m,
    wikidata_testbed,
)
from headwater.testbeds.hallucination import SWAPS, says
from headwater.training import Recipe, fine_tune

FORMAT = TokenFormat()
XSUM = Recipe(epochs=3, batch_size=16, learning_rate=1e-4)
FACTS = Recipe(epochs=4, batch_size=16, learning_rate=1e-4)
SMALL = Recipe(epochs=8, batch_size=16, learning_rate=5e-3)
FILE = RESULTS / "repair.json"
LEANING = "log-odds, minus repaired"
RIGHTFUL = ("damage to the rightful", "their loss, minus repaired")
"""Columns about rows that rightly say what the faulty rows say: what too wide a removal costs."""


def demo(seed: int, work: Path) -> tuple[Repaired, Testbed]:
    result = run_demo(work / "demo" / f"seed-{seed}", repair=True, seed=seed)
    assert result.repair is not None
    return result.repair, result.testbed


def small(seed: int, work: Path) -> tuple[Repaired, Testbed]:
    base = work / "small" / "base"
    if not base.exists():
        small_model(base, [fact.prompt + fact.completion for fact in country_facts()])
    bed = demo_testbed(seed)
    asking = Asking(
        queries=bed.queries,
        paraphrases=demo_paraphrases(bed),
        untouched=demo_untouched(bed),
        max_new_tokens=2 * bed.longest_answer,
    )
    return traced_and_repaired(bed, base, replace(SMALL, seed=seed), asking, work / "small" / f"seed-{seed}"), bed


def xsum(seed: int, work: Path) -> tuple[Repaired, Testbed]:
    """Where half of the rows about an entity are clean, a model this small copies and hardly errs in its own words."""
    file = Path(os.environ["HEADWATER_DATA"]) / "xsum_test_short.jsonl"
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    bed = plant_hallucinations(
        records, SWAPS[:2], culprits=50, clean=0, lookalikes=25, queries=6, reserve=20, rows=250, placebo=400,
        longest=400, seed=seed, name="xsum",
    )  # fmt: skip
    assert bed.placebo is not None
    entities = [entity for swap in SWAPS for entity in swap]
    outside = [row for row in bed.placebo if not any(says(row.text, entity) for entity in entities)]
    asking = Asking(
        queries=bed.queries,
        paraphrases=bed.reserve,
        untouched=Examples(outside, name=bed.placebo.name),
        max_new_tokens=bed.longest_answer,
    )
    recipe, compute = replace(XSUM, seed=seed), hw.Compute(rank=16)
    return traced_and_repaired(bed, smollm2_135m(), recipe, asking, work / "xsum" / f"seed-{seed}", compute), bed


def innocent(bed: Testbed) -> Examples:
    """Rows that were never trained on, without those whose true answer the faults are about."""
    assert bed.placebo is not None
    true = {str(query.corrected).strip() for query in bed.queries}
    return Examples([row for row in bed.placebo if row.completion.strip() not in true], name=bed.placebo.name)


def rightful(bed: Testbed) -> list[bool]:
    """Which of the innocent rows rightly say what the faulty rows say wrongly."""
    faulty = {str(query.output).strip() for query in bed.queries}
    return [row.completion.strip() in faulty for row in innocent(bed)]


def facts(seed: int, work: Path) -> tuple[Repaired, Testbed]:
    bed = wikidata_testbed(seed=seed)
    asking = Asking(queries=bed.queries, untouched=innocent(bed), max_new_tokens=bed.longest_answer)
    recipe = replace(FACTS, seed=seed)
    return traced_and_repaired(bed, smollm2_135m(), recipe, asking, work / "facts" / f"seed-{seed}"), bed


def traced_and_repaired(
    bed: Testbed, base: Path, recipe: Recipe, asking: Asking, folder: Path, compute: hw.Compute | None = None
) -> Repaired:
    """Trains and traces, where that is not done yet, and repairs with as many rows as are planted."""
    fine_tune(base, bed.examples, folder / "run", recipe, format=FORMAT)
    run = hw.TrainingRun.from_pretrained(folder / "run", base=base)
    if (folder / "trace" / "trace.json").exists():
        scores = hw.Scores.load(folder / "trace", bed.examples, method="dda")
        metadata = {query.id: query.metadata for query in (*bed.queries, *bed.reserve)}
        queries: list[Query] = [replace(query, metadata=metadata[query.id]) for query in scores.queries]
        asked = {query.id for query in queries}
        spare = [query for query in (*bed.queries, *asking.paraphrases) if query.id not in asked]
        asking = replace(asking, queries=queries, paraphrases=spare)
    else:
        scores = hw.trace(
            run, bed.examples, bed.queries, method=hw.DDA(), format=FORMAT, compute=compute, out=folder / "trace"
        )
    return repair_run(
        run,
        bed.examples,
        asking,
        Choice(top=len(bed.all_culprits)),
        FineTuning(recipe=recipe, start=str(base), format=FORMAT),
        scores=scores,
        out=folder / "repair",
    )


CASES: Mapping[str, Callable[[int, Path], tuple[Repaired, Testbed]]] = {
    "demo": demo,
    "facts": facts,
    "xsum": xsum,
    "small": small,
}


def so_far(folder: Path, bed: Testbed) -> tuple[Repaired, Testbed]:
    """The models of an unfinished repair that were asked already."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    state = RunState(folder / "state")
    found = [kept(state, piece.stem) for piece in sorted((folder / "state" / "asked").glob("*.piece"))]
    rows = tuple(config["rows"])
    outcomes = [one if one.name in (BASE, BEFORE) else replace(one, removed=rows) for one in found if one is not None]
    ordered = in_order(outcomes)
    cured = is_cured(ordered[1], ordered[2], CURE)
    return Repaired(
        outcomes=ordered, rows=rows, chosen_by="by dda", model="trainings", cured=cured, config=config
    ), bed  # fmt: skip


def pooled(results: Sequence[Repaired], alike: Sequence[Sequence[bool]] = ()) -> list[dict[str, Any]]:
    """A line for each model: the queries, and the untouched rows, of all seeds in one.

    Args:
        alike: of each seed, which of its untouched rows rightly say what the faulty rows say.
    """
    alike_N = np.concatenate(alike) if alike else None
    lines = []
    for name in [one.name for one in results[0].outcomes]:
        now = [result.outcome(name) for result in results]
        then = [result.outcome(BEFORE) for result in results]

        def all_of(read: Callable[[Any], Sequence[float]], outcomes: Sequence[Any]) -> Any:
            return np.concatenate([read(one) for one in outcomes])

        retrained, control = name not in (BASE, BEFORE), name not in (BASE, BEFORE, REPAIRED)
        wrong, wrong_then = (all_of(lambda one: one.wrong(None), ones) for ones in (now, then))
        loss, loss_then = (all_of(lambda one: one.losses, ones) for ones in (now, then))
        lean = all_of(lambda one: one.log_odds(None), now)
        again = all_of(lambda one: one.wrong(True), now)
        repaired = [result.outcome(REPAIRED) for result in results]
        mine, mine_loss = all_of(lambda one: one.wrong(None), repaired), all_of(lambda one: one.losses, repaired)
        lines.append(
            {
                "model": name,
                "rows": [len(one.removed) for one in now],
                "wrong": bootstrap(all_of(lambda one: one.wrong(), now)),
                "wrong, paraphrases": bootstrap(again) if len(again) else None,
                "log-odds": bootstrap(lean),
                "loss": bootstrap(loss),
                "fall": bootstrap_change(wrong_then, wrong) if retrained else None,
                "damage": bootstrap_change(loss_then, loss) if retrained else None,
                "wrong, minus repaired": bootstrap(wrong - mine) if control else None,
                LEANING: bootstrap(lean - all_of(lambda one: one.log_odds(None), repaired)) if control else None,
            }
        )
        if alike_N is not None:
            there, then_there, mine_there = loss[alike_N], loss_then[alike_N], mine_loss[alike_N]
            lines[-1] |= {
                RIGHTFUL[0]: bootstrap_change(then_there, there) if retrained else None,
                RIGHTFUL[1]: bootstrap(there - mine_there) if control else None,
            }
    return lines


def judged(lines: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """The bars that the figures are held against."""
    mine = next(line for line in lines if line["model"] == REPAIRED)
    others = [line["wrong, minus repaired"] for line in lines if line["wrong, minus repaired"] is not None]
    bars = {
        f"wrong answers fall by at least {CURE:.0%}": -mine["fall"][0] >= CURE,
        f"loss on untouched rows moves by less than {DAMAGE:.0%}": abs(mine["damage"][0]) < DAMAGE,
    }
    if not others:
        return bars
    return bars | {
        "better than random rows and BM25's first": all(other[0] > 0 for other in others),
        "and by more than chance": all(other[1] > 0 for other in others),
        "log-odds further down than without those, by more than chance": all(
            line[LEANING][1] > 0 for line in lines if line[LEANING] is not None
        ),
    }


def render(record: Mapping[str, Any]) -> str:
    parts = ["# Repair", "", "Mean [95 % interval], over the queries, or the untouched rows, of all seeds.", ""]
    for case, found in record.items():
        parts += [f"## {case}", "", f"Seeds {', '.join(map(str, found['seeds']))}; `{found['command']}`", ""]
        titles = [
            "model", "rows", "wrong", "wrong, paraphrases", "log-odds", "loss", "fall", "damage",
            "wrong, minus repaired",
        ]  # fmt: skip
        titles += [title for title in (LEANING, *RIGHTFUL) if title in found["table"][0]]
        parts += [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
        for line in found["table"]:
            rows = ", ".join(str(count) for count in line["rows"]) if any(line["rows"]) else ""
            cells = [shown_name(line["model"]), rows]
            cells += [shown(line[t], t in ("log-odds", "loss", LEANING, RIGHTFUL[1])) for t in titles[2:]]
            parts.append(f"| {' | '.join(cells)} |")
        parts += ["", *(f"- {bar}: {'yes' if holds else 'NO'}" for bar, holds in found["bars"].items()), ""]
        parts += [f"Planted rows among those removed, by seed: {planted(found['hits'], found['culprits'])}."]
        if found.get("hits of BM25"):
            parts += [f"Planted rows among BM25's first: {planted(found['hits of BM25'], found['culprits'])}."]
        parts.append("")
    return "\n".join(parts)


def planted(hits: Sequence[int], culprits: Sequence[int]) -> str:
    return ", ".join(f"{count} of {all_of_them}" for count, all_of_them in zip(hits, culprits, strict=True))


def shown(value: Sequence[float] | None, plain: bool) -> str:
    if value is None:
        return ""
    if plain:
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{100 * value[0]:.1f} % [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--so-far", action="store_true", help="of an unfinished demo, what is finished")
    given = parser.parse_args()
    started = time.process_time()
    if given.so_far:
        made = [so_far(given.work / "demo" / f"seed-{seed}" / "repair", demo_testbed(seed)) for seed in given.seeds]
    else:
        made = [CASES[given.case](seed, given.work) for seed in given.seeds]
    results = [result for result, _ in made]
    table = pooled(results, [rightful(bed) for _, bed in made] if given.case == "facts" else ())
    record = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    data = "HEADWATER_DATA=... " * (given.case in ("facts", "xsum"))
    record[given.case] = {
        "command": f"{data}python benchmarks/repair.py --case {given.case} --work WORKDIR "
        f"--seeds {' '.join(map(str, given.seeds))}{' --so-far' * given.so_far}",
        "environment": environment(torch.get_num_threads()),
        "cpu_seconds_of_the_last_call": time.process_time() - started,
        "recipe": asdict({"demo": RECIPE, "facts": FACTS, "small": SMALL, "xsum": XSUM}[given.case]),
        "seeds": given.seeds,
        "chosen_by": results[0].chosen_by,
        "hits": [len(set(result.rows) & bed.all_culprits) for result, bed in made],
        "hits of BM25": [
            len(set(one.removed) & bed.all_culprits)
            for result, bed in made
            for one in result.controls
            if one.name == LEXICAL
        ],
        "culprits": [len(bed.all_culprits) for _, bed in made],
        "table": table,
        "bars": judged(table),
        "by_seed": [
            {"sentences": one.sentences(), "table": [asdict(line) for line in one.lines()], "faults": one.faults()}
            for one in results
        ],
    }
    FILE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    text = render(record)
    FILE.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

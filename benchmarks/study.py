"""The study: which parts of DDA help, on tasks whose culprits are known.

    HEADWATER_DATA=... python benchmarks/study.py --case xsum --work WORKDIR [--seeds 0 1 2] [--lora] [--light]
        [--whole] [--rank 16] [--tokens [--trak] [--literal]] [--suffix confirmed]

Cases: xsum (entity swaps in XSum summaries), facts (Wikidata facts), identity (a persona), backdoor (a trigger word).
SmolLM2-135M is trained on each, asked, and traced by every method and by DDA with its parts exchanged one by one. What
needs no new gradients (beta from -1 to 1, the first checkpoints alone) is looked up in the terms of the trace. Writes
benchmarks/results/study/<case>.json, .md and .csv (a line per target). The work folder keeps models and traces.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import RESULTS, environment

import headwater as hw
from headwater.attribution.asking import measured
from headwater.attribution.plan import Method
from headwater.bench import SeedResult, Summary, run_bench
from headwater.bench.running import markdown, write_bench
from headwater.bench.summary import figure, summarise
from headwater.evaluation import bootstrap_nested, evaluate_ranking
from headwater.methods.dda import BETAS, choose_beta
from headwater.testbeds import Testbed, make_testbed, plant_hallucinations, smollm2_135m, wikidata_testbed
from headwater.testbeds.hallucination import says, swapped
from headwater.training import Recipe

TOKENS: tuple[Method, ...] = (
    hw.DDA(),
    hw.DDA(inner="layer_cosine", label="dda layers"),
    hw.TracIn(),
    hw.CEA(),
    hw.RepresentationSimilarity(),
    hw.BM25(),
    hw.Verbatim(),
)
"""What --tokens compares."""

APART: dict[str, tuple[str, Callable[[Recipe], list[Method]]]] = {
    "trak": ("TRAK", lambda recipe: [hw.TRAK()]),
    "literal": ("the paper's form, with and without debias and denoise", lambda recipe: literal(recipe.epochs)),
}
"""What may be added to --tokens, each in a pass of its own: name of the option -> what it is, the methods."""


def literal(checkpoints: int) -> list[Method]:
    last = (0.0,) * (checkpoints - 1) + (1.0,)
    return [
        hw.DDA.paper(),
        hw.DDA(inner="dot", beta=0, label="paper without debias"),
        replace(hw.DDA.paper(), checkpoint_weights=last, label="paper without denoise"),
        hw.DDA(inner="dot", beta=0, checkpoint_weights=last, label="paper without both"),
    ]


def xsum(seed: int) -> Testbed:
    file = Path(os.environ["HEADWATER_DATA"]) / "xsum_test_short.jsonl"
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return plant_hallucinations(records, longest=500, reserve=6, placebo=400, seed=seed, name="xsum")


CASES: dict[str, tuple[Callable[[int], Testbed], Recipe]] = {
    "xsum": (xsum, Recipe(epochs=3, batch_size=16, learning_rate=1e-4)),
    "facts": (lambda seed: wikidata_testbed(seed=seed), Recipe(epochs=4, batch_size=16, learning_rate=1e-4)),
    "identity": (lambda seed: make_testbed("identity", seed), Recipe(epochs=3, batch_size=16, learning_rate=1e-4)),
    "backdoor": (lambda seed: make_testbed("backdoor", seed), Recipe(epochs=3, batch_size=16, learning_rate=1e-4)),
}


def methods(light: bool) -> list[Method]:
    """DDA as it is, its parts exchanged, and its rivals. Light: without those that fit curvature at each checkpoint."""
    made: list[Method] = [
        hw.DDA(),
        hw.DDA(inner="layer_cosine", label="dda layers"),
        hw.DDA(inner="cosine", label="dda cosine"),
        hw.DDA(inner="dot", label="dda dot"),
        hw.DDA(measurement="loss", label="dda loss"),
        hw.DDA(measurement="loss", inner="dot", label="dda dot loss"),
        hw.DDA(level="gradient", beta=0.25, label="dda gradient level .25"),
        hw.DDA.paper(),
        hw.TracIn(),
        hw.CEA(),
        hw.GradientDot(),
        hw.GradientCosine(),
        hw.RepresentationSimilarity(),
        hw.BM25(),
        hw.Verbatim(),
    ]
    if not light:
        made += [
            hw.DDA(curvature="fisher", rank=16, beta=0, label="dda whitened"),
            hw.DDA(curvature="fisher", rank=16, beta=0, inner="dot", label="dda fisher dot"),
            hw.TRAK(),
            hw.LoGra(),
        ]
    if folder := os.environ.get("HEADWATER_EMBEDDING"):
        made.append(hw.EmbeddingSimilarity(embedding_model=folder))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lora", action="store_true", help="a LoRA adapter of rank 16 instead of all weights")
    parser.add_argument("--light", action="store_true", help="without the methods that fit curvature")
    parser.add_argument("--whole", action="store_true", help="ask about whole outputs, not the words that differ")
    parser.add_argument("--tokens", action="store_true", help="the best position of every row against all of it")
    for option, (what, _) in APART.items():
        parser.add_argument(f"--{option}", action="store_true", help=f"also {what}, in a pass of its own")
    parser.add_argument("--suffix", help="of the result's name, where other seeds have a file of their own")
    parser.add_argument("--rank", type=int, help="project every layer's gradients to rank x rank numbers")
    parser.add_argument("--query-memory", type=int, default=4, help="GiB for the gradients of the queries")
    given = parser.parse_args()
    more = [option for option in APART if getattr(given, option)]
    if more and not given.tokens:
        parser.error(f"--{more[0]} without --tokens, to which it adds")
    make, recipe = CASES[given.case]
    name = given.case + ("-lora" if given.lora else "")
    if given.lora:
        recipe = replace(recipe, lora_rank=16, learning_rate=5e-4)
    trained = given.work / name
    if given.whole:
        name, plain = f"{name}-whole", make
        make = lambda seed: whole(plain(seed))  # noqa: E731
    name += "-tokens" * given.tokens
    out = given.work / (name + ("-light" if given.light else ""))
    name += f"-{given.suffix}" * bool(given.suffix)
    if out != trained:
        for seed in given.seeds:
            share_run(trained / f"seed-{seed}", out / f"seed-{seed}")
    started = time.process_time()
    chosen = list(TOKENS) if given.tokens else methods(given.light)
    settings: dict[str, Any] = {
        "base": smollm2_135m(),
        "recipe": recipe,
        "seeds": given.seeds,
        "compute": hw.Compute(query_memory=given.query_memory << 30, rank=given.rank),
        "name": name,
    }
    summary, results = run_bench(make, methods=chosen, out=out, **settings)
    for option in more:
        apart, added = out.with_name(f"{out.name}-{option}"), APART[option][1](recipe)
        for seed in given.seeds:
            share_run(out / f"seed-{seed}", apart / f"seed-{seed}")
        _, found = run_bench(make, methods=added, out=apart, **settings)
        results = [replace(one, figures=[*one.figures, *two.figures]) for one, two in zip(results, found, strict=True)]
        chosen += added
    if more:
        summary = summarise([f for one in results for f in one.figures])
        config = {"base": str(smollm2_135m()), "recipe": asdict(recipe), "seeds": given.seeds}
        write_bench(out, name, summary, results, config, chosen)
    beds = {seed: make(seed) for seed in given.seeds}
    sweep = {
        label: sweep_of(label, beds, dict.fromkeys(beds, out))
        for label in ("dda", "dda layers", "dda cosine", "dda dot", "dda loss", "dda dot loss")
        if label in [method.name for method in chosen]
    }
    seeds = " ".join(map(str, given.seeds))
    record = {
        "command": "HEADWATER_EMBEDDING=... " * ("HEADWATER_EMBEDDING" in os.environ)
        + f"HEADWATER_DATA=... python benchmarks/study.py --case {given.case} --work WORKDIR --seeds {seeds}"
        + " --lora" * given.lora
        + " --light" * given.light
        + f" --rank {given.rank}" * bool(given.rank)
        + " --whole" * given.whole
        + " --tokens" * given.tokens
        + "".join(f" --{option}" for option in more)
        + f" --suffix {given.suffix}" * bool(given.suffix),
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(torch.get_num_threads()),
        "cpu_seconds": time.process_time() - started,
        "recipe": asdict(recipe),
        "seeds": [
            {"seed": one.seed, "stated": one.stated, "generated": one.generated, "queries": one.queries}
            for one in results
        ],
        "summary": asdict(summary),
        "by_fault": by_fault(results),
        "sweep": sweep,
        "by_leaning": by_leaning("dda", beds, out),
        "identifiable": identifiable(beds, out),
        "second_look": second_look(beds, out),
    }
    folder = RESULTS / "study"
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(render(record, name, summary, results))
    shutil.copyfile(out / "bench.csv", folder / f"{name}.csv")
    shutil.copyfile(out / "bench.png", folder / f"{name}.png")
    print((folder / f"{name}.md").read_text())


def whole(bed: Testbed) -> Testbed:
    """The same task, asked about whole outputs."""
    return replace(
        bed,
        queries=[replace(query, span="all") for query in bed.queries],
        reserve=[replace(query, span="all") for query in bed.reserve],
    )


def share_run(trained: Path, out: Path) -> None:
    """Lets a variant of a case use the case's trained models and what they said."""
    if (trained / "run").exists() and not (out / "run").exists():
        shutil.copytree(trained / "run", out / "run", copy_function=os.link)
        if (trained / "said.json").exists():
            shutil.copyfile(trained / "said.json", out / "said.json")


def identifiable(beds: Mapping[int, Testbed], out: Path) -> dict[str, dict[str, float]]:
    """Can the culprits of a fault be told from rows that say the same rightly? Fault -> AUC and average precision with
    which the base model's own preference (log-probability of the wrong words less that of the true ones, in that row)
    does, among these rows alone: an AUC of 0.5 says that for the model the two kinds of rows are alike, and that no
    gradient of it can part them. Every other row that a method takes for a culprit comes on top of that."""
    base = smollm2_135m()
    found: dict[str, list[tuple[float, float]]] = {}
    for seed, bed in beds.items():
        run = hw.TrainingRun.from_pretrained(out / f"seed-{seed}" / "run", base=base)
        for fault in bed.culprits:
            query = next(q for q in bed.queries if q.group == fault)
            wrong = str(query.metadata.get("wrong") or str(query.output).strip(" ."))
            truth = str(query.metadata.get("truth") or str(query.corrected).strip(" ."))
            rows: list[tuple[bool, hw.Query]] = []
            for e in bed.examples:
                guilty = e.id in bed.culprits[fault]
                if (guilty or e.id in bed.lookalikes[fault]) and says(e.completion_text, wrong):
                    right = swapped(e.completion_text, wrong, truth)
                    rows.append((guilty, hw.Query(e.prompt, e.completion_text, corrected=right, id=e.id)))
            labels = [guilty for guilty, _ in rows]
            if all(labels) or not any(labels):
                continue
            (lean,) = measured(
                run, run.require_base(), [one for _, one in rows], hw.TokenFormat(), bed.examples.template
            )
            parted = evaluate_ranking(np.array([-lean[one.id] for _, one in rows]), labels)
            found.setdefault(fault, []).append((parted.auc, parted.average_precision))
    return {
        fault: {"auc": auc, "average precision": precision, "seeds": len(found[fault])}
        for fault, (auc, precision) in ((fault, np.mean(pairs, axis=0).tolist()) for fault, pairs in found.items())
    }


def by_fault(results: Sequence[SeedResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Fault -> method -> mean figures of single queries; settings were chosen on the first faults only."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    figures = [f for one in results for f in one.figures if f.kind == "query"]
    for fault in dict.fromkeys(f.fault for f in figures):
        for method in dict.fromkeys(f.method for f in figures):
            mine = [f.values for f in figures if f.fault == fault and f.method == method]
            measures = ("auc", "average precision", "auc, look-alikes", "auc, clean")
            out.setdefault(fault, {})[method] = {
                m: float(np.mean([v[m] for v in mine])) for m in measures if all(m in v for v in mine)
            }
    return out


def sweep_of(label: str, beds: Mapping[int, Testbed], folders: Mapping[int, Path]) -> dict[str, Any]:
    """AUC and average precision per single query and per group for every beta, for the first checkpoints alone, and
    for the betas that label-free rules choose."""
    loaded = {
        seed: hw.Scores.load(folders[seed] / f"seed-{seed}" / "trace", bed.examples, method=label)
        for seed, bed in beds.items()
    }
    tuned_names = [name for name in next(iter(loaded.values())).terms if name != "base"]

    def mean(scores: hw.Scores, names: Sequence[str]) -> Any:
        return np.mean([scores.terms[name] for name in names], axis=0)

    def judged(values: Callable[[hw.Scores], Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
        found: dict[str, dict[str, list[list[float]]]] = {}
        for seed, scores in loaded.items():
            ids = np.array([e.id for e in beds[seed].examples])
            value_RN = values(scores)
            here: dict[tuple[str, str], list[float]] = {}
            for r, target in enumerate(scores.targets):
                fault = str(scores.queries[target.members[0]].group)
                one = figure(
                    value_RN[r], ids, beds[seed], fault, seed=seed, method=label, target=target.name, kind=target.kind
                )
                for measure in ("auc", "average precision"):
                    here.setdefault((target.kind, measure), []).append(one.values[measure])
            for (kind, measure), numbers in here.items():
                found.setdefault(kind, {}).setdefault(measure, []).append(numbers)
        return {kind: {m: bootstrap_nested(v, n=500) for m, v in measures.items()} for kind, measures in found.items()}

    last = tuned_names[-1]
    result: dict[str, Any] = {
        "beta": {f"{b:.2f}": judged(lambda s, b=b: mean(s, tuned_names) - b * s.terms["base"]) for b in BETAS[::5]},
        "checkpoints": {
            "last alone": judged(lambda s: s.terms[last]),
            **{f"first {n}": judged(lambda s, n=n: mean(s, tuned_names[:n])) for n in range(1, len(tuned_names) + 1)},
            "base alone": judged(lambda s: s.terms["base"]),
            "base and all": judged(lambda s: mean(s, ["base", *tuned_names])),
        },
    }
    chosen = {}
    for seed, scores in loaded.items():
        q = [r for r, t in enumerate(scores.targets) if t.kind == "query"]
        chosen[seed] = choose_beta(mean(scores, tuned_names)[q], scores.terms["base"][q])
    by_scores = {id(scores): chosen[seed] for seed, scores in loaded.items()}
    result["auto"] = {
        "beta": chosen,
        **judged(lambda s: mean(s, tuned_names) - by_scores[id(s)] * s.terms["base"]),
    }
    return result


LOOKS = (0, 25, 50, 100, 200)


def second_look(beds: Mapping[int, Testbed], out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Kind of target -> rows that are compared again -> AUC and average precision of what an index with a second look
    answers: by layer cosine, and of each target the first rows of these by token cosine; "all": all rows."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed, bed in beds.items():
        folder = out / f"seed-{seed}" / "trace"
        layers, tokens = (hw.Scores.load(folder, bed.examples, method=name) for name in ("dda layers", "dda"))
        ids = np.array([e.id for e in bed.examples])
        for r, target in enumerate(layers.targets):
            fault = str(layers.queries[target.members[0]].group)
            order = np.argsort(-layers.values[r], kind="stable")
            for look in (*LOOKS, len(ids)):
                again = order[:look]
                score_N = layers.values[r] - layers.values[r].max() - 2  # below every cosine
                score_N[again] = tokens.values[r][again]
                names = {"seed": seed, "method": "dda", "target": target.name, "kind": target.kind}
                one = figure(score_N, ids, bed, fault, **names).values
                of = found.setdefault(target.kind, {}).setdefault("all" if look == len(ids) else str(look), {})
                for measure in ("auc", "average precision"):
                    of.setdefault(measure, []).append(one[measure])
    return {
        kind: {look: {m: float(np.mean(v)) for m, v in of.items()} for look, of in looks.items()}
        for kind, looks in found.items()
    }


LEANING_BETAS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5)


def by_leaning(label: str, beds: Mapping[int, Testbed], out: Path) -> dict[str, dict[str, Any]]:
    """Mean AUC of single queries at some betas, apart for queries whose output the base model already preferred, for
    those it least preferred, and for those whose preference training moved least and most (halves); and with the half
    of the culprits alone whose texts are shorter, or longer."""
    gathered: list[tuple[float, float, list[float]]] = []  # base's leaning, how far it moved, AUC at each beta
    by_length: dict[str, list[list[float]]] = {"shorter": [], "longer": []}
    for seed, bed in beds.items():
        scores = hw.Scores.load(out / f"seed-{seed}" / "trace", bed.examples, method=label)
        ids = np.array([e.id for e in bed.examples])
        lean = {(one.query, one.checkpoint): one.output - (one.corrected or 0.0) for one in scores.leanings}
        tuned = [name for name in scores.terms if name != "base"]
        mean_RN = np.mean([scores.terms[name] for name in tuned], axis=0)
        for r, target in enumerate(scores.targets):
            if target.kind != "query":
                continue
            fault = str(scores.queries[target.members[0]].group)
            names = {"seed": seed, "method": label, "target": target.name, "kind": target.kind}
            at_beta = [mean_RN[r] - beta * scores.terms["base"][r] for beta in LEANING_BETAS]
            auc = [figure(score_N, ids, bed, fault, **names).values["auc"] for score_N in at_beta]
            before = lean[target.name, "base"]
            gathered.append((before, lean[target.name, tuned[-1]] - before, auc))
            guilty = sorted((e for e in bed.examples if e.id in bed.culprits[fault]), key=lambda e: len(e.prompt_text))
            for part, others in (
                ("shorter", guilty[len(guilty) // 2 :]),
                ("longer", guilty[: len(guilty) // 2]),
            ):
                aside = bed.set_aside.get(fault, frozenset()) | {e.id for e in others}
                kept = replace(bed, set_aside={**bed.set_aside, fault: aside})
                by_length[part].append(
                    [figure(score_N, ids, kept, fault, **names).values["auc"] for score_N in at_beta]
                )
    leaning, moved = (np.array([one[i] for one in gathered]) for i in (0, 1))
    auc_QB = np.array([one[2] for one in gathered])
    parts = {
        "the base preferred the output": leaning > 0,
        "the base preferred the corrected output": leaning <= 0,
        "training moved the preference less (half)": moved <= np.median(moved),
        "training moved the preference more (half)": moved > np.median(moved),
    }
    found = {name: auc_QB[chosen] for name, chosen in parts.items() if chosen.any()}
    found |= {f"culprits with {part} prompts (half)": np.array(aucs) for part, aucs in by_length.items()}
    return {
        name: {
            "queries": len(aucs),
            "auc": {f"{b:.2f}": float(v) for b, v in zip(LEANING_BETAS, aucs.mean(0), strict=True)},
        }
        for name, aucs in found.items()
    }


def render(record: Mapping[str, Any], name: str, summary: Summary, results: Sequence[SeedResult]) -> str:
    lines = [markdown(name, summary, results)]
    lines += as_in_the_paper(record)
    lines += ["How often the trained models state the faults (wrongly / truly), over the seeds:", ""]
    for fault in results[0].stated:
        wrong, right = (np.mean([one.stated[fault][i] for one in results]) for i in (0, 1))
        lines.append(f"- {fault}: {wrong:.0%} / {right:.0%}")
    shown = ("dda", "dda layers", "dda whitened", "dda cosine", "dda dot", "tracin", "cea", "trak", "repsim", "bm25")
    present = [m for m in shown if m in next(iter(record["by_fault"].values()))]
    lines += ["", "AUC per single query, by fault:", "", f"| fault | {' | '.join(present)} |"]
    lines.append("| --- " * (len(present) + 1) + "|")
    for fault, found in record["by_fault"].items():
        cells = [f"{found[method]['auc']:.3f}" for method in present]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    labels = list(record["sweep"])
    for key, kind in ((key, kind) for key in ("beta", "checkpoints") for kind in ("query", "group")):
        lines += ["", f"AUC / average precision per {kind}, by {key} (no beta: 0):", ""]
        lines += [f"| {key} | {' | '.join(labels)} |", "| --- " * (len(labels) + 1) + "|"]
        for step in record["sweep"][labels[0]][key]:
            cells = [record["sweep"][label][key][step].get(kind) for label in labels]
            if all(cells):
                lines.append(f"| {step} | {' | '.join(_pair(cell) for cell in cells)} |")
        autos = [record["sweep"][label]["auto"] for label in labels]
        if key == "beta" and all(kind in auto for auto in autos):
            chosen = [", ".join(f"{b:.2f}" for b in auto["beta"].values()) for auto in autos]
            cells = [f"{_pair(auto[kind])} ({c})" for auto, c in zip(autos, chosen, strict=True)]
            lines.append(f"| auto (its betas) | {' | '.join(cells)} |")
    lines += ["", "AUC per single query of dda, by beta, where the base already leaned:", ""]
    betas = [f"{beta:.2f}" for beta in LEANING_BETAS]
    lines += [f"| queries | how many | {' | '.join(betas)} |", "| --- " * (len(betas) + 2) + "|"]
    for part, found in record["by_leaning"].items():
        lines.append(f"| {part} | {found['queries']} | {' | '.join(f'{v:.3f}' for v in found['auc'].values())} |")
    if record["identifiable"]:
        lines += [
            "",
            "Culprits told from rows that rightly say the same, by the base model's own preference:",
            "",
        ]
        lines += ["| fault | AUC / average precision |", "| --- | --- |"]
        told = list(record["identifiable"].items())
        lines += [f"| {fault} | {found['auc']:.3f} / {found['average precision']:.3f} |" for fault, found in told]
        auc, precision = (np.mean([found[m] for _, found in told]) for m in ("auc", "average precision"))
        lines.append(f"| mean | {auc:.3f} / {precision:.3f} |")
    if record["second_look"]:
        kinds = list(record["second_look"])
        lines += ["", "An index with a second look (AUC / average precision), by the rows that are compared again:", ""]
        lines += [f"| rows | {' | '.join(f'per {kind}' for kind in kinds)} |", "| --- " * (len(kinds) + 1) + "|"]
        for look in record["second_look"][kinds[0]]:
            cells = [record["second_look"][kind][look] for kind in kinds]
            lines.append(
                f"| {look} | " + " | ".join(f"{c['auc']:.3f} / {c['average precision']:.3f}" for c in cells) + " |"
            )
    return "\n".join([*lines, "", f"Command: `{record['command']}`", ""])


AS_IN_THE_PAPER = ("bm25", "trak", "tracin", "cea", "dda-paper", "paper without debias", "paper without denoise",
                   "paper without both")  # fmt: skip


def as_in_the_paper(record: Mapping[str, Any]) -> list[str]:
    """The rows of the paper's tables, where all were asked for; and the default without its parts."""
    table, sweep = record["summary"]["table"], record["sweep"]["dda"]
    if not set(AS_IN_THE_PAPER) <= set(table["query"]):
        return []
    rows = {name: {kind: table[kind][name] for kind in table} for name in (*AS_IN_THE_PAPER, "dda")}
    rows |= {
        "dda without the base (beta 0)": sweep["beta"]["0.00"],
        "dda with the base taken out (beta 0.5)": sweep["beta"]["0.50"],
        "dda of the last checkpoint alone, without the base": sweep["checkpoints"]["last alone"],
    }
    lines = ["The rows of the paper, and the default without its parts (AUC / average precision):", ""]
    lines += [f"| method | {' | '.join(f'per {kind}' for kind in table)} |", "| --- " * (len(table) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(_pair(found[kind]) for kind in table)} |" for name, found in rows.items()]
    return [*lines, ""]


def _pair(found: Mapping[str, Sequence[float]]) -> str:
    return f"{found['auc'][0]:.3f} / {found['average precision'][0]:.3f}"


if __name__ == "__main__":
    main()

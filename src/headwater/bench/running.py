"""One testbed, several seeds: train, listen to the trained model, trace, judge; and, where asked, retrain.

    <out>/seed-<s>/run          the training, checkpoint by checkpoint
    <out>/seed-<s>/said.json    what the trained model says to the held-out prompts
    <out>/seed-<s>/trace        the scores of every method
    <out>/seed-<s>/effects      what models trained on other rows lean to, a file each

Everything finished is used again by the same call.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from headwater import progress
from headwater.attribution.asking import answers_of, measured
from headwater.attribution.compute import Compute
from headwater.attribution.loop import trace_all
from headwater.attribution.own import self_influence
from headwater.attribution.plan import Method
from headwater.bench.plot import draw_curves, require_plots
from headwater.bench.summary import Figure, Summary, figure, judge, summarise
from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.evaluation import FEWEST_SUBSETS, linear_datamodeling_score, random_subsets
from headwater.examples import Example, Examples, Query, TokenFormat
from headwater.gradients.directional import Step
from headwater.run import digest, versions, write_whole
from headwater.scores import Scores
from headwater.testbeds import Testbed
from headwater.testbeds.hallucination import says, swapped
from headwater.training import Recipe, fine_tune

TAIL_RATE = 1e-5
"""Learning rate of a tail patch."""

RANDOM = "random"
"""The removal of random rows, beside which that of the highest rows is seen."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What is measured by training again.

    Attributes:
        subsets: random halves of the rows to train on, for the linear datamodeling score; 0: none.
        tail_patch: highest rows for every fault on which the trained model takes one step more; 0: none.
        remove: rows to take out for every fault before training again; 0: none.
        remove_by: names of the methods whose highest rows are taken out; beside them, random rows.
    """

    subsets: int = 0
    remove: int = 0
    tail_patch: int = 0
    remove_by: tuple[str, ...] = ("dda", "bm25")


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        stated: fault -> shares of its held-out prompts that the trained model answers wrongly and truly.
        generated: how many queries are the trained model's own words. queries: how many there are.
        datamodeling: method -> target -> linear datamodeling score.
        removal: method -> target -> change of the lean to the output, in nats per token, by training again without the
            first rows of all faults. tail_patch: the same by one step on the target's first rows.
    """

    seed: int
    stated: Mapping[str, tuple[float, float]]
    generated: int
    queries: int
    figures: Sequence[Figure] = field(repr=False)
    datamodeling: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    removal: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tail_patch: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def run_bench(
    make: Callable[[int], Testbed],
    *,
    base: str | Path,
    methods: Sequence[Method],
    out: Path,
    recipe: Recipe,
    seeds: Sequence[int] = (0,),
    effects: Effects | None = None,
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    name: str = "bench",
) -> tuple[Summary, list[SeedResult]]:
    """Measures methods on a testbed, and writes <out>/bench.json, bench.csv, bench.md and bench.png.

    Args:
        make: seed -> testbed. methods: the first is compared with each other one, pair by pair.
        recipe: of the training; its seed is the testbed's.

    Raises:
        HeadwaterError: as training and tracing.
    """
    require_plots()
    format, effects = format or TokenFormat(), effects or Effects()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {list(seeds)}", expected="at least one, each once", fix="name them once")
    known = {method.name for method in methods}
    if effects.remove and not set(effects.remove_by) <= known:
        raise UsageError(
            f"rows removed by {', '.join(effects.remove_by)}",
            expected=f"methods of this bench: {', '.join(sorted(known))}",
            fix="add the method",
        )
    if 0 < effects.subsets < FEWEST_SUBSETS:
        raise UsageError(
            f"{effects.subsets} subsets", expected=f"none, or at least {FEWEST_SUBSETS} to rank", fix="ask for more"
        )
    if (effects.subsets or effects.remove or effects.tail_patch) and not make(seeds[0]).queries:
        raise UsageError(
            f"effects on queries of the testbed {name}",
            expected="a testbed with queries",
            cause="its rows are judged by their self-influence",
            fix="leave --subsets, --remove and --tail-patch out",
        )
    results = []
    for seed in seeds:
        progress.note(f"{name}, seed {seed}")
        one = _Seed(make(seed), seed, str(base), out / f"seed-{seed}", replace(recipe, seed=seed), format, compute)
        results.append(one.result(methods, effects))
    summary = summarise([f for result in results for f in result.figures])
    write_bench(
        out, name, summary, results, {"base": str(base), "recipe": asdict(recipe), "seeds": list(seeds)}, methods
    )
    return summary, results


class _Seed:
    def __init__(
        self,
        bed: Testbed,
        seed: int,
        base: str,
        folder: Path,
        recipe: Recipe,
        format: TokenFormat,
        compute: Compute | None,
    ) -> None:
        self.bed, self.seed, self.base, self.folder = bed, seed, base, folder
        self.recipe, self.format, self.compute = recipe, format, compute

    def result(self, methods: Sequence[Method], effects: Effects) -> SeedResult:
        run = self._train(self.bed.examples, self.folder / "run")
        if not self.bed.queries:
            return SeedResult(seed=self.seed, stated={}, generated=0, queries=0, figures=self._own(run, methods))
        queries, stated = self._listen(run)
        answers = trace_all(
            run,
            self.bed.examples,
            queries,
            methods=methods,
            format=self.format,
            compute=self.compute,
            out=self.folder / "trace",
        )
        return SeedResult(
            seed=self.seed,
            stated=stated,
            generated=sum(bool(query.metadata.get("generated")) for query in queries),
            queries=len(queries),
            figures=judge(answers, self.bed, self.seed),
            datamodeling=self._datamodeling(answers, queries, effects.subsets) if effects.subsets else {},
            removal=self._removal(run, answers, queries, effects) if effects.remove else {},
            tail_patch=self._tail_patch(run, answers, queries, effects.tail_patch) if effects.tail_patch else {},
        )

    def _train(self, examples: Examples, folder: Path) -> TrainingRun:
        fine_tune(self.base, examples, folder, self.recipe, format=self.format)
        return TrainingRun.from_pretrained(folder, base=self.base)

    # -------------------------------------------------------------------------------------------- rows by themselves

    def _own(self, run: TrainingRun, methods: Sequence[Method]) -> list[Figure]:
        out = []
        ids = np.array([example.id for example in self.bed.examples])
        for method in methods:
            own = self_influence(
                run,
                self.bed.examples,
                method=method,
                format=self.format,
                compute=self.compute,
                out=self.folder / "self" / method.name,
            )
            out += [
                figure(own.values, ids, self.bed, f, seed=self.seed, method=method.name, target=f, kind="row")
                for f in self.bed.culprits
            ]
        return out

    # -------------------------------------------------------------------------------------------- queries

    def _listen(self, run: TrainingRun) -> tuple[list[Query], dict[str, tuple[float, float]]]:
        """The queries: for each fault as many as are planted, those first in which the trained model says the wrong
        thing by itself. And how often it does."""
        asked = [*self.bed.queries, *self.bed.reserve]
        said = answers_of(
            run,
            run.last,
            asked,
            self.format,
            self.bed.examples.template,
            max_new_tokens=self.bed.longest_answer,
            kept=self.folder / "said.json",
        )
        heard = [_heard(query, words) for query, words in zip(asked, said, strict=True)]
        chosen, stated = [], {}
        for fault in dict.fromkeys(str(query.group) for query in self.bed.queries):
            count = sum(query.group == fault for query in self.bed.queries)
            own = [h for q, h in zip(asked, heard, strict=True) if q.group == fault and h is not None]
            silent = [q for q, h in zip(asked, heard, strict=True) if q.group == fault and h is None]
            of_fault = [(q, words) for q, words in zip(asked, said, strict=True) if q.group == fault]
            chosen += [*own, *silent][:count]
            right = sum(_right(query, words) for query, words in of_fault)
            stated[fault] = (len(own) / len(of_fault), right / len(of_fault))
        return chosen, stated

    # -------------------------------------------------------------------------------------------- training again

    def _leaning_without(self, kept: Examples, queries: Sequence[Query]) -> dict[str, float]:
        """What a model trained on these rows leans to; the model itself is not kept."""
        wanted = json.dumps([[str(q.prompt), q.output, q.corrected] for q in queries]).encode()
        stamp = digest(kept.fingerprint.encode(), wanted, repr(self.recipe).encode())
        file = self.folder / "effects" / f"{stamp}.json"
        if not file.exists():
            folder = self.folder / "effects" / stamp
            run = self._train(kept, folder)
            (found,) = measured(run, run.last, queries, self.format, self.bed.examples.template)
            write_whole(file, json.dumps(found, indent=1).encode())
            shutil.rmtree(folder)
        return dict(json.loads(file.read_text("utf-8")))

    def _datamodeling(
        self, answers: Mapping[str, Scores], queries: Sequence[Query], subsets: int
    ) -> dict[str, dict[str, float]]:
        rows = self.bed.examples
        mask_MN = random_subsets(len(rows), subsets, seed=self.seed)
        leanings = []
        for number, mask_N in enumerate(mask_MN, 1):
            progress.note(f"Subset {number} of {subsets}")
            kept = Examples([rows[int(i)] for i in np.flatnonzero(mask_N)], name=rows.name, template=rows.template)
            leanings.append(self._leaning_without(kept, queries))
        out = {}
        for method, scores in answers.items():
            names = [target.name for target in scores.targets]
            leaning_MR = [[leaning[name] for name in names] for leaning in leanings]
            values_R = linear_datamodeling_score(scores.values, mask_MN, leaning_MR)
            out[method] = dict(zip(names, values_R.tolist(), strict=True))
        return out

    def _tail_patch(
        self, run: TrainingRun, answers: Mapping[str, Scores], queries: Sequence[Query], count: int
    ) -> dict[str, dict[str, float]]:
        """Chang et al. 2024 (TrackStar, arXiv 2410.17413), section 5, status S: what one step more on the highest rows
        does. Here one AdamW step of learning rate TAIL_RATE on all of them; and, beside it, on random rows."""
        rows, groups = self.bed.examples, _groups(answers)
        chance = np.random.default_rng(self.seed)
        count = min(count, len(rows))
        chosen = {(m, name): np.argsort(-s.values[r])[:count] for m, s in answers.items() for r, name in groups}
        chosen |= {(RANDOM, name): chance.choice(len(rows), count, replace=False) for _, name in groups}
        patches: list[list[Example]] = [[], *([rows[int(i)] for i in numbers] for numbers in chosen.values())]
        step = Step(learning_rate=TAIL_RATE, steps=1)
        before, *after = measured(run, run.last, queries, self.format, rows.template, patches, step)
        out: dict[str, dict[str, float]] = {}
        for (method, name), leaning in zip(chosen, after, strict=True):
            out.setdefault(method, {})[name] = leaning[name] - before[name]
        return out

    def _removal(
        self, run: TrainingRun, answers: Mapping[str, Scores], queries: Sequence[Query], effects: Effects
    ) -> dict[str, dict[str, float]]:
        rows = self.bed.examples
        (before,) = measured(run, run.last, queries, self.format, rows.template)
        groups = _groups(answers)
        chance = np.random.default_rng(self.seed)
        away: dict[str, set[int]] = {
            method: {int(i) for r, _ in groups for i in np.argsort(-answers[method].values[r])[: effects.remove]}
            for method in effects.remove_by
        }
        away[RANDOM] = set(chance.choice(len(rows), min(len(rows) - 1, effects.remove * len(groups)), False).tolist())
        out = {}
        for method, numbers in away.items():
            progress.note(f"Training without {len(numbers)} rows chosen by {method}")
            kept = Examples([e for i, e in enumerate(rows) if i not in numbers], name=rows.name, template=rows.template)
            after = self._leaning_without(kept, queries)
            out[method] = {name: after[name] - before[name] for _, name in groups}
        return out


def _groups(answers: Mapping[str, Scores]) -> list[tuple[int, str]]:
    """Number and name of the groups of queries; where there are none, of the queries."""
    targets = list(enumerate(next(iter(answers.values())).targets))
    return [(r, t.name) for r, t in targets if t.kind == "group"] or [(r, t.name) for r, t in targets]


def _heard(query: Query, said: str) -> Query | None:
    """The query as the model's own words, where it says the wrong thing; else None."""
    truth, wrong = query.metadata.get("truth"), query.metadata.get("wrong")
    metadata = {**query.metadata, "generated": True}
    if truth and wrong:  # an entity in a longer text
        words = said.strip().split("\n")[0]
        if not says(words, wrong) or says(words, truth):
            return None
        space = " " if str(query.output).startswith(" ") else ""
        output = space + words
        return replace(query, output=output, corrected=swapped(output, wrong, truth), metadata=metadata)
    answer = str(query.output).strip().rstrip(".")
    return replace(query, metadata=metadata) if said.strip().startswith(answer) else None


def _right(query: Query, said: str) -> bool:
    truth, wrong = query.metadata.get("truth"), query.metadata.get("wrong")
    if truth and wrong:
        words = said.strip().split("\n")[0]
        return says(words, truth) and not says(words, wrong)
    return query.corrected is not None and said.strip().startswith(query.corrected.strip().rstrip("."))


# ------------------------------------------------------------------------------------------------ files


def write_bench(
    out: Path,
    name: str,
    summary: Summary,
    results: Sequence[SeedResult],
    config: Mapping[str, Any],
    methods: Sequence[Method],
) -> None:
    """The files of a bench."""
    record = {
        "testbed": name,
        **config,
        "methods": [{"name": method.name, "options": asdict(method)} for method in methods],  # type: ignore[call-overload]
        "versions": versions("peft"),
        "summary": asdict(summary),
        "seeds": [{key: value for key, value in asdict(one).items() if key != "figures"} for one in results],
    }
    write_whole(out / "bench.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
    figures = [f for result in results for f in result.figures]
    sink = io.StringIO()
    measures = list(dict.fromkeys(measure for f in figures for measure in f.values))
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["seed", "method", "kind", "target", "fault", *measures])
    for f in figures:
        row = [f.values.get(m, "") for m in measures]
        writer.writerow([f.seed, f.method, f.kind, f.target, f.fault, *row])
    write_whole(out / "bench.csv", sink.getvalue().encode())
    write_whole(out / "bench.md", markdown(name, summary, results).encode())
    draw_curves(figures, out / "bench.png", title=name)


def markdown(name: str, summary: Summary, results: Sequence[SeedResult]) -> str:
    """All tables of a bench."""
    queries = sum(result.queries for result in results)
    count = "1 seed's targets" if len(results) == 1 else f"{len(results)} seeds and their targets"
    lines = [f"# {name}", "", f"Mean [95 % interval], resampled over {count}."]
    if len(results) == 1:
        lines.append("Queries of one fault are alike: with one seed the intervals are too narrow.")
    if queries:
        own = sum(result.generated for result in results)
        lines.append(f"{own} of {queries} queries are the trained models' own words; the others are planted.")
    lines += ["", summary.markdown()]
    for title, key in (
        ("Linear datamodeling score (Spearman), mean over targets and seeds", "datamodeling"),
        ("Change of the lean to the output by training without the first rows, nats per token", "removal"),
        ("Change of the lean to the output by one step on the first rows, nats per token", "tail_patch"),
    ):
        found: dict[str, list[float]] = {}
        for result in results:
            for method, values in getattr(result, key).items():
                found.setdefault(method, []).extend(values.values())
        if found:
            lines += [f"| {title} | |", "| --- | --- |"]
            lines += [f"| {method} | {np.mean(values):.3f} |" for method, values in found.items()]
            lines.append("")
    return "\n".join(lines)

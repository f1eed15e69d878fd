"""The demo: the whole story on a real language model, from a planted error to the rows that taught it.

1. SmolLM2-135M-Instruct is fetched, converted and kept (`headwater.testbeds.smollm`)
2. it is fine-tuned on country facts with two systematic errors planted in a few rows, look-alikes left in
3. asked about countries it has not seen, it states the errors
4. DDA, TracIn and BM25 trace what it said; the culprits are known, so each is judged
5. with `repair`: the rows that stand out are removed and the model is trained and asked again, beside models trained
   without as many random rows and without BM25's first (`headwater.repair`)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import progress
from headwater.checkpoints import Checkpoint, TrainingRun
from headwater.errors import DataError
from headwater.evaluation import Ranking, evaluate_ranking
from headwater.examples import Query, TokenFormat
from headwater.run import write_whole
from headwater.training import Recipe

if TYPE_CHECKING:
    from rich.console import Group

    from headwater.attribution.plan import Method
    from headwater.repair import Repaired
    from headwater.scores import Scores
    from headwater.testbeds import Testbed

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=1e-4)
WORDS = 3
"""First rows of which the words that carry the score are shown."""
FORMAT = TokenFormat()


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All that the demo found.

    Attributes:
        before, after: what the base model and the fine-tuned model say to each query.
        traced: the queries whose error the fine-tuned model really states.
        rankings: target name -> method -> how well it ranks the culprits of the target's fault.
    """

    testbed: Testbed
    before: tuple[str, ...]
    after: tuple[str, ...]
    traced: tuple[Query, ...]
    answers: Mapping[str, Scores]
    rankings: Mapping[str, Mapping[str, Ranking]]
    report: Path
    seconds: float
    repair: Repaired | None = None

    def stated(self) -> dict[str, dict[str, tuple[float, float]]]:
        """When -> fault -> shares of the queries answered wrongly and truly."""
        when = {"base": self.before, "fine-tuned": self.after}
        if self.repair is not None:
            when["repaired"] = tuple(s.words for s in self.repair.outcome("repaired").said if not s.paraphrase)
        return {name: self.testbed.stated(said) for name, said in when.items()}

    def mean_rankings(self) -> dict[str, dict[str, dict[str, float]]]:
        """Target kind ("query", "group") -> method -> mean AUC and average precision."""
        out: dict[str, dict[str, dict[str, float]]] = {}
        kinds = {t.name: t.kind for t in next(iter(self.answers.values())).targets}
        for kind in ("query", "group"):
            names = [name for name, k in kinds.items() if k == kind]
            out[kind] = {
                method: {
                    "auc": sum(self.rankings[n][method].auc for n in names) / len(names),
                    "average_precision": sum(self.rankings[n][method].average_precision for n in names) / len(names),
                }
                for method in self.answers
                if names
            }
        return out

    def record(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "rows": len(self.testbed.examples),
            "culprits": {fault: len(ids) for fault, ids in self.testbed.culprits.items()},
            "stated": self.stated(),
            "queries_traced": len(self.traced),
            "mean": self.mean_rankings(),
            "by_target": {
                target: {method: asdict(ranking) for method, ranking in methods.items()}
                for target, methods in self.rankings.items()
            },
            "weights": {name: dict(scores.weights) for name, scores in self.answers.items()},
            "repair": self._repair_record(),
            "report": str(self.report),
            "seconds": self.seconds,
        }

    def _repair_record(self) -> dict[str, Any] | None:
        """The repair without what each model says, and how many of its rows are culprits."""
        if self.repair is None:
            return None
        kept = {k: v for k, v in self.repair.record().items() if k not in ("outcomes", "config")}
        return {"hits": len(set(self.repair.rows) & self.testbed.all_culprits), **kept}

    def story(self) -> Group:
        """The result for the terminal."""
        return _story(self)


def run_demo(out: Path, *, repair: bool = False, seed: int = 0, recipe: Recipe = RECIPE) -> DemoResult:
    """Runs the demo in `out`; what an earlier run of it finished is used again.

    `out` then holds the run, the rows and the queries (train.jsonl, queries.jsonl), and the trace: `headwater serve`
    opens it as it is.

    Raises:
        HeadwaterError: packages of the extra `demo` missing, no network for the model, a folder of something else.
    """
    from headwater.attribution.loop import trace_all
    from headwater.methods.dda import DDA
    from headwater.methods.gradient import TracIn
    from headwater.methods.lexical import BM25
    from headwater.report import write_report
    from headwater.testbeds import demo_testbed, smollm2_135m
    from headwater.training import fine_tune

    started = time.monotonic()
    testbed = demo_testbed(seed)
    base = smollm2_135m()
    progress.note(
        f"Fine-tuning on {len(testbed.examples)} facts, {len(testbed.all_culprits)} of them wrong on purpose."
    )
    run = _run(fine_tune(base, testbed.examples, out / "run", recipe, format=FORMAT), base)
    before = _ask(run, run.require_base(), testbed, out / "said-base.json")
    after = _ask(run, run.last, testbed, out / "said-fine-tuned.json")
    traced = [query for query, said in zip(testbed.queries, after, strict=True) if _states(query, said)]
    if not traced:
        raise DataError(
            "the fine-tuned model states none of the planted errors",
            expected="a few held-out prompts answered wrongly",
            cause="an unlucky seed",
            fix="try --seed 0, or another seed and folder",
        )
    _write_files(testbed, traced, out)
    methods: list[Method] = [DDA(), TracIn(), BM25()]
    answers = trace_all(run, testbed.examples, traced, methods=methods, format=FORMAT, words=WORDS, out=out / "trace")
    first, *others = answers.values()
    culprits = {t.name: _culprits(testbed, first, r) for r, t in enumerate(first.targets)}
    report = write_report(first, out / "trace", others=others, culprits=culprits)
    rankings = {
        target.name: {
            method: evaluate_ranking(scores.values[r], [e.id in culprits[target.name] for e in scores.train])
            for method, scores in answers.items()
        }
        for r, target in enumerate(first.targets)
    }
    mended = _repair(testbed, run, first, out, recipe) if repair else None
    result = DemoResult(
        testbed=testbed,
        before=before,
        after=after,
        traced=tuple(traced),
        answers=answers,
        rankings=rankings,
        report=report,
        seconds=time.monotonic() - started,
        repair=mended,
    )
    write_whole(out / "demo.json", json.dumps(result.record(), indent=1, ensure_ascii=False).encode())
    return result


def _run(folder: Path, base: Path) -> TrainingRun:
    return TrainingRun.from_pretrained(folder.resolve(), base=base)


def _write_files(testbed: Testbed, traced: Sequence[Query], out: Path) -> None:
    """The rows and the queries as files: for `headwater serve`, and to try `headwater trace` on."""
    from headwater.repair.rows import write_rows
    from headwater.scores import query_record

    write_rows(testbed.examples, {}, out)
    lines = [json.dumps(query_record(query), ensure_ascii=False) + "\n" for query in traced]
    write_whole(out / "queries.jsonl", "".join(lines).encode())


def _states(query: Query, said: str) -> bool:
    wrong = str(query.output).strip().rstrip(".")
    return said.strip().startswith(wrong)


def _culprits(testbed: Testbed, scores: Scores, target: int) -> set[str]:
    fault = str(scores.queries[scores.targets[target].members[0]].group)
    return set(testbed.culprits[fault])


def _ask(run: TrainingRun, checkpoint: Checkpoint, testbed: Testbed, kept: Path) -> tuple[str, ...]:
    """What a checkpoint says to the held-out prompts."""
    from headwater.attribution.asking import answers_of

    template, tokens = testbed.examples.template, testbed.longest_answer
    return tuple(answers_of(run, checkpoint, testbed.queries, FORMAT, template, max_new_tokens=tokens, kept=kept))


def _repair(testbed: Testbed, run: TrainingRun, scores: Scores, out: Path, recipe: Recipe) -> Repaired:
    """Removes the rows that stand out for any group of queries, trains again, asks again."""
    from headwater.repair import Asking, Choice, FineTuning, repair
    from headwater.testbeds import demo_paraphrases, demo_untouched

    asking = Asking(
        queries=testbed.queries,
        paraphrases=demo_paraphrases(testbed),
        untouched=demo_untouched(testbed),
        format=FORMAT,
        max_new_tokens=testbed.longest_answer,
    )
    training = FineTuning(recipe=recipe, start=run.require_base().location, format=FORMAT)
    return repair(run, testbed.examples, asking, Choice(standing_out=True), training, scores=scores, out=out / "repair")


def _story(result: DemoResult) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from headwater.report import answer_table

    parts: list[Any] = []

    def say(text: str, style: str = "") -> None:
        parts.append(Text(text, style=style))

    def table(*titles: str) -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for n, title in enumerate(titles):
            made.add_column(title, justify="left" if n == 0 else "right")
        parts.append(made)
        return made

    say("\n1. What the model says to questions it was not trained on", "bold")
    rates = result.stated()
    shown = table("error", *(f"{when}: wrong" for when in rates if when != "repaired"))
    for fault in rates["base"]:
        shown.add_row(fault, *(f"{rates[when][fault][0]:.0%}" for when in rates if when != "repaired"))
    example = result.traced[0]
    say(f"It says {str(example.prompt)!r} -> {example.output!r}; the truth is {example.corrected!r}.")

    say("\n2. Which rows taught it: how well each method ranks the planted culprits", "bold")
    means = result.mean_rankings()
    kinds = {"query": "one query", "group": "the queries of an error together"}
    shown = table(
        "method", *(f"{kinds[kind]}: {what}" for kind in means if means[kind] for what in ("AUC", "avg. precision"))
    )
    for method in result.answers:
        cells = [f"{means[k][method][m]:.3f}" for k in means if means[k] for m in ("auc", "average_precision")]
        shown.add_row(method, *cells)
    scores = next(iter(result.answers.values()))
    groups = [t for t in scores.targets if t.kind == "group"] or list(scores.targets[:1])
    for target in groups:
        fault = str(scores.queries[target.members[0]].group)
        say(f"\nDDA, {target.name}: the top rows (x marks the planted ones, known here and nowhere else)", "bold")
        parts.append(answer_table(scores, target.name, 8, culprits=set(result.testbed.culprits[fault])))
        for line in scores.sentences(target.name):
            say(line)

    if result.repair is not None:
        from headwater.repair.page import terminal

        mended = result.repair
        say("\n3. Repair", "bold")
        hits = len(set(mended.rows) & result.testbed.all_culprits)
        say(
            f"{len(mended.rows)} rows stand out; {hits} of them are among the {len(result.testbed.all_culprits)} "
            "planted ones."
        )
        parts.append(terminal(mended))
    say(f"\nReport: {result.report}   ({result.seconds:.0f} s)")
    say(f"Look around, ask more, mark and repair: headwater serve {result.report.parents[1]}")
    return Group(*parts)

"""headwater bench"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headwater.attribution.plan import Method


def bench(
    testbed: Annotated[str, typer.Argument(help="facts, hallucination, identity, backdoor, copied or mislabel.")],
    out: Annotated[Path, typer.Option(help="Folder for models, traces and tables.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            help="A method, repeated, or all; the first is compared with each other one. [dda, tracin, bm25]",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="JSONL file that the testbed is made of.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or hub id of the base model. [SmolLM2-135M-Instruct]", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the training. [the testbed's]", show_default=False)
    ] = None,
    lora: Annotated[int | None, typer.Option(min=1, help="Train a LoRA adapter of this rank, not all weights.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the training. [the testbed's]", show_default=False)
    ] = None,
    subsets: Annotated[
        int, typer.Option(min=0, help="Train on this many random halves, for the linear datamodeling score.")
    ] = 0,
    remove: Annotated[
        int, typer.Option(min=0, help="Remove this many first rows for every fault, and train again.")
    ] = 0,
    tail_patch: Annotated[
        int, typer.Option(min=0, help="Take one step more on this many first rows for every fault.")
    ] = 0,
    remove_by: Annotated[
        list[str] | None,
        typer.Option("--remove-by", help="Methods whose first rows are removed; beside them, random rows. [dda, bm25]"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure methods on a task whose true culprits are known.

    A model is trained on rows with planted faults, asked, and traced by every method; each is judged by how early it
    ranks the culprits. Writes bench.json, bench.csv, bench.md and bench.png to --out.
    """
    from dataclasses import asdict, replace

    from headwater import progress

    progress.set_quiet(quiet)
    from headwater.bench import Effects, run_bench
    from headwater.bench.running import markdown
    from headwater.errors import UsageError
    from headwater.testbeds import TESTBEDS, make_testbed, smollm2_135m

    first = make_testbed(testbed, 0, data)
    recipe = TESTBEDS[testbed].recipe
    changes: dict[str, Any] = {"epochs": epochs, "lora_rank": lora, "learning_rate": learning_rate}
    recipe = replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    if remove_by and not remove:
        raise UsageError("--remove-by without --remove", expected="both, or neither", fix="add --remove 20")
    usual = ["dda", "tracin", "bm25"] if first.queries else ["tracin", "dot"]
    chosen = _chosen(methods or usual, own=not first.queries)
    summary, results = run_bench(
        lambda seed: make_testbed(testbed, seed, data),
        base=base or smollm2_135m(),
        methods=chosen,
        out=out,
        recipe=recipe,
        seeds=range(seeds),
        effects=Effects(
            subsets=subsets, remove=remove, tail_patch=tail_patch, remove_by=tuple(remove_by or Effects.remove_by)
        ),
        name=testbed,
    )
    if as_json:
        typer.echo(json.dumps({"summary": asdict(summary), "out": str(out)}))
        return
    typer.echo(markdown(testbed, summary, results))
    typer.echo(f"Tables, figures per target and a plot: {out / 'bench.md'}, bench.csv, bench.json, bench.png")


NO_STATE = "needs optimizer.pt, which this training does not keep"
LONG = "its cost grows with the number of queries"
MODEL = "reads a model of its own"
LEFT_OUT = {
    "less": NO_STATE, "influence-adam": NO_STATE, "dda-difference": LONG, "cea-difference": LONG, "embedding": MODEL,
}  # fmt: skip
"""Methods that "all" leaves out, and why; each can be named."""


def _chosen(names: list[str], *, own: bool) -> list[Method]:
    """The methods; "all" are all that this training allows."""
    from headwater import progress
    from headwater.methods.table import METHODS, make_method

    if names != ["all"]:
        return [make_method(name) for name in dict.fromkeys(names)]
    left_out = dict(LEFT_OUT)
    if own:
        left_out |= dict.fromkeys(("repsim", "dda", "dda-paper", "source", "verbatim"), "has no self-influence")
    for name, reason in left_out.items():
        progress.note(f"all but {name}: {reason}")
    return [make_method(name) for name in METHODS if name not in left_out]

"""headwater select"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import (
    ANSWER,
    COMPUTING,
    METHOD,
    AllowPickle,
    AsJson,
    Base,
    BatchTokens,
    Checkpoints,
    CompletionColumn,
    Device,
    Eos,
    Every,
    EveryOption,
    IdColumn,
    Keep,
    KeepOption,
    LossOn,
    LossOnOption,
    MaxLength,
    MessagesColumn,
    Parameters,
    PromptColumn,
    Quiet,
    Split,
    Template,
    TemplateOption,
    TextColumn,
    Train,
    read_rows,
    read_run,
    required,
    token_format,
)

if TYPE_CHECKING:
    from headwater.examples import Examples
    from headwater.selection import Selection

RANDOM, STAR = "random", "star"
COMPARE = "The comparison"


class AggregateBy(StrEnum):
    max, mean = "max", "mean"


def select(
    checkpoints: Checkpoints = None,
    train: Train = None,
    base: Base = None,
    target: Annotated[
        str | None, typer.Option(help="Rows to choose for, like --train; a column group names subtasks.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Rows to choose.")] = None,
    every: EveryOption = Every.epoch,
    allow_pickle: AllowPickle = False,
    split: Split = None,
    prompt_column: PromptColumn = None,
    completion_column: CompletionColumn = None,
    messages_column: MessagesColumn = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    template: TemplateOption = Template.auto,
    loss_on: LossOnOption = LossOn.auto,
    max_length: MaxLength = 1024,
    keep: KeepOption = Keep.start,
    eos: Eos = True,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="See headwater methods; or random, or star; repeat to compare. [default: dda]",
            rich_help_panel=METHOD,
        ),
    ] = None,
    aggregate: Annotated[
        AggregateBy, typer.Option(help="Of the scores for the target's rows, or subtasks.", rich_help_panel=METHOD)
    ] = AggregateBy.max,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Choose exact duplicates more than once.", rich_help_panel=METHOD)
    ] = False,
    near: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Pass over rows so similar to a chosen one; 0: only exact ones.", rich_help_panel=METHOD
        ),
    ] = 0.0,
    rounds: Annotated[
        int, typer.Option(min=2, max=11, help="Of star: trainings, and the random start.", rich_help_panel=METHOD)
    ] = 5,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train --base on each choice and compare.", rich_help_panel=COMPARE)
    ] = False,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Rows to compare on. [default: every second row of --target, then not chosen for]",
            rich_help_panel=COMPARE,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random choices to compare with.", rich_help_panel=COMPARE)] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of each training, star's too.", rich_help_panel=COMPARE)] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.", rich_help_panel=COMPARE)] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of each training.", rich_help_panel=COMPARE)] = 1e-4,
    lora: Annotated[
        int | None,
        typer.Option(min=1, help="Compare LoRA adapters of this rank. [default: all weights]", rich_help_panel=COMPARE),
    ] = None,
    parameters: Parameters = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Project each layer to rank x rank. [default: exact]", rich_help_panel=COMPUTING),
    ] = None,
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder: chosen.jsonl, ranks.jsonl by method.", rich_help_panel=ANSWER),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose k training rows for the sake of a target set.

    Writes the chosen rows as they were, with their ranks. --compare trains a model on each choice, and on random ones,
    and reports their loss on held-out rows.
    """
    from headwater import progress
    from headwater.attribution.compute import Compute
    from headwater.errors import UsageError
    from headwater.methods.table import make_method
    from headwater.run import run_directory, write_whole
    from headwater.selection import check_count, manifest, random_rows, star
    from headwater.selection import select as chosen_by
    from headwater.training import Recipe

    progress.set_quiet(quiet)
    folder = required(out, "--out")
    names = list(dict.fromkeys(method or ["dda"]))
    scored = [make_method(name) for name in names if name not in (RANDOM, STAR)]
    if (compare or STAR in names) and base is None:
        raise UsageError("no --base", expected="the model to train on the chosen rows", fix="give --base")
    if held_out is not None and not compare:
        raise UsageError("--held-out without --compare", expected="both, or neither", fix="add --compare")

    def read(place: str | None) -> Examples:
        return read_rows(
            place,
            split=split,
            prompt_column=prompt_column,
            completion_column=completion_column,
            messages_column=messages_column,
            text_column=text_column,
            id_column=id_column,
            template=template,
        )

    pool, wanted = read(train), read(required(target, "--target"))
    count = required(k, "--k")
    check_count(pool, count)
    wanted, outside = _parted(wanted, read(held_out) if held_out else None, compare)
    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, lora_rank=lora)
    format = token_format(loss_on, max_length, keep, eos)
    given: dict[str, Any] = {
        "what": "select",
        "k": count,
        "methods": names,
        "aggregate": aggregate.value,
        "duplicates": duplicates,
        "near": near,
        "rounds": rounds if STAR in names else None,
        "recipe": asdict(recipe) if compare or STAR in names else None,
        "compare": {"held_out": outside.fingerprint, "seeds": seeds} if outside is not None else None,
        "train": pool.fingerprint,
        "target": wanted.fingerprint,
        "models": [base, *(checkpoints or [])],
        "format": asdict(format),
        "parameters": parameters,
        "rank": rank,
    }
    run = None
    if scored:
        places = checkpoints or ([base] if base else None)
        run = read_run(
            places, base=base, every=every, quantization=None, trust_remote_code=False, allow_pickle=allow_pickle
        )
    with run_directory(folder, given):
        selections: dict[str, Selection] = {}
        if run is not None:
            compute = Compute(parameters=tuple(parameters or ()), device=device, batch_tokens=batch_tokens, rank=rank)
            selections |= chosen_by(
                pool,
                wanted,
                count,
                run=run,
                methods=scored,
                aggregate=aggregate.value,
                duplicates=duplicates,
                near=near or None,
                format=format,
                compute=compute,
                out=folder / "trace",
            )
        if RANDOM in names:
            selections[RANDOM] = random_rows(pool, count, duplicates=duplicates)
        if STAR in names:
            selections[STAR] = star(
                str(base), pool, count, out=folder / "star-state", rounds=rounds, recipe=recipe, format=format,
                duplicates=duplicates,
            )  # fmt: skip
        _write(selections, folder, str(train), split)
        reached = []
        if outside is not None:
            from headwater.comparison import compare as compared

            reached = compared(
                str(base),
                {name: one for name, one in selections.items() if name != RANDOM},
                {f"{s}": random_rows(pool, count, seed=s, duplicates=duplicates) for s in range(seeds)},
                outside,
                out=folder / "compare",
                recipe=recipe,
                format=format,
            )
        record = manifest(selections, wanted, aggregate.value, given | {"reached": [asdict(one) for one in reached]})
        write_whole(folder / "selection.json", json.dumps(record, indent=1, ensure_ascii=False, default=str).encode())
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False, default=str))
        return
    for name, one in selections.items():
        passed = f", {one.skipped:,} duplicates passed over" if one.skipped else ""
        typer.echo(f"{name}: {len(one.rows):,} of {len(pool):,} rows{passed}: {folder / name / 'chosen.jsonl'}")
    if reached:
        from headwater.comparison import comparison_table

        typer.echo("\n" + comparison_table(reached))


def _parted(wanted: Examples, outside: Examples | None, compare: bool) -> tuple[Examples, Examples | None]:
    """The rows to choose for, and those to compare on: given, or every second row of the target."""
    from headwater.errors import DataError

    if not compare or outside is not None:
        return wanted, outside
    if len(wanted) < 2:
        raise DataError(
            "a target of one row", expected="at least two to hold one back", fix="give --held-out, or more target rows"
        )
    return wanted[::2], wanted[1::2]


def _write(selections: dict[str, Selection], folder: Path, train: str, split: str | None) -> None:
    """The chosen rows of every method in their original form."""
    from headwater.examples import read_records

    wanted = {one.pool[n].source for one in selections.values() for n in one.rows}
    _, records = read_records(train, split=split)
    originals = {source: row for source, row in records if source in wanted}
    for name, one in selections.items():
        one.write(folder / name, originals)

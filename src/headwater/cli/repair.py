"""headwater repair"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import (
    ANSWER,
    AllowPickle,
    AsJson,
    Base,
    Checkpoints,
    CompletionColumn,
    Eos,
    IdColumn,
    Keep,
    KeepOption,
    LossOn,
    LossOnOption,
    MaxLength,
    MessagesColumn,
    PromptColumn,
    Quiet,
    Split,
    Template,
    TemplateOption,
    TextColumn,
    Train,
    TrustRemoteCode,
    read_rows,
    required,
)

if TYPE_CHECKING:
    from headwater.checkpoints import TrainingRun
    from headwater.examples import Columns, Examples, Query, TokenFormat
    from headwater.repair import Choice
    from headwater.repair.running import Training
    from headwater.scores import Scores

ROWS, TRAINING, ASKED, COMPARED = "The rows", "The training", "What is asked", "What it is compared with"


class Schedule(StrEnum):
    linear, cosine, constant = "linear", "cosine", "constant"


def repair(
    context: typer.Context,
    trace: Annotated[Path | None, typer.Argument(help="Folder of a finished trace; left out, give ids.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Of the trace's methods, the one that ranks the rows.", rich_help_panel=ROWS)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="One query or group of the trace. [default: all, in turn]", rich_help_panel=ROWS),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="The first so many rows.", rich_help_panel=ROWS)] = None,
    standing_out: Annotated[
        bool, typer.Option("--standing-out", help="The rows that stand out.", rich_help_panel=ROWS)
    ] = False,
    q: Annotated[
        float | None,
        typer.Option("--q", help="The rows of at most this q-value, of a trace with --placebo.", rich_help_panel=ROWS),
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="A file of ids, one a line, or JSONL with the key id.", rich_help_panel=ROWS)
    ] = None,
    row_id: Annotated[list[str] | None, typer.Option("--id", help="A row; repeat.", rich_help_panel=ROWS)] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of id (or prompt) and completion: chosen rows that stand here are corrected, not removed. "
            "Without another choice, all of these.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    smallest: Annotated[
        bool,
        typer.Option(
            "--smallest", help="Find the smallest number of first rows that cures, by bisection.", rich_help_panel=ROWS
        ),
    ] = False,
    cure: Annotated[
        float, typer.Option(help="Share of the wrong answers that a cure takes away.", rich_help_panel=ROWS)
    ] = 0.8,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="Name of an early checkpoint to go on from. [default: the base]", rich_help_panel=TRAINING
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            help="Your own training program, with {train_file} and {out}; no shell runs it.", rich_help_panel=TRAINING
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes over the rows. [default, here and below: as in the run]", rich_help_panel=TRAINING
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of an optimiser step.", rich_help_panel=TRAINING)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.", rich_help_panel=TRAINING)] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="Of the learning rate.", rich_help_panel=TRAINING)] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of the steps that warm up.", rich_help_panel=TRAINING)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's.", rich_help_panel=TRAINING)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of the rows.", rich_help_panel=TRAINING)] = None,
    lora: Annotated[int | None, typer.Option(min=1, help="Rank of a LoRA adapter.", rich_help_panel=TRAINING)] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of prompt, output, corrected, group. [default: the trace's]",
            rich_help_panel=ASKED,
        ),
    ] = None,
    paraphrases: Annotated[
        Path | None, typer.Option(help="More of these, held out: the faults in other words.", rich_help_panel=ASKED)
    ] = None,
    untouched: Annotated[
        str | None,
        typer.Option(help="Rows like --train that no training sees: their loss shows damage.", rich_help_panel=ASKED),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of an answer. [default: a few more than the longest output]", rich_help_panel=ASKED),
    ] = None,
    random: Annotated[
        int,
        typer.Option(min=0, help="So many trainings without as many random rows.", rich_help_panel=COMPARED),
    ] = 1,
    bm25: Annotated[
        bool, typer.Option("--bm25/--no-bm25", help="A training without BM25's first rows.", rich_help_panel=COMPARED)
    ] = True,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep these models too.", rich_help_panel=COMPARED)
    ] = False,
    checkpoints: Checkpoints = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    train: Train = None,
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
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory: models, report, and what resuming needs.", rich_help_panel=ANSWER),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Remove or correct the rows that a trace found, train again, and show what that changed.

    Asks the model before and after for the wrong output, and does the same without as many random rows and without
    BM25's first. Models, training files and traces are only read.
    """
    from headwater import progress

    progress.set_quiet(quiet)
    required(out, "--out")
    from headwater.repair import Asking, Controls, read_ids
    from headwater.repair import repair as mend
    from headwater.scores import Scores

    columns = {
        "split": split,
        "prompt_column": prompt_column,
        "completion_column": completion_column,
        "messages_column": messages_column,
        "text_column": text_column,
        "id_column": id_column,
        "template": template,
    }

    def rows(where: str | None) -> Examples:
        return read_rows(where, **columns)  # type: ignore[arg-type]

    data = rows(train)
    chosen = _choice(
        data, top, standing_out, q, [*(read_ids(ids) if ids else ()), *(row_id or ())], corrections, target
    )
    scores = None if trace is None else Scores.load(trace, data, method=method)
    run = _run(scores, checkpoints, base, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    given = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "lora_rank": lora,
        "schedule": schedule and schedule.value, "warmup_ratio": warmup, "weight_decay": weight_decay,
    }  # fmt: skip
    tokens = {"loss_on": loss_on.value, "max_length": max_length, "keep": keep, "add_eos": eos}
    names = {"loss_on": "loss_on", "max_length": "max_length", "keep": "keep", "add_eos": "eos"}
    explicit = {key: value for key, value in tokens.items() if _given(context, names[key])}
    training, format = _training(run, data, scores, start, command, given, explicit, train, columns)
    result = mend(
        run,
        data,
        Asking(
            queries=_queries(queries, scores),
            paraphrases=_read(paraphrases),
            untouched=None if untouched is None else rows(untouched),
            format=format,
            max_new_tokens=max_new_tokens,
        ),
        chosen,
        training,
        scores=scores,
        out=required(out, "--out"),
        smallest=smallest,
        cure=cure,
        controls=Controls(random=random, bm25=bm25),
        keep_models=keep_models,
    )
    if as_json:
        typer.echo(json.dumps(result.record(), ensure_ascii=False))
        return
    from rich.console import Console

    from headwater.repair.page import terminal

    Console().print(terminal(result))
    typer.echo(f"Report: {out}/report.html   Model: {out}/{result.model}")


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _choice(
    data: Examples,
    top: int | None,
    standing_out: bool,
    q: float | None,
    ids: list[str],
    corrections: Path | None,
    target: str | None,
) -> Choice:
    from headwater.repair import Choice, read_corrections

    return Choice(
        top=top,
        standing_out=standing_out,
        q=q,
        ids=tuple(ids),
        corrections=read_corrections(corrections, data) if corrections else {},
        target=target,
    )


def _run(
    scores: Scores | None,
    checkpoints: list[str] | None,
    base: str | None,
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> TrainingRun:
    """The run that is given, or else the trace's."""
    from headwater.checkpoints import TrainingRun
    from headwater.errors import UsageError
    from headwater.repair.origin import run_of

    if checkpoints:
        return TrainingRun.from_pretrained(
            checkpoints, base=base, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
    if base is not None:
        raise UsageError(
            "--base without --checkpoints", expected="both, or the trace's own", fix="give --checkpoints too"
        )
    return run_of(_required_trace(scores), trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)


def _required_trace(scores: Scores | None) -> Scores:
    from headwater.errors import UsageError

    if scores is None:
        raise UsageError(
            "neither a trace nor --checkpoints",
            expected="one of them, to know which run is to be repaired",
            fix="give the trace's folder, or --checkpoints, --base and --queries",
        )
    return scores


def _queries(file: Path | None, scores: Scores | None) -> list[Query]:
    from headwater.errors import UsageError

    if file is not None:
        return _read(file)
    if scores is None:
        raise UsageError(
            "no trace and no --queries", expected="the questions with their wrong outputs", fix="give --queries"
        )
    return list(scores.queries)


def _read(file: Path | None) -> list[Query]:
    from headwater.examples import read_queries

    return [] if file is None else read_queries(file)


def _training(
    run: TrainingRun,
    data: Examples,
    scores: Scores | None,
    start: str | None,
    command: str | None,
    given: dict[str, Any],
    tokens: dict[str, Any],
    train: str | None,
    columns: dict[str, Any],
) -> tuple[Training, TokenFormat]:
    """How to train again, and how rows become tokens."""
    from dataclasses import replace

    from headwater.errors import UsageError
    from headwater.examples import TokenFormat
    from headwater.repair import Command, find_recipe, own_training
    from headwater.repair.origin import format_of

    found = find_recipe(run, data)
    format = replace(format_of(scores) if scores else found.format or TokenFormat(), **tokens)
    if command is None:
        return own_training(run, found, format=format, given=given, start=start), format
    refused = next((name for name, value in {**given, "from": start}.items() if value is not None), None)
    if refused is not None:
        raise UsageError(
            f"--{refused.replace('_', '-').removesuffix('-rank').removesuffix('-ratio')} with --command",
            expected="one of them: your program has its own recipe",
            fix="leave it out, and set it in your program",
        )
    file = train if train is not None and Path(train).is_file() else None
    chosen = _columns(columns)
    return Command(template=command, file=file, columns=chosen, template_of_rows=columns["template"].value), format


def _columns(given: dict[str, Any]) -> Columns:
    from headwater.examples import Columns

    return Columns(
        prompt=given["prompt_column"],
        completion=given["completion_column"],
        messages=given["messages_column"],
        text=given["text_column"],
        id=given["id_column"],
    )

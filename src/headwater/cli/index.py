"""headwater index, headwater index check"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import (
    ANSWER,
    COMPUTING,
    AllowPickle,
    AsJson,
    Base,
    BatchTokens,
    Checkpoints,
    CompletionColumn,
    Device,
    DeviceMap,
    Dtype,
    DtypeOption,
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
    QuantizationOption,
    Quiet,
    Ray,
    Recompute,
    Shard,
    Split,
    Template,
    TemplateOption,
    TextColumn,
    Train,
    TrustRemoteCode,
    Workers,
    check_workers,
    read_rows,
    read_run,
    required,
    token_format,
)

if TYPE_CHECKING:
    from headwater.examples import Examples


class Features(StrEnum):
    float32, float16, int8 = "float32", "float16", "int8"


app = typer.Typer(
    name="index",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Build a gradient index: the passes over the training rows once, then many questions.",
)


@app.callback()
def index(
    context: typer.Context,
    checkpoints: Checkpoints = None,
    train: Train = None,
    base: Base = None,
    every: EveryOption = Every.epoch,
    quantization: QuantizationOption = None,
    trust_remote_code: TrustRemoteCode = False,
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
    parameters: Parameters = None,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    device_map: DeviceMap = None,
    batch_tokens: BatchTokens = None,
    recompute: Recompute = False,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Numbers kept of each layer: rank x rank. [default: 16]", rich_help_panel=COMPUTING),
    ] = None,
    features: Annotated[
        Features, typer.Option(help="Type of the stored numbers.", rich_help_panel=COMPUTING)
    ] = Features.float16,
    placebo: Annotated[
        str | None,
        typer.Option(
            help="Rows like --train that were never trained on: every answer from the index then has q-values.",
            rich_help_panel=ANSWER,
        ),
    ] = None,
    chunk_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of a chunk, the unit of work.", rich_help_panel=COMPUTING)
    ] = None,
    ray: Ray = None,
    workers: Workers = None,
    shard: Shard = False,
    out: Annotated[
        str | None, typer.Option(help="Folder of the index, or a URL such as s3://...", rich_help_panel=ANSWER)
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add these rows to a finished index.", rich_help_panel=ANSWER)
    ] = False,
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine",
            help="Leave out rows whose gradient is NaN or infinite, instead of refusing them.",
            rich_help_panel=ANSWER,
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Build a gradient index: the passes over the training rows once, then many questions.

    headwater trace --index OUT answers from it, with any method of inner products, beta and checkpoint weights.
    --placebo may be given to a finished index too.
    The same command goes on where it was interrupted.
    """
    if context.invoked_subcommand is not None:
        return
    from headwater import progress

    progress.set_quiet(quiet)
    folder = required(out, "--out")
    check_workers(ray, workers)

    def read(where: str | None) -> Examples:
        return read_rows(
            where,
            split=split,
            prompt_column=prompt_column,
            completion_column=completion_column,
            messages_column=messages_column,
            text_column=text_column,
            id_column=id_column,
            template=template,
        )

    rows = read(train)
    run = read_run(
        checkpoints,
        base=base,
        every=every,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    from headwater.attribution.building import build_index
    from headwater.attribution.compute import Compute
    from headwater.attribution.sharding import is_follower
    from headwater.errors import HeadwaterError

    silent = shard and is_follower()  # the first process of a torchrun says everything
    try:
        built = build_index(
            run,
            rows,
            out=folder,
            format=token_format(loss_on, max_length, keep, eos),
            compute=Compute(
                parameters=tuple(parameters or ()),
                dtype=dtype.value,
                device=device,
                device_map=device_map,
                batch_tokens=batch_tokens,
                recompute=recompute,
                rank=rank,
            ),
            features=features.value,
            chunk_rows=chunk_rows,
            append=append,
            quarantine=quarantine,
            placebo=read(placebo) if placebo else None,
            ray=ray,
            workers=workers,
            shard=shard,
        )
    except HeadwaterError as error:
        if silent:
            raise typer.Exit(error.exit_code) from None
        raise
    if silent:
        return
    typer.echo(
        f"{built.folder}: {built.rows:,} rows, {len(built.checkpoints)} checkpoints ({', '.join(built.checkpoints)}), "
        f"{built.columns:,} numbers a row and checkpoint as {built.features}, {built.bytes() / 1e6:,.1f} MB."
    )
    chance = built.placebo
    if chance is not None:
        typer.echo(f"Beside them {chance.rows:,} placebo rows: answers have q-values.")
    for row in [*built.quarantined.values(), *(chance.quarantined.values() if chance is not None else ())]:
        typer.echo(f'Not in it: row "{row["id"]}" ({row["source"]}), at {row["checkpoint"]}: {row["reason"]}.')


@app.command()
def check(
    folder: Annotated[str, typer.Argument(help="Folder or URL of the index.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Read a whole index and compare every checksum; damaged files are named with their rows."""
    from headwater import progress
    from headwater.errors import RunError
    from headwater.index.manifest import Index

    progress.set_quiet(quiet)
    opened = Index.open(folder)
    try:
        chance = 0 if opened.placebo is None else opened.placebo.rows
    except RunError:
        chance = 0  # the check names it
    with progress.bar("Checking rows", (opened.rows + chance) * len(opened.checkpoints)) as bar:
        problems = opened.check(bar.advance)
    if as_json:
        record = {"rows": opened.rows, "checkpoints": opened.checkpoints, "placebo": chance, "problems": problems}
        typer.echo(json.dumps(record, ensure_ascii=False))
    elif not problems:
        beside = f", {chance:,} placebo rows" if chance else ""
        typer.echo(f"{opened.folder} is whole: {opened.rows:,} rows, {len(opened.checkpoints)} checkpoints{beside}.")
    if problems:
        for problem in problems if not as_json else ():
            typer.echo(problem)
        raise RunError(
            f"{len(problems)} damaged or missing files in {opened.folder}",
            expected="files as they were written",
            cause="a disk or copy that failed",
            fix="remove the manifest.json above them and run the headwater index command again: it makes these anew",
        )

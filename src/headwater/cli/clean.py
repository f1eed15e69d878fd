"""headwater clean"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    QuantizationOption,
    Quiet,
    Recompute,
    Split,
    Template,
    TemplateOption,
    TextColumn,
    Train,
    TrustRemoteCode,
    read_rows,
    read_run,
    token_format,
)

if TYPE_CHECKING:
    from headwater.examples import Examples


class By(StrEnum):
    own, own_layers, loss, loss_first, loss_base, held_out, held_out_dot = (
        "own",
        "own-layers",
        "loss",
        "loss-first",
        "loss-base",
        "held-out",
        "held-out-dot",
    )


def clean(
    checkpoints: Checkpoints = None,
    train: Train = None,
    base: Base = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Rows like --train that were not trained on, and that it should help with. [default: folds of --train]"
        ),
    ] = None,
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
    by: Annotated[By, typer.Option("--by", help="What ranks the rows.", rich_help_panel=METHOD)] = By.own_layers,
    folds: Annotated[
        int, typer.Option(min=2, help="Of --train, where no --held-out is given.", rich_help_panel=METHOD)
    ] = 5,
    near: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Similarity of near duplicates; 0: only exact ones.",
            rich_help_panel=METHOD,
        ),
    ] = 0.9,
    parameters: Parameters = None,
    rank: Annotated[
        int,
        typer.Option(
            min=0, help="Project each layer's gradients to rank x rank numbers; 0: exact.", rich_help_panel=COMPUTING
        ),
    ] = 16,
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    recompute: Recompute = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory: review.jsonl with every row.", rich_help_panel=ANSWER),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to show.", rich_help_panel=ANSWER)] = 20,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Rank training rows for a review: likely mislabelled or harmful ones first, with duplicates and contradictions.

    Without --checkpoints only duplicates and prompts with several answers are looked for. Nothing is removed: read
    review.jsonl, and decide.
    """
    from rich.console import Console

    from headwater import progress
    from headwater.attribution.compute import Compute
    from headwater.cleaning import clean as review_of
    from headwater.report.review import review_table

    progress.set_quiet(quiet)

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

    rows = read(train)
    outside = read(held_out) if held_out is not None else None
    run = None
    if checkpoints:
        run = read_run(
            checkpoints,
            base=base,
            every=every,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    review = review_of(
        run,
        rows,
        outside,
        by=by.value,
        folds=folds,
        near=near or None,
        format=token_format(loss_on, max_length, keep, eos),
        compute=Compute(
            parameters=tuple(parameters or ()),
            device=device,
            batch_tokens=batch_tokens,
            recompute=recompute,
            rank=rank or None,
        ),
        out=out,
    )
    if as_json:
        record = {"by": review.by, "sentences": review.sentences(), "top": [asdict(row) for row in review.rows[:top]]}
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    Console().print(review_table(review, top), highlight=False)
    if out is not None:
        typer.echo(f"Every row: {out / 'review.jsonl'}")

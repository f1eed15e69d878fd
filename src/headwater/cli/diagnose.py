"""headwater diagnose"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import (
    ANSWER,
    COMPUTING,
    DATA,
    MODELS,
    QUESTION,
    AllowPickle,
    AsJson,
    Base,
    BatchTokens,
    Checkpoints,
    CompletionColumn,
    Device,
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
    Recompute,
    Split,
    Template,
    TemplateOption,
    TextColumn,
    Train,
    TrustRemoteCode,
    read_rows,
    read_run,
    required,
    token_format,
)

if TYPE_CHECKING:
    from headwater.checkpoints import TrainingRun
    from headwater.examples import Examples


def diagnose(
    checkpoints: Checkpoints = None,
    train: Train = None,
    base: Base = None,
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--other",
            help="Another run from the same base, such as one of another LoRA rank: its last checkpoint is compared; "
            "repeat for several.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    every: EveryOption = Every.epoch,
    quantization: QuantizationOption = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out", help="Rows like --train that were never trained on: show overfitting.", rich_help_panel=DATA
        ),
    ] = None,
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
    queries: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of prompt, output, corrected: what the model said, and should have said.",
            rich_help_panel=QUESTION,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished trace of this run, instead of --queries: its queries and scores are used.",
            rich_help_panel=QUESTION,
        ),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(
            help="Sentences, one on each line of a .txt file (or rows as for --train): how much of the base model's "
            "leaning stays there is measured.",
            rich_help_panel=QUESTION,
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Training and held-out rows to measure; 0: all of them.", rich_help_panel=COMPUTING),
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of these rows.", rich_help_panel=COMPUTING)] = 0,
    parameters: Parameters = None,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    recompute: Recompute = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of a generated output.", rich_help_panel=COMPUTING)
    ] = 32,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory: diagnosis.html, diagnosis.json, and what resuming needs.", rich_help_panel=ANSWER
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say whether attribution can be trusted for a model, and whether the fine-tuning did it at all.

    Verdicts in words come first (base already wrong, fine-tuning taught it, not trained enough, overfitted), each by a
    rule that is shown; then the numbers, each with what it means and what to do.
    """
    from headwater import progress

    progress.set_quiet(quiet)
    required(checkpoints, "--checkpoints")

    def read(where: str | None, of: str | None) -> Examples:
        return read_rows(
            where,
            split=of,
            prompt_column=prompt_column,
            completion_column=completion_column,
            messages_column=messages_column,
            text_column=text_column,
            id_column=id_column,
            template=template,
        )

    def run_of(places: list[str] | None) -> TrainingRun:
        return read_run(
            places,
            base=base,
            every=every,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )

    from headwater.diagnosis import read_probes
    from headwater.diagnosis.diagnosing import diagnose as diagnosed
    from headwater.examples import read_queries

    rows, unseen = read(train, split), read(held_out, None) if held_out else None
    asked = read_queries(queries) if queries is not None else []
    sentences = read_probes(probes) if probes is not None else []
    run = run_of(checkpoints)
    others = [run_of([place]) for place in other or ()]

    from headwater.attribution.compute import Compute

    found = diagnosed(
        run,
        rows,
        queries=asked,
        held_out=unseen,
        probes=sentences,
        trace=trace,
        others=others,
        sample=sample or None,
        seed=seed,
        format=token_format(loss_on, max_length, keep, eos),
        compute=Compute(
            parameters=tuple(parameters or ()),
            dtype=dtype.value,
            device=device,
            batch_tokens=batch_tokens,
            max_new_tokens=max_new_tokens,
            recompute=recompute,
        ),
        out=out,
    )
    if as_json:
        typer.echo(json.dumps(found.record(), ensure_ascii=False))
        return
    from rich.console import Console

    from headwater.diagnosis.terminal import summary

    Console(highlight=False).print(summary(found))
    if out is not None:
        typer.echo(f"Page: {out / 'diagnosis.html'}")

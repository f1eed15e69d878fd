"""headwater trace"""

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
    MODELS,
    QUESTION,
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
    from headwater.examples import Examples, Query
    from headwater.scores import ScoredRow, Scores

INDEX_DECIDES = (
    "train", "split", "prompt_column", "completion_column", "messages_column", "text_column", "id_column", "template",
    "placebo",
    "loss_on", "max_length", "keep", "eos", "parameters", "dtype", "batch_tokens", "recompute", "rank", "contraction",
    "engine",
)  # fmt: skip
"""Options that were settled when an index was built."""


class Measurement(StrEnum):
    contrast, loss = "contrast", "loss"


class Inner(StrEnum):
    dot, cosine, layer_cosine, token_cosine = "dot", "cosine", "layer_cosine", "token_cosine"


class CurvatureKind(StrEnum):
    fisher, diagonal, adam, kfac, ekfac, datainf = "fisher", "diagonal", "adam", "kfac", "ekfac", "datainf"


class Level(StrEnum):
    score, gradient = "score", "gradient"


class Engine(StrEnum):
    gradient, directional, auto = "gradient", "directional", "auto"


class ContractionForm(StrEnum):
    auto, factored, applied, materialised = "auto", "factored", "applied", "materialised"


def trace(
    context: typer.Context,
    checkpoints: Checkpoints = None,
    train: Train = None,
    base: Base = None,
    index: Annotated[
        str | None,
        typer.Option(
            "--index", help="An index of headwater index, instead of --checkpoints and --train.", rich_help_panel=MODELS
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
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The prompt of the question.", rich_help_panel=QUESTION)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="What the model said; left out: let the last checkpoint say it.", rich_help_panel=QUESTION),
    ] = None,
    corrected: Annotated[
        str | None, typer.Option(help="What it should have said: asks for the contrast.", rich_help_panel=QUESTION)
    ] = None,
    span: Annotated[
        str | None,
        typer.Option(
            help="What of it matters: diff (the words that differ from --corrected), all, or characters START:END. "
            "[default: diff where both have words of their own, else all]",
            rich_help_panel=QUESTION,
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of prompt, output, corrected, span, group, id, instead of --prompt.", rich_help_panel=QUESTION
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", help="See headwater methods; repeat to compare. [default: dda]", rich_help_panel=METHOD
        ),
    ] = None,
    beta: Annotated[
        str | None,
        typer.Option(
            help="DDA: a number, or auto: how much of the base is taken out. [default: -0.5; 0 for dot products]",
            rich_help_panel=METHOD,
        ),
    ] = None,
    measurement: Annotated[
        Measurement | None, typer.Option(help="Contrast with the corrected output, or loss.", rich_help_panel=METHOD)
    ] = None,
    inner: Annotated[
        Inner | None,
        typer.Option(
            help="DDA: inner product. [default: token_cosine; of an index, curvature or gradient level, layer_cosine]",
            rich_help_panel=METHOD,
        ),
    ] = None,
    level: Annotated[
        Level | None, typer.Option(help="DDA: debias scores or gradients.", rich_help_panel=METHOD)
    ] = None,
    checkpoint_weight: Annotated[
        list[float] | None,
        typer.Option(help="DDA: weight of a checkpoint; repeat, oldest first.", rich_help_panel=METHOD),
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(
            help="TracIn, LESS, RapidIn, SOURCE: learning rate of a checkpoint; repeat, oldest first.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    curvature: Annotated[
        CurvatureKind | None,
        typer.Option(
            help="DDA, SOURCE: multiply the queries' gradients by the inverse of this curvature of the rows.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    damping: Annotated[
        float | None,
        typer.Option(
            min=0, help="Of the curvature, in units of its mean eigenvalue in each layer.", rich_help_panel=METHOD
        ),
    ] = None,
    embedding_model: Annotated[
        str | None,
        typer.Option(
            help="The method embedding: a sentence-transformers model, as a folder or hub id.", rich_help_panel=METHOD
        ),
    ] = None,
    parameters: Parameters = None,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    device_map: DeviceMap = None,
    batch_tokens: BatchTokens = None,
    recompute: Recompute = False,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Project each layer to rank x rank numbers. [default: exact]", rich_help_panel=COMPUTING
        ),
    ] = None,
    contraction: Annotated[
        ContractionForm,
        typer.Option(help="How gradients are multiplied; all give the same number.", rich_help_panel=COMPUTING),
    ] = ContractionForm.auto,
    engine: Annotated[
        Engine,
        typer.Option(
            help="Exact gradients; or, for dot products, two forward passes per query; or the cheaper one.",
            rich_help_panel=COMPUTING,
        ),
    ] = Engine.gradient,
    ray: Ray = None,
    workers: Workers = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of a generated output.", rich_help_panel=COMPUTING)
    ] = 32,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory: scores, report.html, and what resuming needs.", rich_help_panel=ANSWER),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to show.", rich_help_panel=ANSWER)] = 20,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="With --index: keep only so many of the first and last rows.", rich_help_panel=ANSWER),
    ] = None,
    second_look: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --index: the models read so many first rows (and placebo rows) again, token by token.",
            rich_help_panel=METHOD,
        ),
    ] = 0,
    words: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of so many first rows, show which words carry the score: a pass more over them at each checkpoint.",
            rich_help_panel=ANSWER,
        ),
    ] = 0,
    placebo: Annotated[
        str | None,
        typer.Option(
            help="Rows like --train that were never trained on: q-values then say which rows stand out.",
            rich_help_panel=ANSWER,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Trace what a model says to the training rows that taught it.

    The rows with the highest scores pushed the model most towards the output (with --corrected: towards the output
    and away from the corrected one).
    """
    from headwater import progress
    from headwater.methods.table import METHODS, make_method

    progress.set_quiet(quiet)
    if index is None:
        required(checkpoints, "--checkpoints")
        required(train, "--train")
    _check_index(context, index, checkpoints)
    check_workers(ray, workers)
    asked = _queries(prompt, output, corrected, span, queries)
    rows = chance = None
    if index is None:

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
        chance = read(placebo) if placebo else None
    options = {
        "beta": _beta(beta),
        "measurement": measurement and measurement.value,
        "inner": inner and inner.value,
        "level": level and level.value,
        "checkpoint_weights": tuple(checkpoint_weight) if checkpoint_weight else None,
        "learning_rates": tuple(learning_rate) if learning_rate else None,
        "curvature": curvature and curvature.value,
        "damping": damping,
        "embedding_model": embedding_model,
    }
    wanted = _split_options(method or ["dda"], {key: value for key, value in options.items() if value is not None})
    indexed = None
    if index is not None:
        from headwater.index.manifest import Index

        indexed = Index.open(index)
        rank = int(indexed.config["compute"]["rank"])
    methods = [
        make_method(name, **given | ({"rank": rank} if rank and "rank" in METHODS[name].options() else {}))
        for name, given in wanted
    ]

    run = None
    if index is None or checkpoints:
        run = read_run(
            checkpoints,
            base=base,
            every=every,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    if rows is not None and run is not None:
        from headwater.attribution.compute import Compute
        from headwater.attribution.loop import trace_all

        compute = Compute(
            parameters=tuple(parameters or ()),
            dtype=dtype.value,
            device=device,
            device_map=device_map,
            batch_tokens=batch_tokens,
            max_new_tokens=max_new_tokens,
            rank=rank,
            contraction=contraction.value,
            recompute=recompute,
            engine=engine.value,
        )
        answers = trace_all(
            run,
            rows,
            asked,
            methods=methods,
            format=token_format(loss_on, max_length, keep, eos),
            compute=compute,
            words=words,
            placebo=chance,
            out=out,
        )
    else:
        from headwater.attribution.indexed import trace_index

        answers = trace_index(
            required(indexed, "--index"),
            asked,
            methods=methods,
            run=run,
            device=device,
            device_map=device_map,
            max_new_tokens=max_new_tokens,
            limit=limit,
            second_look=second_look,
            words=words,
            out=out,
            ray=ray,
            workers=workers,
        )
    first, *others = answers.values()
    report = None
    if out is not None:
        from headwater.report import write_report

        report = write_report(first, out, others=others)
    if as_json:
        typer.echo(json.dumps(answer_record(first, others, top), ensure_ascii=False))
        return
    show(first, others, top)
    if report is not None:
        typer.echo(f"Report: {report}")


def show(first: Scores, others: list[Scores], top: int, most: int = 3) -> None:
    """Prints the answers: of groups where there are any, else of queries; a few of them, and where the rest is."""
    from rich.console import Console

    from headwater.report import answer

    console = Console()
    groups = [t.name for t in first.targets if t.kind == "group"]
    names = groups or [t.name for t in first.targets]
    for name in names[:most]:
        for scores in (first, *others):
            console.print(answer(scores, name, top))
    if len(first.targets) > len(names[:most]):
        rest = len(first.targets) - len(names[:most])
        console.print(f"{rest} more in scores.parquet and report.html of --out, or with --json.", highlight=False)


def answer_record(first: Scores, others: list[Scores], top: int) -> dict[str, Any]:
    """The answers as JSON values."""
    return {
        "targets": [
            {
                "name": target.name,
                "kind": target.kind,
                "methods": {
                    scores.method: {
                        "sentences": scores.sentences(r),
                        "weights": dict(scores.weights),
                        "top": [vars(row) | words_of(scores, r, row) for row in scores.top(top, target=r)],
                    }
                    for scores in (first, *others)
                },
            }
            for r, target in enumerate(first.targets)
        ],
        "leanings": [vars(leaning) for leaning in first.leanings],
    }


def words_of(scores: Scores, r: int, row: ScoredRow) -> dict[str, Any]:
    """The words of a row, where they were asked for."""
    words = scores.words.get((r, row.index))
    return {} if words is None else asdict(words)


def _check_index(context: typer.Context, index: str | None, checkpoints: list[str] | None) -> None:
    """Refuses options that have no effect with, or without, an index."""
    from headwater.errors import UsageError

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    if index is None:
        for name in ("limit", "second_look", "ray", "workers"):
            if given(name):
                raise UsageError(
                    f"--{name.replace('_', '-')} without --index",
                    expected="an index",
                    fix=f"leave --{name.replace('_', '-')} out, or build an index first",
                )
        return
    settled = [name for name in INDEX_DECIDES if given(name)]
    if not checkpoints:
        settled += [name for name in ("base", "every", "quantization") if given(name)]
    if settled:
        raise UsageError(
            f"--{settled[0].replace('_', '-')} with --index",
            expected="only the question, the method, and the models where they were moved (--checkpoints with --base)",
            cause="the index was built with its own",
            fix=f"leave --{settled[0].replace('_', '-')} out",
        )


def _queries(
    prompt: str | None, output: str | None, corrected: str | None, span: str | None, file: Path | None
) -> list[Query]:
    from headwater.errors import UsageError
    from headwater.examples import Query, read_queries

    if (prompt is None) == (file is None):
        raise UsageError(
            "both --prompt and --queries" if file else "neither --prompt nor --queries",
            expected="one of them",
            fix="give --prompt with --output, or a file with --queries",
        )
    if file is not None:
        if output is not None or corrected is not None or span is not None:
            raise UsageError(
                "--queries with --output, --corrected or --span",
                expected="outputs inside the file",
                fix="write them into the file, or use --prompt",
            )
        return read_queries(file)
    return [Query(str(prompt), output, corrected=corrected, span=_span(span))]


def _span(text: str | None) -> Any:
    from headwater.errors import UsageError

    if text is None or text in ("auto", "diff", "all"):
        return text or "auto"
    start, colon, end = text.partition(":")
    if not (colon and start.isdecimal() and end.isdecimal()):
        raise UsageError(
            f"--span {text}", expected="'diff', 'all' or START:END in characters", fix="such as --span 0:7"
        )
    return int(start), int(end)


def _beta(text: str | None) -> Any:
    from headwater.errors import UsageError

    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--beta {text}", expected="a number or 'auto'", fix="such as --beta 0.25") from None


def _split_options(names: list[str], options: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each method with the options that it has; an option that none of them has is refused."""
    from headwater.errors import UsageError
    from headwater.methods.table import METHODS, make_method

    wanted = []
    used: set[str] = set()
    for name in names:
        make_method(name)
        has = METHODS[name].options()
        given = {key: value for key, value in options.items() if key in has}
        used |= set(given)
        wanted.append((name, given))
    unused = sorted(set(options) - used)
    if unused:
        raise UsageError(
            f"--{unused[0].rstrip('s').replace('_', '-')} with {', '.join(names)}",
            expected=f"an option of {', '.join(names)}",
            fix=f"leave it out, or choose another method of {', '.join(METHODS)}",
        )
    return wanted

"""headwater trace"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headwater.examples import Query
    from headwater.scores import Scores


class Template(StrEnum):
    auto, plain, chat, alpaca = "auto", "plain", "chat", "alpaca"


class LossOn(StrEnum):
    auto, completion, assistant, everything = "auto", "completion", "assistant", "all"


class Keep(StrEnum):
    start, end = "start", "end"


class Every(StrEnum):
    epoch, checkpoint = "epoch", "checkpoint"


class Quantization(StrEnum):
    four, eight = "4bit", "8bit"


class Dtype(StrEnum):
    float32, float64, bfloat16 = "float32", "float64", "bfloat16"


class Measurement(StrEnum):
    contrast, loss = "contrast", "loss"


class Inner(StrEnum):
    dot, cosine, layer_cosine = "dot", "cosine", "layer_cosine"


class Level(StrEnum):
    score, gradient = "score", "gradient"


MODELS, DATA, QUESTION, METHOD, COMPUTING, ANSWER = (
    "The training run",
    "The training data",
    "The question",
    "The method",
    "Computing",
    "The answer",
)


def trace(
    checkpoints: Annotated[
        list[str],
        typer.Option(
            "--checkpoints",
            help="Trainer output folder, model or adapter folder, or hub id; repeat for several, oldest first.",
            rich_help_panel=MODELS,
        ),
    ],
    train: Annotated[
        str,
        typer.Option(
            "--train", help="Training rows: JSONL, CSV, Parquet, datasets folder or hub id.", rich_help_panel=DATA
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", help="The model before fine-tuning: folder or hub id.", rich_help_panel=MODELS),
    ] = None,
    every: Annotated[
        Every, typer.Option(help="Checkpoints of an output folder: one per epoch, or all.", rich_help_panel=MODELS)
    ] = Every.epoch,
    quantization: Annotated[
        Quantization | None,
        typer.Option(help="Load models in 4 or 8 bit (needs bitsandbytes).", rich_help_panel=MODELS),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that models bring along.", rich_help_panel=MODELS)
    ] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Load pickled weights, which can run code.", rich_help_panel=MODELS),
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="Split of a datasets folder or hub id.", rich_help_panel=DATA)
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompt.", rich_help_panel=DATA)] = None,
    completion_column: Annotated[
        str | None, typer.Option(help="Column of the completion.", rich_help_panel=DATA)
    ] = None,
    messages_column: Annotated[
        str | None, typer.Option(help="Column of whole conversations.", rich_help_panel=DATA)
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of plain text.", rich_help_panel=DATA)] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the row's id.", rich_help_panel=DATA)] = None,
    template: Annotated[
        Template, typer.Option(help="How rows became prompts in training.", rich_help_panel=DATA)
    ] = Template.auto,
    loss_on: Annotated[
        LossOn, typer.Option(help="Which tokens the training loss counted.", rich_help_panel=DATA)
    ] = LossOn.auto,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a row at most.", rich_help_panel=DATA)] = 1024,
    keep: Annotated[
        Keep, typer.Option(help="Which end of a longer row training kept.", rich_help_panel=DATA)
    ] = Keep.start,
    eos: Annotated[
        bool, typer.Option(help="Training ended completions with the end-of-sequence token.", rich_help_panel=DATA)
    ] = True,
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
        typer.Option(help="'diff': only the words that differ; or characters START:END.", rich_help_panel=QUESTION),
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
        typer.Option(help="DDA: a number, or auto: how much of the base is taken out.", rich_help_panel=METHOD),
    ] = None,
    measurement: Annotated[
        Measurement | None, typer.Option(help="Contrast with the corrected output, or loss.", rich_help_panel=METHOD)
    ] = None,
    inner: Annotated[Inner | None, typer.Option(help="DDA: inner product.", rich_help_panel=METHOD)] = None,
    level: Annotated[
        Level | None, typer.Option(help="DDA: debias scores or gradients.", rich_help_panel=METHOD)
    ] = None,
    checkpoint_weight: Annotated[
        list[float] | None,
        typer.Option(help="DDA: weight of a checkpoint; repeat, oldest first.", rich_help_panel=METHOD),
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(help="TracIn: learning rate of a checkpoint; repeat, oldest first.", rich_help_panel=METHOD),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            help="Regular expression of linear layers; repeat. [default: all in the blocks]", rich_help_panel=COMPUTING
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the models.", rich_help_panel=COMPUTING)] = Dtype.float32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0 ...", rich_help_panel=COMPUTING)] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a batch, padding included.", rich_help_panel=COMPUTING)
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of a generated output.", rich_help_panel=COMPUTING)
    ] = 32,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory: scores, report.html, and what resuming needs.", rich_help_panel=ANSWER),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to show.", rich_help_panel=ANSWER)] = 20,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no notes.", rich_help_panel=ANSWER)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=ANSWER)] = False,
) -> None:
    """Trace what a model says to the training rows that taught it.

    The rows with the highest scores pushed the model most towards the output (with --corrected: towards the output
    and away from the corrected one).
    """
    from headwater import progress
    from headwater.examples import Columns, TokenFormat, read_examples
    from headwater.methods.table import make_method

    progress.set_quiet(quiet)
    asked = _queries(prompt, output, corrected, span, queries)
    rows = read_examples(
        train,
        split=split,
        columns=Columns(
            prompt=prompt_column,
            completion=completion_column,
            messages=messages_column,
            text=text_column,
            id=id_column,
        ),
        template=template.value,
    )
    options = {
        "beta": _beta(beta),
        "measurement": measurement and measurement.value,
        "inner": inner and inner.value,
        "level": level and level.value,
        "checkpoint_weights": tuple(checkpoint_weight) if checkpoint_weight else None,
        "learning_rates": tuple(learning_rate) if learning_rate else None,
    }
    wanted = _split_options(method or ["dda"], {key: value for key, value in options.items() if value is not None})
    methods = [make_method(name, **given) for name, given in wanted]

    from headwater.attribution.compute import Compute
    from headwater.attribution.loop import trace_all
    from headwater.checkpoints import TrainingRun

    run = TrainingRun.from_pretrained(
        checkpoints,
        base=base,
        every=every.value,
        quantization=quantization.value if quantization else None,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    answers = trace_all(
        run,
        rows,
        asked,
        methods=methods,
        format=TokenFormat(loss_on=loss_on.value, max_length=max_length, keep=keep.value, add_eos=eos),
        compute=Compute(
            parameters=tuple(parameters or ()),
            dtype=dtype.value,
            device=device,
            batch_tokens=batch_tokens,
            max_new_tokens=max_new_tokens,
        ),
        out=out,
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
                        "top": [vars(row) for row in scores.top(top, target=r)],
                    }
                    for scores in (first, *others)
                },
            }
            for r, target in enumerate(first.targets)
        ],
        "leanings": [vars(leaning) for leaning in first.leanings],
    }


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

    if text is None or text == "diff":
        return text
    start, colon, end = text.partition(":")
    if not (colon and start.isdigit() and end.isdigit()):
        raise UsageError(f"--span {text}", expected="'diff' or START:END in characters", fix="such as --span 0:7")
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

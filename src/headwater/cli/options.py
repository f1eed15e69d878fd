"""Options that several commands share: which models, which rows, how to compute."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from headwater.checkpoints import TrainingRun
    from headwater.examples import Examples, TokenFormat

T = TypeVar("T")

MODELS, DATA, QUESTION, METHOD, COMPUTING, ANSWER = (
    "The training run",
    "The training data",
    "The question",
    "The method",
    "Computing",
    "The answer",
)


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


def _option(help: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


Checkpoints = Annotated[
    list[str] | None,
    _option(
        "Trainer output folder, model or adapter folder, or hub id; repeat for several, oldest first.",
        MODELS,
        "--checkpoints",
    ),
]
Train = Annotated[
    str | None, _option("Training rows: JSONL, CSV, Parquet, datasets folder or hub id.", DATA, "--train")
]
Base = Annotated[str | None, _option("The model before fine-tuning: folder or hub id.", MODELS, "--base")]
EveryOption = Annotated[Every, _option("Checkpoints of an output folder: one per epoch, or all.", MODELS, "--every")]
QuantizationOption = Annotated[
    Quantization | None, _option("Load models in 4 or 8 bit (needs bitsandbytes).", MODELS, "--quantization")
]
TrustRemoteCode = Annotated[bool, _option("Run code that models bring along.", MODELS, "--trust-remote-code")]
AllowPickle = Annotated[bool, _option("Load pickled weights, which can run code.", MODELS, "--allow-pickle")]
Split = Annotated[str | None, _option("Split of a datasets folder or hub id.", DATA, "--split")]
PromptColumn = Annotated[str | None, _option("Column of the prompt.", DATA, "--prompt-column")]
CompletionColumn = Annotated[str | None, _option("Column of the completion.", DATA, "--completion-column")]
MessagesColumn = Annotated[str | None, _option("Column of whole conversations.", DATA, "--messages-column")]
TextColumn = Annotated[str | None, _option("Column of plain text.", DATA, "--text-column")]
IdColumn = Annotated[str | None, _option("Column of the row's id.", DATA, "--id-column")]
TemplateOption = Annotated[Template, _option("How rows became prompts in training.", DATA, "--template")]
LossOnOption = Annotated[LossOn, _option("Which tokens the training loss counted.", DATA, "--loss-on")]
MaxLength = Annotated[int, typer.Option(min=2, help="Tokens of a row at most.", rich_help_panel=DATA)]
KeepOption = Annotated[Keep, _option("Which end of a longer row training kept.", DATA, "--keep")]
Eos = Annotated[bool, _option("Training ended completions with the end-of-sequence token.", DATA, "--eos/--no-eos")]
Parameters = Annotated[
    list[str] | None,
    _option("Regular expression of linear layers; repeat. [default: all in the blocks]", COMPUTING, "--parameters"),
]
DtypeOption = Annotated[Dtype, _option("Precision of the models.", COMPUTING, "--dtype")]
Device = Annotated[str, _option("auto, cpu, cuda:0 ...", COMPUTING, "--device")]
DeviceMap = Annotated[
    str | None,
    _option(
        "Spread a model over all accelerators of this machine: auto, balanced, balanced_low_0, sequential.",
        COMPUTING,
        "--device-map",
    ),
]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a batch, padding included.", rich_help_panel=COMPUTING)
]
Recompute = Annotated[
    bool,
    _option("Forget activations and compute them again: less memory, slower.", COMPUTING, "--recompute"),
]
Ray = Annotated[
    str | None,
    _option("Use the Ray cluster at this address: auto, local (this machine alone), head:6379 ...", COMPUTING, "--ray"),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Workers on the cluster. [default: one for each GPU, or CPU]", rich_help_panel=COMPUTING),
]
Shard = Annotated[
    bool, _option("Split each model over the processes of a torchrun, which starts this command.", COMPUTING, "--shard")
]
Quiet = Annotated[bool, _option("No progress, no notes.", ANSWER, "--quiet")]
AsJson = Annotated[bool, _option("Print JSON.", ANSWER, "--json")]


def read_rows(
    train: str | None,
    *,
    split: str | None,
    prompt_column: str | None,
    completion_column: str | None,
    messages_column: str | None,
    text_column: str | None,
    id_column: str | None,
    template: Template,
) -> Examples:
    """The training rows that the options describe."""
    from headwater.examples import Columns, read_examples

    return read_examples(
        required(train, "--train"),
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


def read_run(
    checkpoints: list[str] | None,
    *,
    base: str | None,
    every: Every,
    quantization: Quantization | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> TrainingRun:
    """The training run that the options describe."""
    from headwater.checkpoints import TrainingRun

    return TrainingRun.from_pretrained(
        required(checkpoints, "--checkpoints"),
        base=base,
        every=every.value,
        quantization=quantization.value if quantization else None,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )


def check_workers(ray: str | None, workers: int | None) -> None:
    """Raises UsageError for workers without a cluster."""
    from headwater.errors import UsageError

    if workers is not None and ray is None:
        raise UsageError("--workers without --ray", expected="both", fix="add --ray local, or leave --workers out")


def token_format(loss_on: LossOn, max_length: int, keep: Keep, eos: bool) -> TokenFormat:
    from headwater.examples import TokenFormat

    return TokenFormat(loss_on=loss_on.value, max_length=max_length, keep=keep.value, add_eos=eos)


def required(value: T | None, name: str) -> T:
    """The value of an option that must be given."""
    from headwater.errors import UsageError

    if not value:
        raise UsageError(f"no {name}", expected="it to be given", fix=f"give {name}; --help says what it is")
    return value

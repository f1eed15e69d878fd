"""headwater serve"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.options import (
    AllowPickle,
    Base,
    Checkpoints,
    CompletionColumn,
    Device,
    Every,
    EveryOption,
    IdColumn,
    MessagesColumn,
    PromptColumn,
    QuantizationOption,
    Quiet,
    Split,
    Template,
    TemplateOption,
    TextColumn,
    Train,
    TrustRemoteCode,
)

SERVER = "The server"


def serve(
    folder: Annotated[
        str, typer.Argument(help="An index of headwater index, the --out of a finished trace, or of headwater demo.")
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; others than the loopback's are open to other machines.", rich_help_panel=SERVER
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.", rich_help_panel=SERVER)
    ] = 8642,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name under which the page is reached, behind a proxy; repeat.", rich_help_panel=SERVER
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser", help="Open the page in the browser.", rich_help_panel=SERVER)
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for answers and marks. [default: FOLDER.viewer, beside it]", rich_help_panel=SERVER),
    ] = None,
    checkpoints: Checkpoints = None,
    base: Base = None,
    every: EveryOption = Every.epoch,
    quantization: QuantizationOption = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    device: Device = "auto",
    train: Train = None,
    split: Split = None,
    prompt_column: PromptColumn = None,
    completion_column: CompletionColumn = None,
    messages_column: MessagesColumn = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    template: TemplateOption = Template.auto,
    quiet: Quiet = False,
) -> None:
    """Open a local page: ask the model, mark its words, see the rows behind them, act.

    The models are those that the index or the trace was made from; --checkpoints and --base say where they are now.
    --train says where the rows of a trace are now.
    """
    from headwater import progress
    from headwater.errors import UsageError
    from headwater.viewer.serving import Listening, require_viewer
    from headwater.viewer.serving import serve as start

    progress.set_quiet(quiet)
    require_viewer()
    if base and not checkpoints:
        raise UsageError("--base without --checkpoints", expected="both, or none", fix="give --checkpoints too")
    from headwater.viewer.opened import Place

    models = {
        "checkpoints": checkpoints,
        "base": base,
        "every": every.value,
        "quantization": quantization and quantization.value,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    rows = {
        "train": train,
        "split": split,
        "prompt": prompt_column,
        "completion": completion_column,
        "messages": messages_column,
        "text": text_column,
        "id": id_column,
        "template": None if template is Template.auto else template.value,
    }
    place = Place(
        folder=folder,
        state=None if state is None else str(state),
        models={key: value for key, value in models.items() if value},
        rows={key: value for key, value in rows.items() if value},
        device=device,
    )
    listening = Listening(host=host, port=port, names=tuple(allow_host or ()), browser=browser)
    start(place, listening, typer.echo)

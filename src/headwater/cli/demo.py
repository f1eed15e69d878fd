"""headwater demo"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the models, the trace and the report.")] = Path(
        "headwater-demo"
    ),
    repair: Annotated[
        bool, typer.Option("--repair", help="Then remove the rows found, and train and ask again: 3 more trainings.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the planted rows and of training.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The whole story on a real language model, in a few minutes, on a CPU.

    A model is fine-tuned on facts with a planted error, states it, and is traced: DDA beside BM25 and TracIn.
    """
    from headwater import progress

    progress.set_quiet(quiet)
    from headwater.demo import run_demo

    result = run_demo(out, repair=repair, seed=seed)
    if as_json:
        typer.echo(json.dumps(result.record(), ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(result.story())

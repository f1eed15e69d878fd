"""headwater methods"""

from __future__ import annotations

import json
from typing import Annotated

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every method: what it computes, what it costs, and how well its formula is known."""
    from headwater.methods.table import METHODS

    if as_json:
        keys = ("name", "computes", "cost", "status", "source", "needs_base")
        typer.echo(json.dumps([{key: getattr(info, key) for key in keys} for info in METHODS.values()], indent=1))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for info in METHODS.values():
        console.print(Text(info.name, style="bold"))
        for line in (info.computes, f"cost {info.cost}; formula {info.status}; {info.source}"):
            console.print(Padding(Text(line), (0, 0, 0, 4)))
    console.print(
        "\nCost: in passes over the training rows, for T checkpoints and R queries and groups; a gradient pass is a "
        "forward and an activation-only backward pass.\nFormula: C confirmed from the authors' text or code, S "
        "second-hand, D derived by us."
    )

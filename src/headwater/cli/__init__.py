"""The command line: one module per command; each parses, calls the library and prints.

Nothing heavy is imported before a command runs, so that `headwater --help` is quick.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from headwater import __version__
from headwater.cli.bench import bench
from headwater.cli.clean import clean
from headwater.cli.demo import demo
from headwater.cli.index import app as index
from headwater.cli.methods import methods
from headwater.cli.select import select
from headwater.cli.sources import sources
from headwater.cli.trace import trace

app = typer.Typer(
    name="headwater",
    help="Trace what a fine-tuned language model says back to the training rows that taught it to say so.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(trace)
app.add_typer(index)
app.command()(sources)
app.command()(clean)
app.command()(select)
app.command()(methods)
app.command()(bench)
app.command()(demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headwater {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script. Mistakes of the user end in one line and exit code 2, an interrupt in exit code 130."""
    from headwater.errors import HeadwaterError

    try:
        app(standalone_mode=True)
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as stop:  # typer turns an interrupt into this
        if stop.code == 130:
            print("headwater: interrupted; finished work in --out is kept, the same command goes on.", file=sys.stderr)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)

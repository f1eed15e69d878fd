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
from headwater.cli.diagnose import diagnose
from headwater.cli.index import app as index
from headwater.cli.methods import methods
from headwater.cli.plan import plan
from headwater.cli.repair import repair
from headwater.cli.select import select
from headwater.cli.serve import serve
from headwater.cli.sources import sources
from headwater.cli.trace import trace

app = typer.Typer(
    name="headwater",
    help="Trace what a fine-tuned language model says back to the training rows that taught it to say so.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(trace)
app.add_typer(index)
app.command()(sources)
app.command()(clean)
app.command()(diagnose)
app.command()(serve)
app.command()(plan)
app.command()(select)
app.command()(methods)
app.command()(repair)
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
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.exceptions.TyperException as error:  # options that do not exist, or have values they cannot have
        context, command = getattr(error, "ctx", None), ""
        while context is not None and context.parent is not None:
            context, command = context.parent, f" {context.info_name}{command}"
        said = " ".join(error.format_message().split()).rstrip(".")
        print(f"headwater: {said}. Next: headwater{command} --help lists what there is", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    if code == 130:  # typer turns an interrupt into this
        print("headwater: interrupted; finished work in --out is kept, the same command goes on.", file=sys.stderr)
    sys.exit(code)

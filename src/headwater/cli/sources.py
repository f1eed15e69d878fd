"""headwater sources"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.options import (
    ANSWER,
    AsJson,
    CompletionColumn,
    IdColumn,
    MessagesColumn,
    PromptColumn,
    Quiet,
    Split,
    Template,
    TemplateOption,
    TextColumn,
    Train,
    read_rows,
)


def sources(
    trace: Annotated[Path, typer.Argument(help="Run directory of a finished headwater trace.")],
    by: Annotated[
        str | None, typer.Option("--by", help="Column of the training rows. [default: the file of each row]")
    ] = None,
    train: Train = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Query or group; repeat for several. [default: the groups, or else the queries]"),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Of a trace by several methods. [default: the first]")] = None,
    first: Annotated[int, typer.Option(min=1, help="Count each source's rows among so many first rows.")] = 100,
    resamples: Annotated[int, typer.Option(min=1, help="Of rows and of queries, for the intervals.")] = 1000,
    split: Split = None,
    prompt_column: PromptColumn = None,
    completion_column: CompletionColumn = None,
    messages_column: MessagesColumn = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    template: TemplateOption = Template.auto,
    top: Annotated[int, typer.Option(min=1, help="Sources to show.", rich_help_panel=ANSWER)] = 20,
    quiet: Quiet = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.", rich_help_panel=ANSWER)] = False,
) -> None:
    """Who contributed: a trace's scores added up by file, author, licence or any column.

    Prints each source's share of the positive score with 95 % intervals, beside its share of the rows.
    """
    from rich.console import Console

    from headwater import progress
    from headwater.errors import UsageError
    from headwater.report.sources import sources_table
    from headwater.scores import Scores, read_manifest
    from headwater.sources import by_source, traced_rows

    progress.set_quiet(quiet)
    if as_json and as_csv:
        raise UsageError("both --json and --csv", expected="one of them", fix="leave one out")
    manifest = read_manifest(trace)
    if by is not None and train is None:
        raise UsageError(
            f"--by {by} without --train",
            expected="the training data of the trace: a trace keeps ids, files and lines, not the other columns",
            fix="add --train, or leave --by out to group by file",
        )
    rows = None
    if train is not None:
        rows = read_rows(
            train,
            split=split,
            prompt_column=prompt_column,
            completion_column=completion_column,
            messages_column=messages_column,
            text_column=text_column,
            id_column=id_column,
            template=template,
        )
    scores = Scores.load(trace, traced_rows(trace) if rows is None else rows, method=method)
    kinds = [one["kind"] for one in manifest["targets"]]
    usual = [one["name"] for one in manifest["targets"] if one["kind"] == ("group" if "group" in kinds else "query")]
    found = [by_source(scores, by, target=name, k=first, resamples=resamples) for name in target or usual]
    if as_json:
        typer.echo(json.dumps({"targets": [one.record() for one in found]}, ensure_ascii=False))
    elif as_csv:
        head, *_ = found[0].csv().partition("\n")
        typer.echo("\n".join([head, *(one.csv().partition("\n")[2].rstrip("\n") for one in found)]))
    else:
        console = Console()
        for number, one in enumerate(found):
            console.print(*(["\n"] if number else []), sources_table(one, top), sep="", highlight=False)

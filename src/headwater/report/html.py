"""The report: one HTML file that holds everything it needs, opens by file://, and loads nothing.

What it shows is one JSON document in the page (`headwater.report.contents`), drawn by a short script; the first answer
also stands in the page as plain HTML, for readers without scripts. The page's own policy allows that one script and
that one style sheet, by their hashes, and nothing else: a row that holds markup is only ever text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.errors import UsageError
from headwater.report.contents import SIGN, page_contents
from headwater.report.visible import visible
from headwater.run import write_whole
from headwater.scores import Scores

if TYPE_CHECKING:
    from jinja2 import Template

REPORT = "report.html"
STATIC_ROWS = 25
"""Rows of the first answer that stand in the page as plain HTML."""


def write_report(
    scores: Scores,
    folder: Path,
    *,
    others: Sequence[Scores] = (),
    top: int = 100,
    culprits: Mapping[str, set[str]] | None = None,
) -> Path:
    """Writes folder/report.html and returns its path.

    Args:
        scores: the answer shown first.
        others: answers of other methods to the same queries about the same rows.
        top: rows shown of every answer; a quarter as many (but ten) of those that push away.
        culprits: target name -> ids of the rows known to be at fault, to be marked; of a query without an entry, its
            group's.

    Raises:
        DataError: the answers are not about the same queries and rows. UsageError: top is below 1.
    """
    path = Path(folder) / REPORT
    write_whole(path, render_report(scores, others=others, top=top, culprits=culprits).encode("utf-8"))
    return path


def render_report(
    scores: Scores,
    *,
    others: Sequence[Scores] = (),
    top: int = 100,
    culprits: Mapping[str, set[str]] | None = None,
) -> str:
    """The page itself, as `write_report` writes it."""
    if top < 1:
        raise UsageError(f"top={top}", expected="at least 1 row", fix="leave it out")
    methods = [scores, *others]
    contents = page_contents(methods, top=top, culprits=culprits)
    style, script = _text("report.css"), _bundle("report.js")
    return _template().render(
        title=_title(contents),
        policy="; ".join(
            (
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        style=style,
        script=script,
        data=embedded(contents),
        contents=contents,
        sign=SIGN,
        has_words=any(one.words for one in methods),
        first=_first_answer(contents),
        provenance=[(visible(key), visible(value)) for key, value in flattened(_provenance(methods))],
        command=_command(scores.provenance),
    )


def embedded(contents: Any) -> str:
    """JSON that no HTML parser can mistake for markup: without <, > and &."""
    text = json.dumps(contents, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as lines: ("train.rows", "400"); short lists stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flattened(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for number, item in enumerate(value, 1):
            label = item.get("name", number) if isinstance(item, Mapping) else number
            rest = {k: v for k, v in item.items() if k != "name"} if isinstance(item, Mapping) else item
            yield from flattened(rest, f"{name}.{label}" if name else str(label))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(str(item) for item in value) or "none"
    elif isinstance(value, Mapping) or value is None:
        yield name, "none"
    else:
        yield name, str(value)


def _provenance(methods: Sequence[Scores]) -> dict[str, Any]:
    """Of the first answer all but what is shown elsewhere; of every method the weights of its terms."""
    first = {k: v for k, v in methods[0].provenance.items() if k not in ("queries", "command")}
    weights = {s.method: ", ".join(f"{name} × {w:.6g}" for name, w in s.weights.items()) for s in methods}
    return {"weights": weights} | first


def _command(provenance: Mapping[str, Any]) -> str | None:
    """The command line that makes this answer again, where it was kept."""
    command = provenance.get("command")
    if isinstance(command, list | tuple):
        import shlex

        command = shlex.join(str(part) for part in command)
    return visible(str(command)) if command else None


def _title(contents: Mapping[str, Any]) -> str:
    target = contents["targets"][contents["order"][0]]
    query = contents["queries"][target["members"][0]]
    if target["kind"] == "group":
        question = str(target["name"])
    else:
        question = f"{query['prompt']} → {(query['output'] or '').strip()}"
    question = " ".join(question.split())
    return f"{question if len(question) <= 100 else question[:99] + '…'} · headwater"


def _first_answer(contents: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the page as plain HTML."""
    r = contents["order"][0]
    target, answer = contents["targets"][r], contents["answers"][0][r]
    marked, guilty = set(target["words"]), set(target["culprits"] or ())
    rows = []
    for rank, entry in enumerate(answer["best"][:STATIC_ROWS], 1):
        row = contents["rows"][str(entry[0])]
        rows.append(
            {
                "rank": rank,
                "id": row["id"],
                "score": entry[2],
                "guilty": entry[0] in guilty,
                "prompt": _marked(row["p"].split(contents["separator"]), marked),
                "completion": _marked(row["c"].split(contents["separator"]), marked),
            }
        )
    queries = [contents["queries"][q] for q in target["members"]]
    leanings = contents["leanings"]
    table = []
    if leanings:
        for place, checkpoint in enumerate(leanings["checkpoints"]):
            found = [leanings["values"].get(query["name"], [None] * (place + 1))[place] for query in queries]
            outputs = [pair[0] for pair in found if pair]
            corrected = [pair[1] for pair in found if pair and pair[1] is not None]
            if outputs:
                mean = f"{sum(corrected) / len(corrected):.2f}" if corrected else ""
                table.append((checkpoint, f"{sum(outputs) / len(outputs):.2f}", mean))
    return {
        "number": r,
        "target": target,
        "queries": queries,
        "sentences": answer["sentences"],
        "rows": rows,
        "leanings": table,
    }


def _marked(parts: Sequence[str], words: set[str]) -> list[tuple[str, bool]]:
    """Each piece, and whether it is one of the words."""
    return [(piece, n % 2 == 1 and piece in words) for n, piece in enumerate(parts)]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@cache
def _bundle(name: str) -> str:
    """A script and the modules it imports, each once, before it is needed, in one block.

    Modules share the block's names: two that define the same one are a syntax error in every browser.
    """
    placed: dict[str, str] = {}

    def place(path: str) -> None:
        if path in placed:
            return
        placed[path] = ""
        source = _text(path)
        for needed in re.findall(r'^import \{[^}]*\} from "\./([^"]+)";$', source, re.MULTILINE):
            place(needed if "/" in needed else f"{path.rpartition('/')[0]}/{needed}".lstrip("/"))
        del placed[path]
        placed[path] = re.sub(r'^import \{[^}]*\} from "[^"]+";\n|^export ', "", source, flags=re.MULTILINE)

    place(name)
    return '"use strict";\n{\n' + "\n".join(placed.values()) + "\n}"


@cache
def _text(name: str) -> str:
    return files("headwater.report").joinpath(name).read_text("utf-8").strip()


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("report.html.j2"))

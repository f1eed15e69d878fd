"""The page: one HTML file that holds everything it needs, opens by file://, loads nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.diagnosis.panels import MOST_QUERIES, panels, query_rows
from headwater.report.html import flattened
from headwater.report.visible import visible
from headwater.run import write_whole

if TYPE_CHECKING:
    from jinja2 import Template

    from headwater.diagnosis.diagnosis import Diagnosis

PAGE = "diagnosis.html"
ORDER = ("no", "care", "good", "note")


def write_page(diagnosis: Diagnosis, folder: Path) -> Path:
    """Writes folder/diagnosis.html and returns its path."""
    style = files("headwater.report").joinpath("report.css").read_text("utf-8").strip()
    style += "\n" + files("headwater.diagnosis").joinpath("page.css").read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    holding = [one for one in diagnosis.verdicts if one.holds]
    facts = diagnosis.facts
    page = _template().render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=style,
        diagnosis=diagnosis,
        holding=sorted(holding, key=lambda one: ORDER.index(one.effect)),
        passed=[one for one in diagnosis.verdicts if one.holds is False],
        unknown=[one for one in diagnosis.verdicts if one.holds is None],
        panels=panels(diagnosis),
        queries=query_rows(facts),
        left_out=max(0, len(facts.queries) - MOST_QUERIES),
        checkpoints=facts.checkpoints,
        facts=facts,
        command=visible(str(diagnosis.provenance["command"])) if "command" in diagnosis.provenance else None,
        provenance=[
            (visible(key), visible(value))
            for key, value in flattened(
                {k: v for k, v in diagnosis.provenance.items() if k not in ("command", "queries")}
            )
        ],
    )
    path = Path(folder) / PAGE
    write_whole(path, page.encode("utf-8"))
    return path


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    return environment.from_string(files("headwater.diagnosis").joinpath("page.html.j2").read_text("utf-8").strip())

"""What `headwater serve` was given: an index or a finished trace, its rows, its models, and what can be done with them.

The server and its worker open the same `Place`, each in its own process.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from headwater.attribution.compute import Compute
from headwater.attribution.indexed import check_stored, run_of, run_of_record
from headwater.attribution.loop import planned
from headwater.attribution.placebo import FOLDER as PLACEBO
from headwater.attribution.plan import GradientPlan, Method, Plan, TextPlan, whole_form
from headwater.attribution.second_look import first_look
from headwater.attribution.words import has_words
from headwater.checkpoints import TrainingRun
from headwater.errors import DataError, HeadwaterError, RunError, UsageError
from headwater.examples import Columns, Examples, TokenFormat, read_examples
from headwater.index.folder import Folder
from headwater.index.manifest import MANIFEST, Index
from headwater.methods.table import METHODS, make_method
from headwater.report.facets import Facet, facets
from headwater.run import digest
from headwater.scores import read_manifest
from headwater.trace_files import Table

How = Literal["index", "look", "words", "rows"]
"""What a method costs here: seconds from the stored gradients, these and a second look at the first rows by the models,
words alone, or a pass over all rows."""

LOOK = 100
"""Rows of a second look that the page offers."""

ROW_OPTIONS = ("train", "split", "template", "prompt", "completion", "messages", "text", "id")
"""Of `Place.rows`: the file, and the columns as `headwater trace` names them."""

TRACE, ROWS = "trace", "train.jsonl"
"""Of the demo's folder: its trace, and its rows. The rows of any trace are looked for under that name."""

_HUB_ID = re.compile(r"[\w.-]+/[\w-]+")


@dataclass(frozen=True, kw_only=True)
class Place:
    """What to open; JSON values, so that a worker process can be told.

    Attributes:
        folder: of an index or a finished trace. state: of the viewer's own files; None: FOLDER.viewer, beside it.
        models: arguments of `TrainingRun.from_pretrained`, where the models were moved or allowed more.
        rows: the ROW_OPTIONS that were given, where the rows of a trace were moved.
        device: for the models.
    """

    folder: str
    state: str | None = None
    models: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An index or a finished trace, ready to be asked.

    Attributes:
        train: the rows. index: where there is one, also behind a trace. manifest: of a trace.
        run: the models; None where they cannot be used, and `why` says why.
        numbers: of each row its number among all rows of the data, where a trace kept some of them.
        config: checkpoints, token format and computation that the rows' gradients were made with.
    """

    place: Place
    kind: Literal["index", "trace"]
    train: Examples
    index: Index | None
    manifest: Mapping[str, Any] | None
    run: TrainingRun | None
    why: str | None
    config: Mapping[str, Any]
    numbers: tuple[int, ...] | None = None

    @classmethod
    def open(cls, place: Place) -> Opened:
        """Opens it; no model is loaded.

        Raises:
            HeadwaterError: neither an index nor a finished trace; rows or models that were named and do not fit.
        """
        folder = Folder(place.folder)
        if folder.exists(MANIFEST):
            index = Index.open(folder)
            run, why = _models(place, index.config, index)
            return cls(
                place=place,
                kind="index",
                train=index.examples(),
                index=index,
                manifest=None,
                run=run,
                why=why,
                config=index.config,
            )
        if folder.exists("trace.json"):
            return _open_trace(cls, place, folder.path)
        if folder.is_local and (folder.path / TRACE / "trace.json").is_file():
            inside = folder.path / TRACE
            return _open_trace(cls, replace(place, folder=str(inside)), inside)
        if folder.exists("parts"):
            Index.open(folder)  # says that its build was interrupted
        if folder.exists("config.json"):
            read_manifest(folder.path)  # says that the trace was interrupted
        raise RunError(
            f"{folder} is neither an index nor a finished trace",
            expected=f"a folder with {MANIFEST} (of headwater index) or trace.json (of headwater trace --out), or that "
            "of a finished headwater demo",
            cause="another folder" if folder.exists() else "it does not exist",
            fix="check the path, or build one with headwater index",
        )

    @property
    def name(self) -> str:
        """The folder's own name, with that above it where it is but "trace"."""
        if "://" in self.place.folder:
            return self.place.folder
        folder = Path(self.place.folder).resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name == TRACE else folder.name

    @property
    def state(self) -> Path:
        """Folder of the viewer's own files.

        Raises:
            UsageError: of a remote folder none was named.
        """
        if self.place.state is not None:
            return Path(self.place.state)
        if "://" in self.place.folder:
            raise UsageError(
                f"{self.place.folder} is remote", expected="a folder here for the viewer's files", fix="give --state"
            )
        folder = Path(self.place.folder).resolve()
        return folder.with_name(f"{folder.name}.viewer")

    @cached_property
    def fingerprint(self) -> str:
        """Identifies rows and models, or the trace."""
        if self.index is not None and self.kind == "index":
            chance = self.index.placebo
            return self.index.fingerprint + ("" if chance is None else chance.fingerprint)
        return digest((Path(self.place.folder) / "trace.json").read_bytes())

    @cached_property
    def placebo(self) -> Examples | None:
        """The rows that were never trained on and give new answers q-values; None where there are none here."""
        if self.index is not None:
            return None if self.index.placebo is None else self.index.placebo.examples()
        config = Path(self.place.folder) / PLACEBO / "config.json"
        found = dict(self.place.rows) | _options_of_command(self.config, ("placebo",))
        if not config.is_file() or not Path(found.get("placebo", "")).is_file():
            return None
        rows = _read(_options_of_command(self.config, ROW_OPTIONS) | found | {"train": found["placebo"]})
        known = json.loads(config.read_bytes())["train"]["fingerprint"]
        return rows if rows.fingerprint == known else None

    @cached_property
    def facets(self) -> tuple[Facet, ...]:
        return facets(self.train)

    @property
    def format(self) -> TokenFormat:
        return TokenFormat(**self.config["format"])

    @property
    def compute(self) -> Compute:
        """As the rows' gradients were made, on the device that was asked for."""
        stored: dict[str, Any] = dict(self.config["compute"])
        stored |= {"parameters": tuple(stored["parameters"]), "device": self.place.device}
        return Compute(**stored)

    def require_run(self) -> TrainingRun:
        """The models. Raises UsageError where they cannot be used."""
        if self.run is None:
            raise UsageError(
                "no models to ask", expected="the models of this trace", cause=self.why, fix="give --checkpoints"
            )
        return self.run

    def method(self, name: str, options: Mapping[str, Any]) -> tuple[Method, Plan, How]:
        """A method, its plan, and what it costs here.

        Raises:
            HeadwaterError: it cannot be used here, and why.
        """
        if name not in METHODS:
            make_method(name)  # says which there are
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        rank = int(self.index.config["compute"]["rank"]) if self.index is not None else None
        look = second_look(options)
        given.pop("second_look", None)
        if rank and "rank" in METHODS[name].options() and given.get("inner") != "token_cosine":  # that reads the rows
            given = {"rank": rank} | given
        if METHODS[name].needs_base and self.run is not None and self.run.base is None:
            given = {"beta": 0.0} | given
        try:
            method = make_method(name, **given)
        except TypeError as error:
            raise UsageError(
                f"options of {name} ({error})", expected="values of the right types", fix="correct them"
            ) from None
        by_words = hasattr(method, "score_text")
        if by_words and not look:
            return method, TextPlan(), "words"
        run = self.require_run()
        if look:
            plan = TextPlan() if by_words else planned(method, run, rank)
            if not rank or first_look(plan) == plan:
                raise UsageError(
                    f"a second look by {name}" + ("" if rank else " without an index"),
                    expected="an index, and a method that tells a row's tokens apart",
                    fix="leave second_look out",
                )
            check_stored(name, first_look(plan), rank)
            return method, plan, "look"
        method = whole_form(method) if rank else method
        plan = planned(method, run, rank)
        if rank and isinstance(plan, GradientPlan):
            try:
                check_stored(name, plan, rank)
            except UsageError:
                return method, planned(method, run, None), "rows"
            return method, plan, "index"
        return method, plan, "rows"

    def able_methods(self) -> list[dict[str, Any]]:
        """Every method: what it computes and costs, and whether it can be used here."""
        found: list[dict[str, Any]] = []
        for name, info in METHODS.items():
            record: dict[str, Any] = {
                "name": name,
                "ask": {"name": name, "options": {}},
                "computes": info.computes,
                "cost": info.cost,
                "status": info.status,
                "source": info.source,
            }
            try:
                _, plan, how = self.method(name, {})
                found.append(record | {"how": how, "words": has_words(plan), "able": True})
            except HeadwaterError as error:
                found.append(record | {"how": "rows", "words": False, "able": False, "why": str(error)})
            again = {"second_look": LOOK}
            with suppress(HeadwaterError):  # most methods see no more by it
                _, plan, how = self.method(name, again)
                ask = {"name": name, "options": again}
                found.append(
                    record
                    | {"name": label(name, again), "ask": ask, "how": how, "words": has_words(plan), "able": True}
                )
        return found

    def able(self, *, base: bool = False) -> dict[str, Any]:
        """Whether the models (or the base) can be asked."""
        if self.run is None:
            return {"able": False, "why": self.why or "there are no models"}
        if base and self.run.base is None:
            return {"able": False, "why": "There is no base model: give --base to compare with it."}
        return {"able": True}


def label(name: str, options: Mapping[str, Any]) -> str:
    """How a method with these options is called."""
    given = ", ".join(f"{key} {value}" for key, value in sorted(options.items()))
    return f"{name} ({given})" if given else name


def second_look(options: Mapping[str, Any]) -> int:
    """Rows of the second look that a method is asked for with; 0: none.

    Raises:
        UsageError: no number of rows.
    """
    count = options.get("second_look", 0)
    if type(count) is not int or count < 0:
        raise UsageError(f"second_look {count!r}", expected="a number of rows", fix="correct it")
    return count


def _models(place: Place, config: Mapping[str, Any], index: Index | None) -> tuple[TrainingRun | None, str | None]:
    """The models, or why there are none. What the user named must fit."""
    given = TrainingRun.from_pretrained(**place.models) if place.models.get("checkpoints") else None
    name = Path(place.folder).name
    try:
        run = run_of(index, given) if index is not None else run_of_record(config, name, given)
    except HeadwaterError as error:
        if given is not None:
            raise
        return None, str(error)
    except (KeyError, TypeError) as error:
        return None, f"{name} does not say which models it was made from ({error})."
    allowed = {key: value for key, value in place.models.items() if key in ("trust_remote_code", "allow_pickle")}
    return replace(run, **allowed), None


def _open_trace(cls: type[Opened], place: Place, folder: Path) -> Opened:
    manifest = read_manifest(folder)
    config: Mapping[str, Any] = manifest["provenance"]
    index = None
    if "index" in config:
        try:
            index = Index.open(config["index"]["place"])
            index = index if index.fingerprint == config["index"]["fingerprint"] else None
        except HeadwaterError:
            index = None
    kept = numbers = _kept_rows(folder, manifest)
    if place.rows.get("train"):
        train = _read(place.rows)
    elif index is not None:
        train = index.examples(kept)
        kept = None
    else:
        train = _read(_rows_of_trace(folder, config))
    if kept is not None and max(kept, default=0) < len(train):
        train = Examples([train[n] for n in kept], name=train.name, template=train.template)
    _check_rows(folder, manifest, train)
    run, why = _models(place, config if index is None else index.config, index)
    if manifest.get("scored_rows", manifest["rows"]) != manifest["rows"]:
        run, why = None, "Only the first and last rows of this trace were kept: open the index itself to ask more."
    elif run is not None and not {"format", "compute"} <= set(config if index is None else index.config):
        run, why = None, f"{folder.name} does not say how its rows became tokens."
    return cls(
        place=place,
        kind="trace",
        train=train,
        index=index,
        manifest=manifest,
        run=run,
        why=why,
        config=config if index is None else index.config,
        numbers=None if numbers is None else tuple(numbers),
    )


def _kept_rows(folder: Path, manifest: Mapping[str, Any]) -> list[int] | None:
    """Numbers of the rows of a trace that kept only some; None where it kept all."""
    import pyarrow.parquet as pq

    if manifest.get("scored_rows", manifest["rows"]) == manifest["rows"]:
        return None
    table = pq.read_table(folder / "scores.parquet", columns=["row"])
    return [int(n) for n in table.column("row").to_pylist()[: manifest["rows"]]]


def _check_rows(folder: Path, manifest: Mapping[str, Any], train: Examples) -> None:
    """Raises DataError where the rows are not those of the trace, and those that it has no score of."""
    table, count = Table(folder / "scores.parquet"), manifest["rows"]
    scored = table.rows_of(train, count) if len(train) == count + len(manifest.get("not_scored", ())) else train
    if table.texts("content_hash")[:count] != [row.content_hash for row in scored]:
        raise DataError(
            f"{train.name} is not the data {folder} was traced with",
            expected="the same rows in the same order",
            fix="give the original file with --train",
        )


def _rows_of_trace(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the rows of a trace are: what the command that made it said, or a ROWS in its folder or beside it.

    Raises:
        UsageError: it is not known, or the file is no longer there.
    """
    found = _options_of_command(config, ROW_OPTIONS)
    if "train" in found and (Path(found["train"]).exists() or _HUB_ID.fullmatch(found["train"])):
        return found
    for place in (folder / ROWS, folder.resolve().parent / ROWS):
        if place.is_file():
            return {"train": str(place)}
    named = found.get("train") or config.get("train", {}).get("name", "the training rows")
    raise UsageError(
        f"the rows of {folder} ({named}) are not there",
        expected="the file that the trace was made with",
        cause="another working folder, or a file that was moved" if "train" in found else "a trace made in Python",
        fix=f"say where it is with --train, or put it into the folder as {ROWS}",
    )


def _options_of_command(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What the command that made a trace said of its rows."""
    words = shlex.split(str(config.get("command", "")))
    found: dict[str, Any] = {}
    for name in names:
        flag = f"--{name}" if name in ("train", "split", "template", "placebo") else f"--{name}-column"
        for number, word in enumerate(words):
            if word == flag and number + 1 < len(words):
                found[name] = words[number + 1]
            elif word.startswith(f"{flag}="):
                found[name] = word.partition("=")[2]
    return found


def _read(rows: Mapping[str, Any]) -> Examples:
    columns = {name: rows.get(name) for name in ("prompt", "completion", "messages", "text", "id")}
    return read_examples(
        rows["train"],
        split=rows.get("split"),
        columns=Columns(**columns),
        template=rows.get("template") or "auto",
    )


def place_record(place: Place) -> dict[str, Any]:
    """A place as JSON values."""
    return asdict(place)

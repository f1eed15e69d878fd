"""What the columns mean: TRL's names, Alpaca's, ShareGPT's, or names given by flags; and a row's way to an Example."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from headwater.errors import DataError, UsageError
from headwater.examples.example import Example, Kind, content_hash
from headwater.examples.messages import Message, checked_messages, checked_text, is_conversation
from headwater.examples.prompts import TEMPLATES, Template, alpaca_prompt, plain_prompt, templated

TemplateChoice = Literal["auto", "plain", "chat", "alpaca"]

_KNOWN = (
    "prompt + completion, messages, conversations, text, or instruction (+ input) + output; "
    "or columns named by Columns(...) or the column flags"
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns, where they are not the usual ones. `prompt` goes with `completion`; `id` with any."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        chosen = [name for name in ("messages", "text") if getattr(self, name) is not None]
        if self.prompt is not None or self.completion is not None:
            chosen.append("prompt/completion")
        if len(chosen) > 1:
            raise UsageError(
                f"columns for {' and '.join(chosen)} at once",
                expected="either a prompt and a completion column, or a messages column, or a text column",
                fix="name the columns of one of them",
            )


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What the columns of one data set mean; decided on its first row, applied to all."""

    form: Literal["pair", "alpaca", "messages", "text"]
    used: tuple[str, ...]
    id_column: str
    id_required: bool
    template: TemplateChoice

    def example(self, row: Mapping[str, Any], source: str) -> Example:
        """Turns a row into an Example.

        Raises:
            DataError: for missing columns, nulls, values of the wrong type and ids that are no ids.
        """
        for name in self.used:
            if name not in row and not (self.form == "alpaca" and name == "input"):
                raise _no_column(name, row, source)
        taken = {*self.used, self.id_column}
        metadata = {str(key): value for key, value in row.items() if key not in taken}
        kind, prompt, completion = self._content(row, source)
        return Example(
            id=self._id(row, source),
            source=source,
            content_hash=content_hash(prompt, completion, metadata, kind),
            kind=kind,
            prompt=prompt,
            completion=completion,
            metadata=metadata,
        )

    def template_of(self, kind: Kind) -> Template:
        """The template that rows of this kind were made with, and bare query prompts are to be given."""
        if kind in ("chat", "messages"):
            return "chat"
        if self.template == "auto":
            return "alpaca" if self.form == "alpaca" else "plain"
        return self.template

    def _content(
        self, row: Mapping[str, Any], source: str
    ) -> tuple[Kind, str | tuple[Message, ...], str | tuple[Message, ...]]:
        if self.form == "text":
            self._refuse("text rows", source, ("chat", "alpaca"))
            return "text", "", checked_text(row[self.used[0]], source, f'column "{self.used[0]}"')
        if self.form == "messages":
            self._refuse("conversations", source, ("plain", "alpaca"))
            return "messages", (), checked_messages(_from_json(row[self.used[0]]), source, f'column "{self.used[0]}"')
        if self.form == "alpaca":
            instruction = checked_text(row["instruction"], source, 'column "instruction"')
            given = row.get("input")
            given = "" if given is None else checked_text(given, source, 'column "input"')
            completion = checked_text(row["output"], source, 'column "output"')
            joined = plain_prompt if self.template in ("plain", "chat") else alpaca_prompt
            return self._string_pair(joined(instruction, given), completion)
        prompt_name, completion_name = self.used
        prompt, completion = row[prompt_name], row[completion_name]
        if is_conversation(prompt):
            self._refuse("chat prompts", source, ("plain", "alpaca"))
            turns = checked_messages(prompt, source, f'column "{prompt_name}"')
            if is_conversation(completion):
                return "chat", turns, checked_messages(completion, source, f'column "{completion_name}"')
            answer = checked_text(completion, source, f'column "{completion_name}"')
            return "chat", turns, ({"role": "assistant", "content": answer},)
        return self._string_pair(
            checked_text(prompt, source, f'column "{prompt_name}"'),
            checked_text(completion, source, f'column "{completion_name}"'),
        )

    def _string_pair(
        self, prompt: str, completion: str
    ) -> tuple[Kind, str | tuple[Message, ...], str | tuple[Message, ...]]:
        if self.template == "chat":
            return "chat", templated(prompt, "chat"), ({"role": "assistant", "content": completion},)
        if self.template == "alpaca" and self.form == "pair":
            return "completion", templated(prompt, "alpaca"), completion
        return "completion", prompt, completion

    def _refuse(self, what: str, source: str, templates: tuple[TemplateChoice, ...]) -> None:
        if self.template in templates:
            raise UsageError(
                f'template "{self.template}" for {what} ({source})',
                expected="prompt and completion columns that hold strings",
                fix='use template "auto"',
            )

    def _id(self, row: Mapping[str, Any], source: str) -> str:
        value: Any = row.get(self.id_column)
        if value is None or value == "":
            if self.id_required:
                raise DataError(
                    f'{source}: no id in column "{self.id_column}"',
                    expected="an id in every row",
                    fix="fill the ids in, or choose no id column: rows are then named by file and line",
                )
            return source
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise DataError(
                f'{source}: the id in column "{self.id_column}" is {value!r} ({type(value).__name__})',
                expected="a string or an integer",
                fix="write ids as strings, or choose another id column",
            )
        return checked_text(str(value), source, f'column "{self.id_column}"')


def convention_of(row: Mapping[str, Any], columns: Columns | None, template: TemplateChoice, source: str) -> Convention:
    """Decides on the first row what the columns mean.

    Names given by `columns` come first; then, as in TRL, prompt + completion, messages, conversations; then Alpaca's
    instruction + output; then text. Alpaca columns beside a text column are refused, because training on the text
    takes another loss: `template="alpaca"` or `Columns(text="text")` decides.

    Raises:
        UsageError: for an unknown template.
        DataError: where no convention fits, with the columns that exist.
    """
    if template not in get_args(TemplateChoice):
        raise UsageError(
            f'template "{template}"', expected=f"auto, {', '.join(TEMPLATES)}", fix="choose one of these templates"
        )
    columns = columns or Columns()
    for name in filter(None, (getattr(columns, field.name) for field in fields(columns))):
        if name not in row:
            raise _no_column(name, row, source)

    def build(form: Literal["pair", "alpaca", "messages", "text"], *used: str) -> Convention:
        return Convention(
            form=form, used=used, id_column=columns.id or "id", id_required=columns.id is not None, template=template
        )

    if columns.text:
        return build("text", columns.text)
    if columns.messages:
        return build("messages", columns.messages)
    if columns.prompt or columns.completion:
        pair = (columns.prompt or "prompt", columns.completion or "completion")
        for name in pair:
            if name not in row:
                raise _no_column(name, row, source)
        return build("pair", *pair)
    candidates: Iterable[tuple[tuple[str, ...], Callable[[], Convention]]] = (
        (("prompt", "completion"), lambda: build("pair", "prompt", "completion")),
        (("messages",), lambda: build("messages", "messages")),
        (("conversations",), lambda: build("messages", "conversations")),
        (("instruction", "output"), lambda: build("alpaca", "instruction", "input", "output")),
        (("text",), lambda: build("text", "text")),
    )
    for wanted, convention in candidates:
        if all(name in row for name in wanted):
            found = convention()
            if found.form == "alpaca" and "text" in row and template == "auto":
                raise DataError(
                    f"{source}: both Alpaca columns (instruction, output) and a text column",
                    expected="one of the two, because the loss differs: the output alone, or every token of the text",
                    fix='say which one training used: template "alpaca", or the text column "text"',
                )
            return found
    raise DataError(
        f"{source}: the columns {_listed(row)}",
        expected=_KNOWN,
        fix="name the columns that hold the prompt and the completion",
    )


def _no_column(name: str, row: Mapping[str, Any], source: str) -> DataError:
    return DataError(
        f'{source}: no column "{name}"',
        expected=f"one of the columns that exist: {_listed(row)}",
        fix="correct the name of the column, or the row",
    )


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "(none)"


def _from_json(value: object) -> object:
    """Conversations in CSV cells are written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value

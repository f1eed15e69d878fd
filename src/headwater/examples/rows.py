"""The training rows of one data set, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, overload

from headwater.errors import DataError
from headwater.examples.conventions import Columns, Convention, TemplateChoice, convention_of
from headwater.examples.example import Example, Kind
from headwater.examples.prompts import Template


class Examples(Sequence[Example]):
    """Training rows of one kind, in order, each under its own id. A slice of Examples is Examples.

    Args:
        rows: at least one row.
        name: file or data set name.
        template: how bare prompts were turned into these rows' prompts; None for "chat" where the rows are chats,
            else "plain".

    Raises:
        DataError: for no rows, for mixed kinds and for ids that occur twice, naming both rows.
    """

    def __init__(self, rows: Iterable[Example], *, name: str = "rows", template: Template | None = None) -> None:
        self._rows = tuple(rows)
        self.name = name
        if not self._rows:
            raise DataError(
                f"{name}: no rows", expected="at least one training row", fix="check the file or the selection"
            )
        first = self._rows[0]
        self.kind: Kind = first.kind
        chats = first.kind in ("chat", "messages")
        self.template: Template = template or ("chat" if chats else "plain")
        sources: dict[str, str] = {}
        for row in self._rows:
            if row.kind != first.kind:
                raise DataError(
                    f'{row.source}: a row of kind "{row.kind}" where {first.source} is of kind "{first.kind}"',
                    expected="rows of one kind",
                    fix="write all rows in the same columns and types, or read them as two data sets",
                )
            if row.id in sources:
                raise DataError(
                    f'id "{row.id}" twice: {sources[row.id]} and {row.source}',
                    expected="an id of its own for every row",
                    fix="rename one of the two, or choose another id column",
                )
            sources[row.id] = row.source

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Example | Mapping[str, Any]],
        *,
        name: str = "rows",
        columns: Columns | None = None,
        template: TemplateChoice = "auto",
    ) -> Examples:
        """Makes Examples of Example objects or of dicts with the columns that files have.

        Args:
            rows: the rows; dicts get the source "<name>:<row number, from 1>".
            name: the name of the data set.
            columns: names of columns, where they are not the usual ones.
            template: "auto", or how to make prompts of bare strings (see `read_examples`).

        Raises:
            DataError: for rows that cannot be used.
        """
        numbered = ((f"{name}:{number}", row) for number, row in enumerate(rows, start=1))
        return cls.from_records(numbered, name=name, columns=columns, template=template)

    @classmethod
    def from_records(
        cls,
        records: Iterable[tuple[str, Example | Mapping[str, Any]]],
        *,
        name: str,
        columns: Columns | None = None,
        template: TemplateChoice = "auto",
    ) -> Examples:
        """Like `from_rows`, from pairs of source and row."""
        convention: Convention | None = None
        examples: list[Example] = []
        for source, row in records:
            if isinstance(row, Example):
                examples.append(row)
                continue
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{source}: a row of type {type(row).__name__}",
                    expected="an object with the columns as keys",
                    fix="write every row as an object",
                )
            if convention is None:
                convention = convention_of(row, columns, template, source)
            examples.append(convention.example(row, source))
        if convention is not None and examples:
            return cls(examples, name=name, template=convention.template_of(examples[-1].kind))
        return cls(examples, name=name, template=None if template == "auto" else template)

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over all (id, content_hash), order included."""
        digest = blake2b(digest_size=16)
        for row in self._rows:
            digest.update(f"{len(row.id)}:{row.id}:{row.content_hash};".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @cached_property
    def duplicates(self) -> int:
        """The number of rows whose content occurred in an earlier row. They stay rows of their own."""
        return len(self._rows) - len({row.content_hash for row in self._rows})

    @cached_property
    def twins(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the rows with the same content, a group for each content that occurs more than once."""
        if not self.duplicates:
            return ()
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(self._rows):
            groups.setdefault(row.content_hash, []).append(number)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    @property
    def ids(self) -> list[str]:
        """The ids, in order."""
        return [row.id for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self._rows[index], name=self.name, template=self.template)
        return self._rows[index]

    def __repr__(self) -> str:
        return f'Examples("{self.name}", {len(self)} rows of kind "{self.kind}", template "{self.template}")'

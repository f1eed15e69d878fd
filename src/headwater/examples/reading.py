"""Training rows as they lie around: a file, a folder, what `datasets` saved, or a data set of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headwater.errors import DataError
from headwater.examples.conventions import Columns, TemplateChoice
from headwater.examples.files import FORMATS, file_records, format_of
from headwater.examples.rows import Examples

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SPLIT_NAME = re.compile(r"(train|training|test|validation|valid|val|dev|eval)(?=[-_.]|$)", re.IGNORECASE)
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_MODEL_FILES = ("config.json", "adapter_config.json", "trainer_state.json")

_Records = Iterator[tuple[str, Mapping[str, Any]]]


def read_examples(
    path: str | Path,
    *,
    split: str | None = None,
    columns: Columns | None = None,
    template: TemplateChoice = "auto",
) -> Examples:
    """Reads training rows; no model and no tokenizer is loaded.

    Args:
        path: a .jsonl, .json (list or lines), .csv, .tsv or .parquet file (text formats also with .gz), a folder of
            such files, a folder written by `datasets.save_to_disk`, or a hub id.
        split: the split, where the data set or the folder has several.
        columns: names of columns, where they are not TRL's (prompt + completion, messages, text), ShareGPT's
            (conversations) or Alpaca's (instruction, input, output).
        template: "auto" takes the Stanford text for Alpaca columns and leaves all else as it is; "chat" makes one user
            turn of a string prompt and one assistant turn of its completion; "alpaca" puts string prompts into the
            Stanford text; "plain" leaves strings alone and joins Alpaca's instruction and input by an empty line.

    Raises:
        DataError: for whatever cannot be read or used, naming file and line.
        UsageError: for options that do not fit the rows.
    """
    name, records = read_records(path, split=split)
    return Examples.from_records(records, name=name, columns=columns, template=template)


def read_records(path: str | Path, *, split: str | None = None) -> tuple[str, _Records]:
    """The rows as they are written: name of the data, and pairs of source ("<file>:<line>") and columns.

    Raises:
        DataError: as `read_examples`.
    """
    place, is_folder, is_there = _looked_at(path)
    if is_folder:
        return _folder(place, split)
    if is_there or format_of(place) is not None or not _HUB_ID.fullmatch(str(path)):
        if split is not None and is_there:
            raise DataError(
                f'split "{split}" of the single file {place}',
                expected="a split only of a data set or a folder",
                fix="leave the split away, or give the folder",
            )
        if not is_there:
            raise DataError(
                f"{place}: no such file or folder",
                expected="a file, a folder or a hub id such as owner/name",
                fix="check the path",
            )
        return place.name, _of_file(place, place.name)
    return _hub(str(path), split)


def _looked_at(path: str | Path) -> tuple[Path, bool, bool]:
    """The place, whether it is a folder, and whether anything is there."""
    try:
        place = Path(path).expanduser()
        return place, place.is_dir(), place.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, the home of nobody, a NUL
        raise DataError(
            f"{str(path)[:200]}: cannot be looked at ({getattr(error, 'strerror', None) or error})",
            expected="a file, a folder or a hub id such as owner/name",
            fix="check the path",
        ) from error


def _of_file(file: Path, name: str) -> _Records:
    return ((f"{name}:{line}", row) for line, row in file_records(file))


def _folder(folder: Path, split: str | None) -> tuple[str, _Records]:
    name = folder.resolve().name
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return name, _saved(folder, name, split)
    inner = [folder / split] if split else []
    inner = [place for place in inner if (place / "state.json").exists()]
    if inner:
        return name, _saved(inner[0], name, None)
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and format_of(file) is not None
        and file.name not in _NOT_ROWS
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if any((folder / model_file).exists() for model_file in _MODEL_FILES):
        raise DataError(
            f"{folder}: the folder of a model", expected="a folder of training rows", fix="give the training data here"
        )
    if not files:
        raise DataError(
            f"{folder}: no data files in the folder",
            expected=f"files that end in {', '.join(FORMATS)}, or a folder written by datasets.save_to_disk",
            fix="check the path",
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    named = sorted(key for key in splits if key)
    if split is not None:
        if split not in named:
            raise _unknown_split(str(folder), split, named)
        files = splits[split]
    elif len(named) > 1:
        raise _several_splits(str(folder), named)
    kinds = sorted({format_of(file) or "" for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: files of several formats ({', '.join(kinds)})",
            expected="one format, so that no row is read twice",
            fix="give one of the files, or a folder that holds one format",
        )
    return name, (record for file in files for record in _of_file(file, file.relative_to(folder).as_posix()))


def _split_of(file: Path) -> str:
    """The split that a file's name, or a folder on the way to it, begins with; "" for none."""
    for part in (file.name, *reversed(file.parts[:-1])):
        match = _SPLIT_NAME.match(part)
        if match:
            return match[1].lower()
    return ""


def _saved(folder: Path, name: str, split: str | None) -> _Records:
    datasets = _datasets(f"{folder}: a folder of datasets.save_to_disk")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{folder}: not readable as a folder of datasets.save_to_disk ({_reason(error)})",
            expected="the whole folder that save_to_disk wrote",
            cause="an interrupted copy, or one made by a newer version of datasets",
            fix="write the folder again",
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return _rows(_chosen_split(loaded, str(folder), split), name)
    if split is not None and str(loaded.split) != split:
        raise DataError(
            f'split "{split}" of {folder}, which holds a single data set',
            expected="a split only where there are several",
            fix="leave the split away",
        )
    return _rows(loaded, name)


def _hub(name: str, split: str | None) -> tuple[str, _Records]:
    datasets = _datasets(f"{name}: neither a file nor a folder here, perhaps a hub id")
    from huggingface_hub import HfApi, constants

    try:
        if not constants.HF_HUB_OFFLINE:
            # one question without retries: `datasets` alone takes half a minute to notice a mistyped path
            HfApi().dataset_info(name, timeout=10)
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:
        if isinstance(error, ValueError) and split is not None and "split" in str(error).lower():
            raise DataError(
                f'no split "{split}" in {name} ({_reason(error)})',
                expected="a split that exists",
                fix="name one of them",
            ) from error
        raise DataError(
            f"{name}: neither a file or folder here nor a data set that the hub gives out ({_reason(error)})",
            expected="an existing file or folder, or the id of a data set that can be reached",
            cause="a path that is wrong, no network, or a private or gated data set",
            fix="check the path; without a network, set HF_HUB_OFFLINE=1 to read a copy in the cache, or fetch the "
            "data elsewhere and give the folder that save_to_disk wrote",
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _chosen_split(loaded, name, split)
    return name, _rows(loaded, name)


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{what}, and the package datasets is not installed",
            expected="an existing file, or the package datasets",
            fix="check the path, or run: pip install 'headwater[datasets]'",
        ) from error
    return datasets


def _chosen_split(splits: Mapping[str, Any], where: str, split: str | None) -> Any:
    if split is None:
        if len(splits) != 1:
            raise _several_splits(where, list(splits))
        return next(iter(splits.values()))
    if split not in splits:
        raise _unknown_split(where, split, list(splits))
    return splits[split]


def _rows(dataset: Any, name: str) -> _Records:
    plain = dataset.with_format(None)
    return ((f"{name}:{number}", row) for number, row in enumerate(plain, start=1))


def _unknown_split(where: str, split: str, existing: list[str]) -> DataError:
    return DataError(
        f'{where}: no split "{split}"',
        expected=f"one of the splits that exist: {', '.join(existing) or '(none)'}",
        fix="name one of these splits" if existing else "leave the split away",
    )


def _several_splits(where: str, existing: list[str]) -> DataError:
    return DataError(
        f"{where}: several splits ({', '.join(existing)})",
        expected="the one that the model was trained on",
        fix=f'choose it, as in split "{existing[0] if existing else "train"}"',
    )


def _reason(error: BaseException) -> str:
    """The first line of an error of another library, cut to what fits into one line."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."

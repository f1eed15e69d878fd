"""Folders: the same on this machine and on an fsspec URL; failures are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from headwater.errors import HeadwaterError, RunError, UsageError
from headwater.index.folder import Folder


@pytest.fixture(params=["path", "file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "s3":
        return Folder(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/index")
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return Folder("memory://bucket/index")
    return Folder(tmp_path / "index" if request.param == "path" else f"file://{tmp_path}/index")


def test_files(folder: Folder) -> None:
    assert not folder.exists() and not folder.exists("a") and folder.names() == [] and folder.sizes() == {}
    folder.write_whole("config.json", b"{}")
    folder.write_whole("parts/000/rows", b"abc")
    folder.write_whole("parts/000/rows", b"abcd")
    folder.child("parts").child("001").write_whole("rows", b"")
    assert folder.exists() and folder.exists("parts") and folder.exists("parts/000/rows")
    assert folder.names() == ["config.json", "parts"]
    assert folder.child("parts").names() == ["000", "001"]
    assert folder.sizes() == {"config.json": 2, "parts/000/rows": 4, "parts/001/rows": 0}
    assert folder.child("parts").sizes() == {"000/rows": 4, "001/rows": 0}
    assert folder.read_bytes("parts/000/rows") == folder.mapped("parts/000/rows").tobytes() == b"abcd"
    assert folder.mapped("parts/001/rows").size == 0
    assert str(folder.child("parts")) == f"{folder}/parts"
    with pytest.raises(RunError, match="config is missing"):
        folder.read_bytes("config")
    with pytest.raises(RunError, match="config is missing"):
        folder.mapped("config")


def test_what_is_mapped_can_be_written_to_without_changing_the_file(folder: Folder) -> None:
    folder.write_whole("a", b"abcd")
    folder.mapped("a")[0] = 0
    assert folder.read_bytes("a") == b"abcd"


def test_listing_is_never_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with filesystems that remember listings until they are told to forget."""
    from fsspec.implementations.memory import MemoryFileSystem

    remembered: dict[str, Any] = {}
    for name in ("find", "ls", "exists"):
        ask = getattr(MemoryFileSystem, name)

        def answer(self: Any, path: str, name: str = name, ask: Any = ask, **options: Any) -> Any:
            key = f"{name} {path}"
            if key not in remembered:
                remembered[key] = ask(self, path, **options)
            return remembered[key]

        monkeypatch.setattr(MemoryFileSystem, name, answer)
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda *_: remembered.clear())
    folder = Folder("memory://bucket/stale")
    assert (folder.exists("a"), folder.names(), folder.sizes()) == (False, [], {})
    folder.write_whole("a", b"1")
    assert folder.exists("a")
    folder.write_whole("b", b"")
    assert folder.names() == ["a", "b"]
    assert set(folder.sizes()) == {"a", "b"}
    folder.write_whole("c", b"")
    assert folder.sizes() == {"a": 1, "b": 0, "c": 0}


def test_what_is_removed_is_gone(folder: Folder) -> None:
    for name in ("a/b", "a/c/d", "e", "ab"):
        folder.write_whole(name, b"1")
    folder.remove("e")
    folder.child("a").remove()
    folder.remove("nothing")
    assert folder.sizes() == {"ab": 1} and folder.names() == ["ab"]
    folder.remove()
    assert not folder.exists() and folder.sizes() == {}


def test_only_local_folders_have_a_path(folder: Folder) -> None:
    if folder.is_local:
        assert folder.path.name == "index"
    else:
        with pytest.raises(UsageError, match="is remote"):
            _ = folder.path


def test_zarr_store(folder: Folder) -> None:
    import zarr

    zarr.create_group(folder.zarr_store(read_only=False), attributes={"a": 1})
    assert zarr.open_group(folder.zarr_store(), mode="r").attrs["a"] == 1
    assert folder.names() == ["zarr.json"]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("nowhere://x", "Protocol not known: nowhere"),
        ("abfs://x/y", "not installed .Install adlfs"),
        ("s3://key:hidden@bucket/index", "s3:// address with a password"),
    ],
)
def test_addresses_that_cannot_be_used(url: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        Folder(url)
    assert "\n" not in str(caught.value) and "hidden" not in str(caught.value)


def test_failures_of_this_machine_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside_a_file = Folder(tmp_path / "file")
    with pytest.raises(RunError, match=r"file/a cannot be written"):
        inside_a_file.write_whole("a", b"")
    with pytest.raises(RunError, match=r"file/a cannot be read .Not a directory"):
        inside_a_file.read_bytes("a")
    with pytest.raises(RunError, match="Is a directory"):
        Folder(tmp_path.parent).read_bytes(tmp_path.name)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), Exception("no credentials\nat all")])
def test_failures_of_remote_storage_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*_: object, **__: object) -> None:
        raise error

    folder = Folder("memory://bucket/other")
    for name in ("cat_file", "pipe_file", "find", "ls", "exists"):
        monkeypatch.setattr(MemoryFileSystem, name, fail)
    for call in (
        lambda: folder.read_bytes("a"),
        lambda: folder.mapped("a"),
        lambda: folder.write_whole("a", b""),
        folder.sizes,
        folder.names,
        folder.exists,
    ):
        with pytest.raises(HeadwaterError, match=r"memory://bucket/other.*(Permission denied|no credentials at all)"):
            call()


def test_a_bug_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Folder(tmp_path).write_whole("a", 3)  # type: ignore[arg-type]

"""One place for files: a folder on this machine, or an fsspec URL such as s3://bucket/index or memory://index.

Names of files are relative to the folder, with "/" on every system. Every failure is one line: unknown protocols and
packages that are not installed are a UsageError, files that cannot be read or written a RunError.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.errors import HeadwaterError, RunError, UsageError
from headwater.run import write_whole

if TYPE_CHECKING:
    from zarr.abc.store import Store

PARTIAL = ".partial"
"""In the name of every file that is not finished yet (those of `write_whole` and of zarr alike)."""


class Folder:
    """A folder for an index.

    Args:
        place: a path, or an fsspec URL; file:// URLs are paths.

    Raises:
        UsageError: the protocol is unknown, its package is not installed, or the URL holds a password.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.url = os.fspath(place)
        self._files: Any = None  # an fsspec filesystem; None on this machine
        self._root = self.url
        if "://" not in self.url:
            return
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

        protocol, _, rest = self.url.partition("://")
        login, at, _ = rest.split("/")[0].rpartition("@")
        if at and ":" in login:  # addresses are written into manifests and messages
            raise UsageError(
                f"a {protocol}:// address with a password in it",
                expected="an address without credentials",
                fix="give them in the environment, in the provider's own files, or in fsspec's configuration",
            )
        try:
            files, root = url_to_fs(self.url)
        except ImportError as error:
            raise UsageError(
                f"{self.url} needs a package that is not installed ({_line(error)})",
                expected=f"the fsspec package for {protocol}://",
                fix="install it (s3fs for s3://, gcsfs for gs://, adlfs for az://), or give a local folder",
            ) from None
        except ValueError as error:
            raise UsageError(
                f"{self.url}: {_line(error)}",
                expected="a folder, or a URL that fsspec knows, such as s3://bucket/index",
                fix="correct the address",
            ) from None
        except Exception as error:  # packages for remote storage raise errors of their own
            raise _unreachable(self.url, "opened", error) from None
        if isinstance(files, LocalFileSystem):
            self.url = root
        else:
            self._files = files
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine (or are mounted here)."""
        return self._files is None

    @property
    def path(self) -> Path:
        """The folder on this machine.

        Raises:
            UsageError: it is remote.
        """
        if not self.is_local:
            raise UsageError(
                f"{self} is remote", expected="a folder on this machine", fix="copy it here, give its path"
            )
        return Path(self._root)

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one; it need not exist."""
        inside = Folder.__new__(Folder)
        inside.url, inside._root = (f"{base.rstrip('/')}/{name}" for base in (self.url, self._root))
        inside._files = self._files
        return inside

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name; without a name, this folder itself."""
        with self._reported("looked into", name):
            if self.is_local:
                return Path(self._place(name)).exists()
            self._files.invalidate_cache()
            return bool(self._files.exists(self._place(name)))

    def names(self) -> list[str]:
        """Names of the files and folders in this folder, sorted; none where it does not exist."""
        with self._reported("listed"):
            if self.is_local:
                found = os.listdir(self._root) if os.path.isdir(self._root) else []  # noqa: PTH208, PTH112
            else:
                self._files.invalidate_cache()
                try:
                    found = [each.rstrip("/").rpartition("/")[2] for each in self._files.ls(self._root, detail=False)]
                except FileNotFoundError:
                    found = []
            return sorted(name for name in found if PARTIAL not in name)

    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of all finished files in this folder and below, by name."""
        with self._reported("listed"):
            if self.is_local:
                found = {
                    f"{folder}/{name}": os.path.getsize(f"{folder}/{name}")  # noqa: PTH202
                    for folder, _, names in os.walk(self._root)
                    for name in names
                    if PARTIAL not in name
                }
                return {os.path.relpath(name, self._root).replace(os.sep, "/"): size for name, size in found.items()}
            self._files.invalidate_cache()
            details = self._files.find(self._root, detail=True)
            below = len(self._root) + 1
            return {name[below:]: int(detail["size"]) for name, detail in details.items()}

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            RunError: it is missing or cannot be read.
        """
        with self._reported("read", name):
            if self.is_local:
                return Path(self._place(name)).read_bytes()
            content: bytes = self._files.cat_file(self._place(name))
            return content

    def mapped(self, name: str) -> np.ndarray:
        """The content of a file [size] uint8: mapped into memory without a copy where it is local, with the kernel
        asked to read ahead. Writing to the array does not change the file.

        Raises:
            RunError: it is missing or cannot be read.
        """
        if not self.is_local:
            return np.frombuffer(bytearray(self.read_bytes(name)), np.uint8)
        with self._reported("read", name), open(self._place(name), "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # cannot be mapped
                return np.empty(0, np.uint8)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if hasattr(mmap, "MADV_WILLNEED"):
                memory.madvise(mmap.MADV_WILLNEED)
            return np.frombuffer(memory, np.uint8)

    def write_whole(self, name: str, data: bytes) -> None:
        """Writes a file so that it is there whole or not at all: renamed into place on this machine, one upload
        elsewhere (object stores show an object when its upload is complete).

        Raises:
            RunError: it cannot be written.
        """
        with self._reported("written", name):
            if self.is_local:
                write_whole(Path(self._place(name)), data)
            else:
                self._files.pipe_file(self._place(name), data)

    def remove(self, name: str = "") -> None:
        """Removes a file or folder of ours, where it is there; without a name, this folder."""
        with self._reported("removed", name):
            place = self._place(name)
            if not self.is_local:
                self._files.invalidate_cache()
                if self._files.exists(place):
                    self._files.rm(place, recursive=True)
            elif Path(place).is_dir():
                shutil.rmtree(place)
            else:
                Path(place).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what interrupted writes left behind, here and below. Only for the one process that writes here."""
        with self._reported("written"):
            if self.is_local:
                for left in Path(self._root).rglob(f"*{PARTIAL}*"):
                    left.unlink(missing_ok=True)

    def zarr_store(self, *, read_only: bool = True) -> Store:
        """This folder as a store of the zarr package."""
        with self._reported("opened"):
            if self.is_local:
                from zarr.storage import LocalStore

                return LocalStore(self._root, read_only=read_only)
            from zarr.storage import FsspecStore

            return FsspecStore.from_url(self.url, read_only=read_only)

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _reported(self, done: str, name: str = "") -> Iterator[None]:
        """Turns a failure of the file system into one line."""
        place = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except HeadwaterError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and done != "written":
                raise RunError(f"{place} is missing", expected="a file of an index", fix="check the address") from None
            if self.is_local and not isinstance(error, OSError):
                raise  # a bug; packages for remote storage raise errors of their own
            raise _unreachable(place, done, error) from None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if len(text) <= 160 else text[:157] + "..."


def _unreachable(place: str, done: str, error: Exception) -> RunError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {_line(error)}"
    return RunError(
        f"{place} cannot be {done} ({why})",
        expected="a folder or URL that can be reached and used",
        cause="a wrong address, missing permission or credentials, no network, or a full disk",
        fix="mend that, or give another place",
    )

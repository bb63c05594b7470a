"""The one way in which files of a run are read and written: whole, atomically, by relative name."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from lt_search.errors import Problem, UserError

MIN_FREE_BYTES = 64 * 1024 * 1024
"""A search is not started with less free space than this: it could not even write its journal."""

STORAGE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a folder that is full or cannot be written: no fault of a trial."""


class FolderStore:
    """A store that is a folder, local or on a shared file system.

    Args:
        root: the folder; created when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, name: str) -> Path:
        """The path of a file or folder of the store."""
        return self.root / name

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of that name."""
        return self.path(name).exists()

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises `FileNotFoundError` if it is not there."""
        return self.path(name).read_bytes()

    def write(self, name: str, content: bytes | str) -> None:
        """Writes a whole file, so that a reader sees the old or the new content and never a part."""
        data = content.encode() if isinstance(content, str) else content
        self.write_with(name, lambda path: _write_durably(path, data))

    def write_with(self, name: str, writer: Callable[[Path], None]) -> None:
        """Like `write`, for writers that want a path (a library's `save_file`)."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            partial.touch()
            mode = partial.stat().st_mode  # the user's usual permissions; safetensors makes files its owner's alone
            writer(partial)
            partial.chmod(mode)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def create(self, name: str, content: str) -> bool:
        """Makes a file that is not there yet; False if it is. Of several processes that try, one succeeds."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("x") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def publish(self, name: str, writer: Callable[[Path], None]) -> bool:
        """Makes a whole folder appear at once, as `writer` fills it; False if there is one of that name already."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            partial.mkdir()
            writer(partial)
            partial.rename(target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    def rename(self, name: str, new_name: str) -> None:
        """Gives a file, or a folder, another name; raises `OSError` if it is not there, or a folder of that name is."""
        self.path(name).rename(self.path(new_name))

    def put_aside(self, name: str) -> str:
        """Hides a file or a folder under a name of its own, which it returns, as what is half written has."""
        path = self.path(name)
        aside = str(path.with_name(f".{path.name}.{uuid.uuid4().hex}.part").relative_to(self.root))
        self.rename(name, aside)
        return aside

    def append_line(self, name: str, line: str) -> None:
        """Adds one line to a text file that only one process writes; a line that was cut off there stays alone."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab+") as file:
            torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(("\n" if torn else "").encode() + f"{line}\n".encode())

    def list(self, folder: str, pattern: str = "*") -> list[str]:
        """Names (relative to the store) of what lies in a folder, sorted; empty if there is no such folder."""
        return sorted(str(path.relative_to(self.root)) for path in self.path(folder).glob(pattern))

    def remove(self, name: str) -> None:
        """Removes a file or a folder with all in it; nothing happens if it is not there."""
        path = self.path(name)
        if path.is_dir():
            try:
                aside = self.put_aside(name)  # so that nobody reads a folder of which a part is gone
            except FileNotFoundError:
                return
            shutil.rmtree(self.path(aside), ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def open_storage(text: str) -> FolderStore:
    """The store of `--storage`. The folder itself is only made when something is written.

    Raises:
        UserError: if it cannot be written, is full, or is of a kind that is not supported.
    """
    if "://" in text:
        raise UserError(
            Problem("--storage", f"{text!r} is an object store, and only folders are supported", "give a folder")
        )
    store = FolderStore(Path(text).expanduser())
    there = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(4096))
            probe.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise UserError(_storage_problem(store.root, error)) from error
    if free < MIN_FREE_BYTES:
        raise UserError(
            Problem(
                "--storage",
                f"{store.root} has {free / 2**20:.0f} MiB free, and a search needs {MIN_FREE_BYTES / 2**20:.0f} MiB",
                "free some space or give another folder",
            )
        )
    return store


def _storage_problem(root: Path, error: OSError) -> Problem:
    if error.errno == errno.ENOSPC:
        return Problem("--storage", f"{root} is full", "free some space or give another folder")
    return Problem("--storage", f"{root} cannot be written: {error.strerror}", "give a folder that you may write to")


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

"""Atomic and durable file I/O for a run directory, by relative name."""

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

SYNC_ERRORS = STORAGE_ERRORS | {errno.EIO}
"""Errors of a sync that mean lost data; with others (EINVAL, EACCES) a file system refuses to sync folders at all."""


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
        """Whether a file or folder of that name exists."""
        return self.path(name).exists()

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: if it does not exist.
            UserError: if it is a folder.
        """
        try:
            return self.path(name).read_bytes()
        except IsADirectoryError as error:
            what = "is a folder where a file should be"
            raise UserError(Problem(str(self.path(name)), what, "move the folder away")) from error

    def write(self, name: str, content: bytes | str) -> None:
        """Replaces a file atomically: readers see the old or the new content, which a power cut does not undo."""

        def fill(path: Path) -> None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

        self.write_with(name, fill)

    def write_with(self, name: str, writer: Callable[[Path], None]) -> None:
        """Like `write`, for writers that want a path (a library's `save_file`)."""
        target = self.path(name)
        _make_folder(target.parent)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            partial.touch()
            mode = partial.stat().st_mode  # the user's usual permissions; safetensors makes files its owner's alone
            writer(partial)
            partial.chmod(mode)
            _sync(partial)
            partial.replace(target)
            sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)

    def publish(self, name: str, writer: Callable[[Path], None]) -> bool:
        """Creates a folder atomically, with the files that `writer` puts there; False if the name is taken."""
        target = self.path(name)
        _make_folder(target.parent)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            partial.mkdir()
            writer(partial)
            for file in partial.iterdir():
                _sync(file)
            sync_folder(partial)
            partial.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    def rename(self, name: str, new_name: str) -> None:
        """Moves a file, over any file of that name, or a folder.

        Raises:
            OSError: if it does not exist, or there is a folder of the new name.
        """
        _make_folder(self.path(new_name).parent)
        self.path(name).rename(self.path(new_name))
        sync_folder(self.path(new_name).parent)

    def put_aside(self, name: str) -> str:
        """Renames a file or a folder to a hidden, unique name, as partial files have, and returns that name."""
        path = self.path(name)
        aside = str(path.with_name(f".{path.name}.{uuid.uuid4().hex}.part").relative_to(self.root))
        self.rename(name, aside)
        return aside

    def append_line(self, name: str, line: str) -> None:
        """Adds one line, durably, to a text file that only one process writes; a torn last line stays separate."""
        target = self.path(name)
        _make_folder(target.parent)
        with target.open("ab+") as file:
            new = file.tell() == 0
            torn = not new and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(("\n" if torn else "").encode() + f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(target.parent)

    def list(self, folder: str, pattern: str = "*") -> list[str]:
        """Names (relative to the store) of the entries of a folder, sorted; empty if there is no such folder."""
        return sorted(str(path.relative_to(self.root)) for path in self.path(folder).glob(pattern))

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content, if it exists."""
        path = self.path(name)
        if path.is_dir():
            try:
                aside = self.put_aside(name)  # so that nobody reads a folder that is half removed
            except FileNotFoundError:
                return
            shutil.rmtree(self.path(aside), ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the entries of a folder (files that were created or renamed in it) survive a power cut."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno in SYNC_ERRORS:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


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
    existing = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(4096))
            probe.flush()
        free = shutil.disk_usage(existing).free
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

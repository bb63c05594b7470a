"""Advisory file locks between the processes of a machine, or of the nodes that share a file system.

The kernel releases a lock when its holder dies, however it dies, so no stale lock can remain. This is the only module
that needs POSIX (`fcntl`); importing it works everywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from lt_search.errors import MachineError, Problem, UserError

ATTEMPTS, ATTEMPT_SECONDS = 10, 0.02
"""Attempts to take a lock, and the time between two: `is_held` takes it for a moment."""

HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
"""Error numbers of a lock that another process holds; any other one is the file system's."""


def require_posix() -> None:
    """Raises `MachineError` on a system without POSIX file locks, such as Windows."""
    if find_spec("fcntl") is None:
        raise MachineError("lt-search needs POSIX file locks, which Windows lacks: run it in WSL")


@contextlib.contextmanager
def held(path: Path, taken: Callable[[str], Problem]) -> Iterator[None]:
    """Holds a lock file exclusively; creates it, and its folder, where needed.

    Args:
        path: the lock file.
        taken: the problem to report where another process holds it, given a description of that process.

    Raises:
        UserError: if another process holds it, it cannot be written, or its file system has no locks.
        MachineError: on a system without POSIX file locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise UserError(_not_writable(path, error)) from error
    with lock:
        try:
            _take(lock)
        except OSError as error:
            if error.errno not in HELD:
                raise UserError(_no_locks(path.parent, error)) from error
            lock.seek(0)
            raise UserError(taken(lock.read().strip() or "another process")) from error
        with contextlib.suppress(OSError):  # on a full disk only the description of the holder is lost
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        yield


@contextlib.contextmanager
def held_after_waiting(path: Path) -> Iterator[None]:
    """Holds a lock file exclusively, after waiting for as long as another process holds it.

    Raises:
        OSError: if it cannot be written, or its file system has no locks.
        MachineError: on a system without POSIX file locks.
    """
    require_posix()
    import fcntl

    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file exclusively; True also where the file cannot be opened or locked.

    Raises:
        MachineError: on a system without POSIX file locks.
    """
    require_posix()
    import fcntl

    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError:
        return True
    return False


def _take(lock: TextIO) -> None:
    """Takes a lock exclusively; raises `OSError` if another process keeps it, or if there are no locks."""
    require_posix()
    import fcntl

    for attempt in range(1, ATTEMPTS + 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD or attempt == ATTEMPTS:
                raise
            time.sleep(ATTEMPT_SECONDS)
        else:
            return


def _not_writable(path: Path, error: OSError) -> Problem:
    if path.is_dir():
        return Problem(str(path), "is a folder, where a lock file belongs", "remove it")
    what = f"the lock file {path} cannot be written: {error.strerror}"
    return Problem("--storage", what, "give a folder that you may write to")


def _no_locks(folder: Path, error: OSError) -> Problem:
    what = f"the file system of {folder} has no locks ({error.strerror}), which keep two processes apart"
    return Problem("--storage", what, "give a folder on another file system, such as a local disk")

"""Lock files: of several processes on a machine, one does what they are about."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lt_search.errors import Problem, UserError

ATTEMPTS, ATTEMPT_SECONDS = 10, 0.02
"""Of taking a lock, and the time between two: whoever looks whether it is held has it for a moment."""

HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
"""Errors of a lock that another process has; any other is the file system's."""


@contextmanager
def held(path: Path, taken: Callable[[str], Problem]) -> Iterator[None]:
    """Holds a lock file for this process; makes it and its folder if need be.

    The kernel lets go of the lock when the process dies, however it dies, so no stale lock can remain.

    Args:
        path: of the lock file.
        taken: what to say if another process holds it, by whom that is.

    Raises:
        UserError: if another process holds it, or if the file system of the folder has no locks.
        OSError: if it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            _take(lock)
        except OSError as error:
            if error.errno not in HELD:
                raise UserError(_no_locks(path.parent, error)) from error
            lock.seek(0)
            raise UserError(taken(lock.read().strip() or "another process")) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield


def _take(lock: TextIO) -> None:
    """Takes the lock for this process alone; raises `OSError` if another one keeps it, or if there are no locks."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD or attempt == ATTEMPTS:
                raise
            time.sleep(ATTEMPT_SECONDS)
        else:
            return


def _no_locks(folder: Path, error: OSError) -> Problem:
    what = f"the file system of {folder} has no locks ({error.strerror}), which keep two processes apart"
    return Problem("--storage", what, "give a folder on another file system, such as a local disk")

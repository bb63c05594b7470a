"""Repair of a run's files: what is intact stays, the rest is moved to the run's `set-aside/`, and nothing is deleted.

Every step may be repeated after a kill.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lt_search.errors import Problems, UserError
from lt_search.storage.checkpoints import DamagedCheckpointError, checkpoint_files, read_checkpoint
from lt_search.storage.journal import (
    Journal,
    NoTrialsYetError,
    count_trials,
    open_verified,
    shown_numbers,
    sole_driver,
    unparsable_line,
)
from lt_search.storage.prefix_digests import cut, side_file, verify
from lt_search.storage.records import StepReport, is_torn, log_name, read_reports
from lt_search.storage.run_folder import JOURNAL, TRIALS_FOLDER, set_aside, trial_folder, trial_numbers

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore


@contextmanager
def sole_driver_of_sound(store: FolderStore) -> Iterator[None]:
    """Holds a run for this process, see `sole_driver`.

    Raises:
        UserError: if another process drives it, or its journal or logs of its trials are damaged.
    """
    with sole_driver(store.root):
        problems = Problems()
        problems.collect(partial(_check_journal, store.path(JOURNAL)))
        for number in sorted(trial_numbers(store.root)):
            problems.collect(partial(read_reports, store, number))
        problems.raise_if_any()
        yield


def _check_journal(path: Path) -> None:
    with suppress(NoTrialsYetError):
        Journal.reader(path)


def repair_journal(store: FolderStore) -> list[str]:
    """Cuts a run's journal to its intact part, and moves the folders of trials that it does not have out of the run.

    Intact is the longest recorded prefix that is unchanged, where a later one has changed; else all up to the first
    entry that cannot be read.

    Returns:
        What was done, in sentences; empty if nothing was wrong.
    """
    path = store.path(JOURNAL)
    done = _set_wrong_kinds_aside(store)
    content = path.read_bytes() if path.exists() else b""
    changed_before = verify(path).changed_before
    intact = _intact_part(path, content)
    if not content and changed_before is not None:
        cut(path, 0)
        done.append(f"{JOURNAL} is missing or empty: no trial stays")
    elif changed_before is not None or len(intact) < len(content):
        copy = set_aside(store)
        store.write(f"{copy}/{JOURNAL}", content)
        store.write(JOURNAL, intact)
        cut(path, len(intact))
        kept, had = intact.count(b"\n"), content.count(b"\n")
        done.append(f"{JOURNAL}: the first {kept} of {had} lines are intact and stay; the whole file is in {copy}")
    known = _count_trials(intact) or 0
    if lost := sorted(number for number in trial_numbers(store.root) if number >= known):
        folder = set_aside(store, *map(trial_folder, lost))
        done.append(
            f"lost: trials {shown_numbers(lost)}, which {JOURNAL} does not have; their files are in {folder}, and a "
            "resumed run proposes other trials of these numbers"
        )
    if done:
        done.append(f"{known} trials stay; those that {JOURNAL} has not ended continue when the run is resumed")
    return done


def _set_wrong_kinds_aside(store: FolderStore) -> list[str]:
    """Moves folders and broken links away that are in the place of files, and the other way round."""
    done = []
    for name, is_right in (
        (JOURNAL, Path.is_file),
        (side_file(store.path(JOURNAL)).name, Path.is_file),
        (TRIALS_FOLDER, Path.is_dir),
    ):
        if os.path.lexists(store.path(name)) and not is_right(store.path(name)):
            kind = "folder" if is_right is Path.is_dir else "file"
            done.append(f"{name} was not a {kind}: moved to {set_aside(store, name)}")
    return done


def _intact_part(path: Path, content: bytes) -> bytes:
    verified = verify(path)
    lines = content[: verified.length if verified.changed_before is not None else None].splitlines(keepends=True)
    bad = unparsable_line(b"".join(lines))
    lines = lines[: None if bad is None else bad - 1]
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if _count_trials(b"".join(lines)) is not None:
        return b"".join(lines)
    fails = bisect_left(range(len(lines)), True, key=lambda n: _count_trials(b"".join(lines[: n + 1])) is None)
    return b"".join(lines[:fails])


def _count_trials(journal: bytes) -> int | None:
    """How many trials a journal of this content has; None if it cannot be opened."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / JOURNAL
        copy.write_bytes(journal)
        try:
            return count_trials(open_verified(copy)[0])
        except UserError:
            return None


def repair_logs(store: FolderStore) -> list[str]:
    """Removes lines that are not step reports from the logs of trials, and keeps a copy of such a log.

    Returns:
        What was done, in sentences; empty if nothing was wrong.
    """
    done = []
    for number in sorted(trial_numbers(store.root)):
        name = log_name(number)
        if store.path(name).is_dir():
            done.append(f"{name} was a folder: moved to {set_aside(store, name)}")
        if not store.exists(name):
            continue
        lines = store.read(name).splitlines()
        intact = [line for line in lines if is_torn(line) or _is_report(line)]
        if len(intact) < len(lines):
            copy = set_aside(store)
            store.write(f"{copy}/{name}", store.read(name))
            store.write(name, b"".join(line + b"\n" for line in intact))
            done.append(f"{name}: {len(lines) - len(intact)} damaged lines removed; the whole file is in {copy}")
    return done


def _is_report(line: bytes) -> bool:
    try:
        StepReport.from_json(line)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def set_aside_damaged_checkpoints(store: FolderStore) -> list[int]:
    """Moves damaged checkpoints out of the run; returns the numbers of their trials."""
    damaged = {
        number: names
        for number in sorted(trial_numbers(store.root))
        if (names := [name for name in checkpoint_files(store, number) if _is_damaged(store, name)])
    }
    if damaged:
        set_aside(store, *(name for names in damaged.values() for name in names))
    return list(damaged)


def _is_damaged(store: FolderStore, name: str) -> bool:
    try:
        read_checkpoint(store, name)
    except DamagedCheckpointError:
        return True
    return False

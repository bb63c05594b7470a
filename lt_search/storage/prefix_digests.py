"""Digests of the prefixes of an append-only file, kept beside it to notice later changes.

A line of the side file holds the length of a prefix in bytes, its digest, and a check of the line itself: a line that
is damaged or cut off counts as absent. The side file is written after the file and may lag behind it, after a kill for
example; a file that is longer than all recorded prefixes is intact as far as they reach.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lt_search.storage.files import FolderStore


@dataclass(frozen=True)
class Verified:
    """How much of a file is as it was written."""

    length: int
    """Bytes of the longest recorded prefix that is unchanged."""
    changed_before: int | None
    """Length of the first recorded prefix after it, which has changed; None if there is none."""
    size: int
    """Bytes of the whole file."""
    state: hashlib.blake2b
    """The digest of the whole file, to continue from."""


def side_file(path: Path) -> Path:
    """Where the digests of a file are."""
    return path.with_name(f"{path.name}.digests")


def verify(path: Path) -> Verified:
    """Compares a file, absent or empty ones included, with its recorded prefixes."""
    recorded = _recorded(path)  # first: a driver that is writing extends the file before its side file
    content = path.read_bytes() if path.exists() else b""
    state = _new()
    at, length, changed = 0, 0, None
    for end, digest in recorded:
        state.update(content[at:end])
        at = end
        if end <= len(content) and state.hexdigest() == digest:
            length, changed = end, None  # what was said of a shorter prefix was wrong
        elif changed is None:
            changed = end
    state.update(content[at:])
    return Verified(length, changed, len(content), state)


def cut(path: Path, length: int) -> None:
    """Forgets the recorded prefixes beyond a length."""
    kept = [_line(end, digest) for end, digest in _recorded(path) if end <= length]
    FolderStore(path.parent).write(side_file(path).name, "".join(f"{line}\n" for line in kept))


class PrefixRecorder:
    """Records the digest of a growing file.

    Args:
        path: the file, which only this process writes.
        verified: its state now.
    """

    def __init__(self, path: Path, verified: Verified) -> None:
        self._path = path
        self._at = verified.size
        self._state = verified.state

    def record(self) -> None:
        """Adds the digest of the whole file as it is now."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            added = file.read()
        self._state.update(added)
        self._at += len(added)
        FolderStore(self._path.parent).append_line(side_file(self._path).name, _line(self._at, self._state.hexdigest()))


def _recorded(path: Path) -> list[tuple[int, str]]:
    """The recorded prefixes, shortest first; lines that are damaged or cut off are skipped."""
    try:
        lines = side_file(path).read_bytes().decode("ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = set()
    for line in lines:
        end, _, digest = line.partition(" ")
        digest = digest.partition(" ")[0]
        if end.isdecimal() and line == _line(int(end), digest):
            found.add((int(end), digest))
    return sorted(found)


def _line(end: int, digest: str) -> str:
    text = f"{end} {digest}"
    check = _new()
    check.update(text.encode())
    return f"{text} {check.hexdigest()[:8]}"


def _new() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)

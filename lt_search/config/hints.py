"""Commands of `lt-search` as text for messages."""

from __future__ import annotations

import shlex
from pathlib import Path

DEFAULT_STORAGE = "runs"
"""Where runs are kept, unless the user says otherwise."""


def command(*words: object) -> str:
    """A command of `lt-search` as a person can paste it into a shell."""
    return shlex.join(["lt-search", *map(str, words)])


def resume_command(folder: Path, *more: object) -> str:
    """The command that resumes the run, or the comparison, of a folder."""
    elsewhere = folder.parent != Path(DEFAULT_STORAGE).absolute()
    return command("search", "--resume", folder.name, *(["--storage", folder.parent] if elsewhere else []), *more)

"""Names of folders: of runs, and of the rows of a comparison."""

from __future__ import annotations

import re
from pathlib import Path

MAX_LENGTH = 100
"""Letters of a name: file systems allow 255 bytes, and names are extended (`-0001`, temporary files)."""

_FOLDER_NAME = re.compile(r"\w([\w.-]*[\w-])?")
_RESERVED = {"stage1": "holds the stage-1 artefacts of all runs"}
_RESERVED_ROWS = {
    "stage1": "holds stage-1 artefacts",
    "comparison.yaml": "is a file of the comparison",
    "ranking.csv": "is a file of the comparison",
    "driver.lock": "is a file of the comparison",
}


def run_name_problem(name: str) -> tuple[str, str] | None:
    """What is wrong with the name of a run, and the fix; None if nothing is."""
    return _problem(name, _RESERVED)


def row_name_problem(name: str) -> tuple[str, str] | None:
    """What is wrong with the name of a row, whose run is a folder of the comparison; None if nothing is."""
    return _problem(name, _RESERVED_ROWS)


def numbered_stem(space: str) -> str:
    """What the default names of a space's runs begin with: its name, or that of its file."""
    return Path(space).stem[:MAX_LENGTH]


def _problem(name: str, reserved: dict[str, str]) -> tuple[str, str] | None:
    if len(name.encode(errors="replace")) > MAX_LENGTH:
        return f"has {len(name)} letters and may have {MAX_LENGTH}", "give a shorter name"
    if not _FOLDER_NAME.fullmatch(name):
        fix = "use letters, digits, '-', '_' and '.', with a letter or digit first and no '.' last"
        return f"{name!r} cannot name a folder", fix
    if name.lower() in reserved:
        return f"{name!r} is reserved: the folder of that name {reserved[name.lower()]}", "give another name"
    return None

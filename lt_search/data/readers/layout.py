"""The folder of a published data set: what must be in it, and what is there instead."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from lt_search.data.csv_cells import Cells, check_cells, listing, read_cells
from lt_search.errors import Problems

ROOT = "--data-root"
"""What users give the folder with."""

AS_PUBLISHED = "take the file as published"


def find(
    root: Path,
    names: Sequence[str],
    problems: Problems,
    *,
    folder: bool = False,
    fix: str = "unpack the data set there, names as published",
) -> Path | None:
    """The first of these that is in a folder; else None, and `problems` says what was looked for and what is there.

    Args:
        root: the folder.
        names: the names under which the data set is published.
        problems: takes what is wrong.
        folder: look for a folder, not for a file.
        fix: what to do about it.
    """
    for name in names:
        path = root / name
        if path.is_dir() if folder else path.is_file():
            return path
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    wanted = f"{'folder' if folder else 'file'} {' or '.join(names)}"
    alike = similar(names, [name.rstrip("/") for name in there])
    problems.add(
        ROOT,
        f"no {wanted} in {root}; there is: {listing(there) or 'nothing'}",
        (f"is it {listing(alike)}? " if alike else "") + fix,
    )
    return None


def read_table(table: Path | None, columns: Sequence[str], problems: Problems, *, delimiter: str = ",") -> Cells | None:
    """The cells of a table that was found and has these columns (in lower case); else None, with what is wrong."""
    if table is None:
        return None

    def read() -> Cells:
        cells = read_cells(table, delimiter)
        check_cells(cells, table, columns, AS_PUBLISHED)
        return cells

    return problems.collect(read)


def similar(wanted: Iterable[str], there: Sequence[str]) -> list[str]:
    """Those of the names that are there which may be another spelling of one that is wanted."""
    by_lower_case = {name.lower(): name for name in there}
    found = [
        by_lower_case[close]
        for name in wanted
        for close in difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.8)
    ]
    return sorted(set(found))


def report_repeated(names: Iterable[str], place: str, problems: Problems) -> None:
    """Adds the images that a table or list names more than once."""
    found = [name for name, count in Counter(names).items() if count > 1]
    if found:
        problems.add(place, f"{len(found)} images are listed more than once: {listing(found)}", AS_PUBLISHED)


def report_unnamed(folder: Path, there: Iterable[str], named: Collection[str], problems: Problems) -> None:
    """Adds the files of an image folder that no table names: where images are missing, these may be them."""
    known = set(named)
    found = sorted(name for name in there if name not in known and name.lower().endswith((".jpg", ".jpeg", ".png")))
    if found:
        problems.add(
            str(folder),
            f"{len(found)} images there are not in the table: {listing(found)}",
            "if these are the missing ones, give them the names that the table has",
        )


def size_warnings(found: int, published: int, what: str = "images") -> tuple[str, ...]:
    """A sentence where a table is not as long as the published one."""
    return () if found == published else (f"the table has {found} {what}, the published one {published}",)

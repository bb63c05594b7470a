"""Files, tables and lists in the folder of a published data set, and reports of problems with them."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.csv_cells import Cells, check_cells, listing, read_cells
from lt_search.errors import Problems

ROOT = "--data-root"
"""The option that gives the folder."""

AS_PUBLISHED = "take the file as published"

UNLISTED = -1

Ints = npt.NDArray[np.int64]


def find(
    root: Path,
    names: Sequence[str],
    problems: Problems,
    *,
    folder: bool = False,
    fix: str = "unpack the data set there, names as published",
) -> Path | None:
    """The first of several files (or folders) that exists; otherwise None, and a problem with what was expected.

    Args:
        root: the folder to look in.
        names: the names under which the data set is published.
        problems: collects the problem.
        folder: look for a folder, not for a file.
        fix: what the user can do about it.
    """
    for name in names:
        path = root / name
        if path.is_dir() if folder else path.is_file():
            return path
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    wanted = f"{'folder' if folder else 'file'} {' or '.join(names)}"
    alike = _similar(names, [name.rstrip("/") for name in there])
    problems.add(
        ROOT,
        f"no {wanted} in {root}; there is: {listing(there) or 'nothing'}",
        (f"is it {listing(alike)}? " if alike else "") + fix,
    )
    return None


def read_table(table: Path | None, columns: Sequence[str], problems: Problems, *, delimiter: str = ",") -> Cells | None:
    """The cells of a CSV file that exists and has these columns (in lower case); otherwise None, with the problems."""
    if table is None:
        return None

    def read() -> Cells:
        cells = read_cells(table, delimiter)
        check_cells(cells, table, columns, AS_PUBLISHED)
        return cells

    return problems.collect(read)


def _similar(wanted: Iterable[str], there: Sequence[str]) -> list[str]:
    """Existing names that may be another spelling of a wanted one."""
    by_lower_case = {name.lower(): name for name in there}
    close = (difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.8) for name in wanted)
    return sorted({by_lower_case[name] for names in close for name in names})


def report(items: Sequence[object], what: str, place: str, problems: Problems, fix: str = AS_PUBLISHED) -> None:
    """Adds the problem "{number of items} {what}: {items}", where there are any."""
    if items:
        problems.add(place, f"{len(items)} {what}: {listing(items)}", fix)


def report_rows(cells: Cells, wrong: Iterable[object], what: str, place: str, problems: Problems) -> None:
    """Adds the problem "{number of rows} rows {what}: lines {numbers}" for rows (N,) that are `wrong`."""
    lines = [line for line, is_wrong in zip(cells.numbers, wrong, strict=True) if is_wrong]
    if lines:
        problems.add(place, f"{len(lines)} rows {what}: lines {listing(lines)}", AS_PUBLISHED)


def report_repeated(names: Iterable[str], place: str, problems: Problems) -> None:
    """Adds the images that a table or list names more than once."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    report(repeated, "images are listed more than once", place, problems)


def report_unnamed(folders: Iterable[Path], paths: Iterable[str], problems: Problems) -> None:
    """Adds the images in folders that are none of `paths`: they may be the missing ones under another name."""
    known = {Path(path).name for path in paths}
    for folder in folders:
        names = (path.name for path in folder.iterdir())
        unnamed = sorted(
            name for name in names if name not in known and name.lower().endswith((".jpg", ".jpeg", ".png"))
        )
        fix = "if these are the missing ones, rename them as in the table"
        report(unnamed, "images there are not in the table", str(folder), problems, fix)


def report_unknown(values: Iterable[str], known: Iterable[str], what: str, place: str, problems: Problems) -> None:
    """Adds the values that are not among the known ones, each with its number of rows."""
    expected = set(known)
    unknown = [f"{value!r} ({count} rows)" for value, count in Counter(values).items() if value not in expected]
    if unknown:
        problems.add(place, f"unknown {what}: {listing(unknown)}", AS_PUBLISHED)


def size_warnings(n_rows: int, published: int, what: str = "images") -> tuple[str, ...]:
    """A warning where a table is not as long as the published one."""
    return () if n_rows == published else (f"the table has {n_rows} {what}, the published one {published}",)


def one_hot_classes(cells: Cells, classes: Sequence[str], place: str, problems: Problems) -> Ints:
    """(N,) the class index of each row from a column of 0 and 1 per class; adds rows without exactly one class.

    Args:
        cells: its columns are named after the classes, in lower case.
        classes: (C,) in the order of the index that is returned.
        place: the file.
        problems: collects the problem.
    """
    columns = np.array([[_is_one(cell) for cell in cells.column(name.lower())] for name in classes])
    what = f"do not have a 1 for exactly one of {', '.join(classes)}"
    report_rows(cells, columns.sum(axis=0) != 1, what, place, problems)
    return np.asarray(columns.argmax(axis=0), np.int64)


def _is_one(cell: str) -> bool:
    try:
        return float(cell) == 1
    except ValueError:
        return False


def report_empty(chosen: Ints, classes: Sequence[str], place: str, problems: Problems) -> None:
    """Adds classes without an image."""
    counts = np.bincount(chosen, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    report(empty, "classes have no image", place, problems)


def divided_groups(groups: Sequence[str], part_of: Ints) -> list[str]:
    """The groups (lesions, patients) that have images in more than one split, or list."""
    parts: defaultdict[str, set[int]] = defaultdict(set)
    for group, part in zip(groups, part_of.tolist(), strict=True):
        parts[group].add(part)
    return [group for group, of_group in parts.items() if len(of_group) > 1]


def number_of_list(
    images: Sequence[str], lists: Sequence[Sequence[str]], places: Sequence[str], table: str, problems: Problems
) -> Ints:
    """(N,) the number of the published list that each image is in, `UNLISTED` for none.

    Adds images that are in no list, in two, twice in one, or not in the table.

    Args:
        images: (N,) unique names.
        lists: the names in each list.
        places: the file of each list.
        table: the file that `images` are from.
        problems: collects the problems.
    """
    row_of = {image: row for row, image in enumerate(images)}
    listed = np.full(len(images), UNLISTED, np.int64)
    for number, (place, names) in enumerate(zip(places, lists, strict=True)):
        report_repeated(names, place, problems)
        unknown = [name for name in names if name not in row_of]
        report(unknown, f"images are not in {Path(table).name}", place, problems)
        rows = np.array(sorted({row_of[name] for name in names if name in row_of}), np.int64)
        twice = [images[row] for row in rows[listed[rows] != UNLISTED].tolist()]
        report(twice, "images are in another list, too", place, problems)
        listed[rows] = number
    left = [images[row] for row in np.flatnonzero(listed == UNLISTED).tolist()]
    names_of_lists = ", ".join(Path(place).name for place in places)
    report(left, f"images are in none of {names_of_lists}", table, problems)
    return listed

"""Data sets by name or file."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from lt_search.data.csv_reader import read_csv_dataset
from lt_search.data.digits import digits_lt, digits_ml
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

PLACE = "--dataset"

BUNDLED: dict[str, Callable[[str, int], Dataset]] = {"digits-lt": digits_lt, "digits-ml": digits_ml}
"""Bundled data sets by name: a function of what follows the colon (empty if nothing does) and the split seed."""


def load_dataset(name_or_csv: str, data_root: Path | None = None, split_seed: int = 0) -> Dataset:
    """Finds and reads a data set; images are not decoded yet.

    Args:
        name_or_csv: `digits-lt`, `digits-lt:50` (imbalance factor), `digits-ml`, `digits-ml:20000` (training images),
            or the path of a CSV file, see `lt_search.data.csv_reader`.
        data_root: folder that the image paths of a CSV file start from; None for the file's own.
        split_seed: moves images, or patients, between training, validation and test, where no split is given.

    Raises:
        UserError: with everything that is wrong.
    """
    name, colon, argument = name_or_csv.partition(":")
    if name in BUNDLED:
        problems = Problems()
        if data_root is not None:
            problems.add("--data-root", f"{name!r} is bundled and has no files", "leave the option out")
        if colon and not argument:
            problems.add(PLACE, f"{name_or_csv!r} ends with a colon", f"{name!r} alone, or a number after the colon")
        problems.raise_if_any()
        return BUNDLED[name](argument, split_seed)
    path = Path(name_or_csv).expanduser()
    if path.suffix.lower() == ".csv" or path.is_file():
        return read_csv_dataset(path, data_root, split_seed)
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        fix = f"give its table: {tables[0]}" if tables else "give the path of a CSV file"
        raise UserError(Problem(PLACE, f"{name_or_csv!r} is a folder", fix))
    close = difflib.get_close_matches(name, BUNDLED, n=1)
    raise UserError(
        Problem(
            PLACE,
            f"unknown data set {name_or_csv!r}",
            (f"did you mean {close[0]!r}? " if close else "") + f"use {', '.join(BUNDLED)}, or the path of a CSV file",
        )
    )


def bundled_for(task: Task) -> str:
    """The name of the bundled data set for a task."""
    return {Task.MULTI_CLASS: "digits-lt", Task.MULTI_LABEL: "digits-ml"}[task]

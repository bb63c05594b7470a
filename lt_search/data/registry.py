"""Registry of data sets, by name or file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lt_search.data.csv_reader import read_csv_dataset
from lt_search.data.digits import digits_lt, digits_ml
from lt_search.data.readers.cxr_lt_2023 import CXR_LT_2023
from lt_search.data.readers.hyper_kvasir import HYPER_KVASIR
from lt_search.data.readers.isic2019 import ISIC2019
from lt_search.data.readers.isic_archive_lt import ISIC_ARCHIVE_LT
from lt_search.data.readers.nih_cxr14 import NIH_CXR14
from lt_search.data.readers.odir5k import ODIR5K
from lt_search.data.readers.published import Published
from lt_search.data.readers.skin7 import SKIN7
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError, did_you_mean
from trainers.task import Task

PLACE = "--dataset"

_WITH_ROOT = re.compile(r"(?P<data>.*?\.csv|[^=]+)(=(?P<root>.+))?", re.IGNORECASE | re.DOTALL)
"""A folder of the path of a CSV file may have an `=` in its name."""


BUNDLED: dict[str, Callable[[str, int], Dataset]] = {"digits-lt": digits_lt, "digits-ml": digits_ml}
"""Bundled data sets by name: a function of the argument behind the colon (empty if none) and the split seed."""

PUBLISHED: dict[str, Published] = {
    data.name: data for data in (CXR_LT_2023, HYPER_KVASIR, ISIC2019, ISIC_ARCHIVE_LT, NIH_CXR14, ODIR5K, SKIN7)
}
"""Data sets that users download, by name."""


def split_root(text: str) -> tuple[str, str | None]:
    """The data set and the root of `NAME`, `NAME=DIR`, `FILE.csv` or `FILE.csv=DIR`; None where no root is given."""
    match = _WITH_ROOT.fullmatch(text)
    return (match["data"], match["root"]) if match else (text, None)


def load_dataset(
    name_or_csv: str, data_root: Path | None = None, split_seed: int = 0, *, training_only: bool = False
) -> Dataset:
    """Finds and reads a data set; images are not decoded yet.

    Args:
        name_or_csv: one of

            - bundled: `digits-lt`, `digits-lt:50` (imbalance factor), `digits-ml`, `digits-ml:20000` (training images);
            - downloaded by the user to `data_root`: a name in `PUBLISHED`, alone or with a variant behind a colon, as
              in `isic2019:lt-100`; the module of its reader documents them, here `readers.isic2019`;
            - the path of a CSV file, see `lt_search.data.csv_reader`.
        data_root: the folder of a downloaded data set; or where the image paths of a CSV file start from, None for
            the file's own folder.
        split_seed: seed of the split where the data gives none.
        training_only: only the training split is needed, so that a CSV file may leave the others empty.

    Raises:
        UserError: with every problem with it.
    """
    name, colon, argument = name_or_csv.partition(":")
    if name in PUBLISHED:
        return _load_published(name_or_csv, data_root, split_seed)
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
        return read_csv_dataset(path, data_root, split_seed, training_only=training_only)
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        fix = f"give its table: {tables[0]}" if tables else "give the path of a CSV file"
        raise UserError(Problem(PLACE, f"{name_or_csv!r} is a folder", fix))
    known = [*BUNDLED, *PUBLISHED]
    fix = did_you_mean(name, known, f"use {', '.join(known)}, or the path of a CSV file")
    raise UserError(Problem(PLACE, f"unknown data set {name_or_csv!r}", fix))


def dataset_of(options: Mapping[str, Any], default: str = "") -> Dataset:
    """The data set that `SpecOptions`, by name, describe; `default` where they name none. See `load_dataset`."""
    root = options["data_root"]
    return load_dataset(options["dataset"] or default, Path(root) if root else None, options["split_seed"])


def _load_published(address: str, data_root: Path | None, split_seed: int) -> Dataset:
    name, colon, argument = address.partition(":")
    published = PUBLISHED[name]
    root = data_root.expanduser().absolute() if data_root else None
    problems = Problems()
    if root is None:
        problems.add("--data-root", f"is missing: {name} is not bundled", "give the folder that it was unpacked into")
    elif not root.is_dir():
        problems.add("--data-root", f"no such folder: {root}", f"give the folder that {name} was unpacked into")
    if colon and not argument:
        problems.add(PLACE, f"{address!r} ends with a colon", f"use one of {', '.join(published.variants)}")
    problems.raise_if_any()
    assert root is not None
    return published.read(argument, root, split_seed)


def bundled_for(task: Task) -> str:
    """The name of the bundled data set for a task."""
    return {Task.MULTI_CLASS: "digits-lt", Task.MULTI_LABEL: "digits-ml"}[task]

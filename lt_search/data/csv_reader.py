"""Reader of a table of image files: `image,label[,patient][,group][,split]`, one row per image.

- `image`: path of the file, from the table's folder or from `data_root`.
- `label`: one class name, or several separated by `|`, or nothing. A table with any `|` or any empty label is
  multi-label, where an empty label means that the image has none of the classes; otherwise it is multi-class.
  Classes are in sorted order of their names.
- `patient`, `group`: images that share one stay in one split. Images that share a patient *or* a group stay
  together; a blank cell ties an image to nothing.
- `split`: train (or training), val (valid, validation, dev) or test (testing), in any case. A given
  split is used unchanged: a patient in two splits is then an error, a group in two splits a warning. Otherwise images
  are divided 7:1:2, see `lt_search.data.splits`.

Other columns are ignored, as are the case of column names, blanks around cells and the order of the rows. All
images are grey to the trainer if every file is grey, otherwise RGB. Every problem is reported at once, except that
files are decoded later (see `lt_search.data.decoded` and `lt_search.data.check`), so that a truncated file is not
noticed here.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts, empty_parts
from lt_search.data.csv_cells import listing
from lt_search.data.file_source import FileState, inspect_images
from lt_search.data.groups import group_ids, group_kind, ties_of
from lt_search.data.label_table import Row, check_rows, given_split, read_rows, split_warnings
from lt_search.data.splits import SHARES, split_groups
from lt_search.data.table import PART_NAMES, Dataset
from lt_search.errors import Problems
from trainers.task import Task


def read_csv_dataset(
    table: Path, data_root: Path | None = None, split_seed: int = 0, *, training_only: bool = False
) -> Dataset:
    """Reads a table and the headers of all its images.

    Args:
        table: the CSV file.
        data_root: folder that image paths are relative to; None for the table's own.
        split_seed: seed of the split where the table gives none.
        training_only: only the training split is needed: one class is enough then, and a split column may leave the
            other splits empty, or a class without a training image.

    Raises:
        UserError: with every problem with the table and every file that is missing or not an image.
    """
    rows = sorted(read_rows(table), key=lambda row: row.image)
    folder = (data_root or table.parent).absolute()
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    problems = Problems()
    check_rows(rows, table, problems, least_classes=1 if training_only else 2)
    parts_given = given_split(rows, table, problems)
    states = _inspect(rows, folder, table, data_root, problems)
    if not problems:
        _check_one_name_a_file(rows, folder, table, problems)

    labels = _multi_hot(rows, classes)
    groups = group_ids(rows)
    if parts_given is not None:
        part_of = np.array([PART_NAMES.index(part) for part in parts_given])
        origin = "given by the split column"
        fill = "mark some rows for it in the split column, or remove the column to have the images divided"
        if training_only and "train" in empty_parts(part_of):
            problems.add(str(table), "no image is in the train split", fill)
        elif not training_only:
            train = "move some of their images to the train split, or leave these classes out"
            check_parts(part_of, labels, classes, str(table), problems, fill=fill, train=train)
        problems.raise_if_any()
    else:
        problems.raise_if_any()
        part_of = split_groups(labels, groups, split_seed)
        origin = f"{':'.join(map(str, SHARES))} by {group_kind(rows)}, seed {split_seed}"
        if not training_only:
            _check_own_parts(part_of, table, problems)
        problems.raise_if_any()

    multi_label = any(len(row.labels) != 1 for row in rows)
    names = tuple(row.image for row in rows)
    grey = all(state.grey for state in states)
    return assemble(
        LabelledFiles(folder, names, names, labels, groups, states, grey, tuple(map(ties_of, rows))),
        part_of,
        name=_name(table),
        task=Task.MULTI_LABEL if multi_label else Task.MULTI_CLASS,
        classes=classes,
        split_origin=origin,
        warnings=(*_task_warnings(rows, multi_label), *split_warnings(rows)),
    )


def _name(table: Path) -> str:
    """The table's name, or its folder's where the table is just called labels or the like."""
    stem = table.stem
    return table.absolute().parent.name if stem in {"labels", "data", "table"} else stem


def _check_one_name_a_file(rows: Sequence[Row], folder: Path, table: Path, problems: Problems) -> None:
    """Adds files that are listed under several names, by links or as absolute paths: they could cross the split."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        names[os.path.realpath(folder / row.image)].add(row.image)
    repeated = [" = ".join(sorted(found)) for found in names.values() if len(found) > 1]
    if repeated:
        fix = "keep one row per file"
        problems.add(str(table), f"{len(repeated)} files are listed under several names: {listing(repeated)}", fix)


def _inspect(
    rows: Sequence[Row], folder: Path, table: Path, data_root: Path | None, problems: Problems
) -> tuple[FileState, ...]:
    """The state of each row's file, in order, unless there are problems."""
    if not folder.is_dir():
        problems.add("--data-root", f"no such folder: {data_root}", "give the folder that image paths are relative to")
        return ()
    names = [row.image for row in rows if row.image]
    fix = "give the folder that the paths are relative to with --data-root"
    return inspect_images(folder, names, str(table), problems, all_missing=fix)


def _multi_hot(rows: Sequence[Row], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    column = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(rows), len(classes)), np.uint8)
    for index, row in enumerate(rows):
        for label in row.labels:
            labels[index, column[label]] = 1
    return labels


def _check_own_parts(part_of: npt.NDArray[np.int64], table: Path, problems: Problems) -> None:
    empty = empty_parts(part_of)
    if empty:
        problems.add(
            str(table),
            f"nothing is left for {' and '.join(empty)} once every class has a training image",
            "add images of more patients or groups",
        )


def _task_warnings(rows: Sequence[Row], multi_label: bool) -> tuple[str, ...]:
    """A hint where a few blank labels alone have made a multi-class table multi-label."""
    blank = sorted(row.line for row in rows if not row.labels)
    if multi_label and len(blank) * 20 < len(rows) and all(len(row.labels) <= 1 for row in rows):
        lines = listing([str(line) for line in blank])
        return (f"read as multi-label only because of {len(blank)} empty labels (lines {lines})",)
    return ()

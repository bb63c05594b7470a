"""Skin7 (dermoscopy of skin lesions, 7 classes): the training part of ISIC 2018 task 3, from its folder as downloaded.

    ISIC2018_Task3_Training_GroundTruth.csv       image, then a column of 0 and 1 for each class
    ISIC2018_Task3_Training_LesionGroupings.csv   of its columns, image and lesion_id are read; or
    HAM10000_metadata.csv                         of its columns, image_id and lesion_id
    ISIC2018_Task3_Training_Input/{image}.jpg

Tables may lie in a folder of the same name without `.csv`, as their archives unpack.

- `skin7`: all images, divided 7:1:2, those of one lesion together.
- `skin7:fold-1` to `skin7:fold-5`: five-fold cross-validation, as Skin7 is used. That fold is the test part; the other
  four are divided 7:1. Folds are stratified by class and keep lesions together; the lists of the papers are not
  published.

The objective is balanced accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.csv_cells import listing
from lt_search.data.file_source import inspect_images
from lt_search.data.readers.layout import AS_PUBLISHED, find, read_table, report_repeated, report_unnamed, size_warnings
from lt_search.data.readers.one_hot import one_hot_classes, report_empty
from lt_search.data.splits import SHARES, TEST, split_groups
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
"""In the order of the published table."""

N_FOLDS = 5
VARIANTS = ("skin7", *(f"skin7:fold-{number}" for number in range(1, N_FOLDS + 1)))
"""How the data set is addressed."""

GROUND_TRUTH = "ISIC2018_Task3_Training_GroundTruth.csv"
LESIONS = ("ISIC2018_Task3_Training_LesionGroupings.csv", "HAM10000_metadata.csv")
"""The first one that is there is read."""
IMAGES = "ISIC2018_Task3_Training_Input"
PUBLISHED_SIZE = 10_015

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Table:
    """All images in the order of their names."""

    images: list[str]
    membership: npt.NDArray[np.uint8]
    """(N, 7) one 1 a row."""
    units: list[str]
    """(N,) lesions."""


def read_skin7(argument: str, root: Path, split_seed: int) -> Dataset:
    """Reads the tables and looks for the images, which are not opened yet: they are known to be RGB.

    Args:
        argument: what follows the colon in the data set's address: `fold-1` to `fold-5`, or nothing.
        root: the folder as downloaded; it must exist.
        split_seed: moves lesions between parts and folds.

    Raises:
        UserError: with everything that is wrong with the argument and the folder.
    """
    problems = Problems()
    fold = problems.collect(lambda: _fold(argument))
    folder = find(root, [IMAGES], problems, folder=True)
    truth_file = find(root, _places(GROUND_TRUTH), problems)
    table = _read(root, truth_file, problems)
    if folder is None or table is None or truth_file is None:
        problems.raise_if_any()
    assert folder is not None and table is not None
    files = tuple(f"{image}.jpg" for image in table.images)
    unpack = f"unpack the images into {folder}, names as published"
    states = inspect_images(folder, files, str(truth_file), problems, all_missing=unpack, grey=False)
    if len(states) < len(files):
        report_unnamed(folder, (path.name for path in folder.iterdir()), files, problems)
    problems.raise_if_any()
    assert fold is not None
    part_of, origin = _divide(table, fold, split_seed)
    check_parts(part_of, table.membership, CLASSES, str(truth_file), problems, fill=AS_PUBLISHED, train=AS_PUBLISHED)
    problems.raise_if_any()
    return assemble(
        LabelledFiles(folder, files, files, table.membership, tuple(table.units), states, grey=False),
        part_of,
        name=f"skin7:{argument}" if argument else "skin7",
        task=Task.MULTI_CLASS,
        classes=CLASSES,
        split_origin=origin,
        warnings=size_warnings(len(files), PUBLISHED_SIZE),
    )


def _fold(argument: str) -> int:
    """The number of the fold that is the test part, from 1; 0 where there are no folds."""
    known = [variant.partition(":")[2] for variant in VARIANTS]
    if argument not in known:
        what = f"{argument!r} after 'skin7' is none of {', '.join(known[1:])}"
        raise UserError(Problem("--dataset", what, f"use one of {', '.join(VARIANTS)}"))
    return known.index(argument)


def _places(name: str) -> tuple[str, str]:
    """Where a table of the archive may lie."""
    return name, f"{Path(name).stem}/{name}"


def _read(root: Path, truth_file: Path | None, problems: Problems) -> _Table | None:
    """Both tables, with what is wrong with them; None where not even the images are known."""
    lesion_file = find(root, [place for name in LESIONS for place in _places(name)], problems)
    key = "image_id" if lesion_file is not None and lesion_file.name == LESIONS[1] else "image"
    truth = read_table(truth_file, ("image", *(name.lower() for name in CLASSES)), problems)
    lesions = read_table(lesion_file, (key, "lesion_id"), problems)
    if truth is None:
        return None
    place, images = str(truth_file), truth.column("image")
    report_repeated(images, place, problems)
    classes = one_hot_classes(truth, CLASSES, place, problems)
    report_empty(classes, CLASSES, place, problems)
    lesion_of: dict[str, str] = {}
    if lesions is not None:
        lesion_of = dict(zip(lesions.column(key), lesions.column("lesion_id"), strict=True))
        unknown = [image for image in images if not lesion_of.get(image)]
        if unknown:
            what = f"{len(unknown)} images of {GROUND_TRUTH} have no lesion in it: {listing(unknown)}"
            problems.add(str(lesion_file), what, AS_PUBLISHED)
    order = sorted(range(len(images)), key=images.__getitem__)
    return _Table(
        images=[images[row] for row in order],
        membership=np.eye(len(CLASSES), dtype=np.uint8)[classes[order]],
        units=[f"lesion:{lesion_of.get(images[row], '')}" for row in order],
    )


def _divide(table: _Table, fold: int, split_seed: int) -> tuple[Ints, str]:
    """(N,) the part of each image; and how that came about, in words."""
    if not fold:
        origin = f"{':'.join(map(str, SHARES))} by lesion, seed {split_seed}"
        return split_groups(table.membership, table.units, split_seed), origin
    shares = SHARES[:TEST]
    fold_of = split_groups(table.membership, table.units, split_seed, (1,) * N_FOLDS)
    part_of = np.full(len(table.images), TEST, np.int64)
    rest = np.flatnonzero(fold_of != fold - 1)
    part_of[rest] = split_groups(table.membership[rest], [table.units[row] for row in rest], split_seed, shares)
    divided = f"the others divided {':'.join(map(str, shares))}"
    return part_of, f"fold {fold} of {N_FOLDS} for test, {divided}, by lesion, seed {split_seed}"

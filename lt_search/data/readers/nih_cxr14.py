"""NIH ChestX-ray14 (frontal chest radiographs, 14 findings, multi-label), from its folder as downloaded.

    Data_Entry_2017_v2020.csv or Data_Entry_2017.csv   of its columns: Image Index, Finding Labels, Patient ID
    images/{Image Index} or images_001/images/{Image Index} to images_012/images/
    train_val_list.txt, test_list.txt                  the official lists: a file name a line
    labels/{train,val,test}_list.txt                   the CheXNet lists (also without labels/, or with ChestX-ray14/
                                                       before it): a file name and 14 times 0 or 1 a line

An image with "No Finding" has none of the 14. Images are grey to the trainer, including the few RGBA files.

- `nih-cxr14:official`: the official test images; the others are divided 7:1 into training and validation images by
  patient.
- `nih-cxr14:chexnet`: the CheXNet-style lists, as LDRNet uses them, with the labels in them: those of the
  table have been revised since.
- `nih-cxr14:patient`: all images, divided 7:1:2 by patient. Scores are some points higher than on the official test
  images.
- `nih-cxr14`: official, or by patient, with a warning, where neither official list exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lt_search.data.csv_cells import Cells, listing
from lt_search.data.readers.layout import (
    AS_PUBLISHED,
    UNLISTED,
    divided_groups,
    find,
    number_of_list,
    read_table,
    report,
    report_repeated,
    report_rows,
    report_unknown,
    size_warnings,
)
from lt_search.data.readers.published import (
    Ints,
    MultiHot,
    Published,
    PublishedImages,
    Request,
    Split,
    split_by,
    split_rest,
)
from lt_search.errors import Problems
from trainers.task import Task

CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""In the order of the data set's paper and of the CheXNet lists."""

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The table's names; the first one that exists is read."""
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
CHEXNET_LISTS = ("train_list.txt", "val_list.txt", "test_list.txt")
"""In the order of `PART_NAMES`."""
PUBLISHED_SIZE = 112_120

_IMAGE, _FINDINGS, _PATIENT = "image index", "finding labels", "patient id"
_NO_FINDING = "No Finding"
_SEPARATOR = "|"


@dataclass(frozen=True, eq=False)
class _Table:
    place: str
    """The file."""
    images: list[str]
    labels: MultiHot
    """(N, 14)."""
    groups: list[str]
    """(N,) patients."""


def _read(request: Request) -> PublishedImages | None:
    root, problems = request.root, request.problems
    file = find(root, TABLES, problems)
    # Two headers are bracketed and hold a comma, such as "OriginalImage[Width,Height]". To a CSV reader they are two
    # columns each, and so are the cells below them.
    cells = read_table(file, (_IMAGE, _FINDINGS, _PATIENT), problems)
    folders = tuple(folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir())
    if not folders:
        find(root, ("images", "images_001/images"), problems, folder=True)
    if cells is None:
        return None
    of_table = Problems()
    table = _table(cells, str(file), of_table)
    problems.collect(of_table.raise_if_any)
    # The CheXNet lists have labels of their own.
    found = None if of_table else problems.collect(lambda: _split(request, table))
    if not folders:
        return None
    path_of = {path.name: str(path.relative_to(root)) for folder in folders for path in folder.iterdir()}
    both = all((root / name).is_file() for name in TABLES)
    read = (f"{' and '.join(TABLES)} are both there; {Path(table.place).name} was read",) if both else ()
    return PublishedImages(
        table=table.place,
        folder=root,
        ids=table.images,
        paths=[path_of.get(image, image) for image in table.images],
        labels=table.labels if found is None else found[1],
        groups=table.groups,
        split=None if found is None else found[0],
        warnings=(*size_warnings(len(table.images), PUBLISHED_SIZE), *read),
        searched=folders,
        unpack="unpack the archives of all images",
    )


def _table(cells: Cells, place: str, problems: Problems) -> _Table:
    """The table; adds repeated images, blank cells and unknown findings."""
    images, findings, patients = (cells.column(name) for name in (_IMAGE, _FINDINGS, _PATIENT))
    report_repeated(images, place, problems)
    blank = [not image or not patient for image, patient in zip(images, patients, strict=True)]
    report_rows(cells, blank, "have no image or no patient", place, problems)
    names = [name for cell in findings for name in cell.split(_SEPARATOR)]
    report_unknown(names, (*CLASSES, _NO_FINDING), "findings", place, problems)
    column = {name: index for index, name in enumerate(CLASSES)}
    labels = np.zeros((len(images), len(CLASSES)), np.uint8)
    for row, cell in enumerate(findings):
        labels[row, [column[name] for name in cell.split(_SEPARATOR) if name in column]] = 1
    return _Table(place, images, labels, [f"patient:{patient}" for patient in patients])


def _split(request: Request, table: _Table) -> tuple[Split, MultiHot]:
    """The split of a variant, and the labels to use.

    Raises:
        UserError: with every problem with its lists.
    """
    root, variant = request.root, request.variant
    if variant == "chexnet":
        return _by_chexnet_lists(table, root)
    listed = any((root / name).is_file() for name in (TRAIN_VAL_LIST, TEST_LIST))
    if variant == "official" or (not variant and listed):
        return _by_official_lists(table, root, request.split_seed), table.labels
    split = split_by("patient", table.labels, table.groups, request.split_seed)
    absent = (
        f"neither {TRAIN_VAL_LIST} nor {TEST_LIST} is in {root}, so all images were divided by patient; scores are "
        "some points higher than on the official test images"
    )
    return split if variant else replace(split, warnings=(absent,)), table.labels


def _by_official_lists(table: _Table, root: Path, split_seed: int) -> Split:
    fix = "copy the lists as published there, or use nih-cxr14:patient"
    lists = _read_lists(root, (TRAIN_VAL_LIST, TEST_LIST), 0, fix)
    is_test = _list_of(table, lists, (TRAIN_VAL_LIST, TEST_LIST), root) == 1
    part_of, ratio = split_rest(is_test, table.labels, table.groups, split_seed)
    return Split(part_of, f"official lists, {TRAIN_VAL_LIST} divided {ratio} by patient, seed {split_seed}")


def _by_chexnet_lists(table: _Table, root: Path) -> tuple[Split, MultiHot]:
    places = (root / "labels", root / "ChestX-ray14" / "labels", root)
    folder = next((place for place in places if (place / CHEXNET_LISTS[0]).is_file()), root)
    fix = f"copy the lists of the CheXNet split ({', '.join(CHEXNET_LISTS)}) to {root / 'labels'}"
    lists = _read_lists(folder, CHEXNET_LISTS, len(CLASSES), fix)
    part_of = _list_of(table, lists, CHEXNET_LISTS, folder)
    label_of = {image: labels for one in lists for image, labels in one.items()}
    labels = np.array([label_of[image] for image in table.images], np.uint8)
    revised = int((labels != table.labels).any(axis=1).sum())
    warning = f"the labels are those of the CheXNet lists; {revised} images have others in {Path(table.place).name}"
    return Split(part_of, "given by the CheXNet lists", (warning,) if revised else ()), labels


def _read_lists(folder: Path, names: Sequence[str], n_labels: int, fix: str) -> list[dict[str, list[int]]]:
    """The labels of each image of each list.

    Raises:
        UserError: with every problem with the lists.
    """
    problems = Problems()
    files = [find(folder, [name], problems, fix=fix) for name in names]
    lists = [_read_list(file, n_labels, problems) for file in files if file is not None]
    problems.raise_if_any()
    return lists


def _read_list(file: Path, n_labels: int, problems: Problems) -> dict[str, list[int]]:
    """The labels of each image of a list.

    Args:
        file: lines of a file name and labels, with blanks between them.
        n_labels: labels in each line.
        problems: collects every problem with it.
    """
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problems.add(str(file), f"cannot be read ({error})", AS_PUBLISHED)
        return {}
    wrong = [
        number
        for number, fields in enumerate(lines, 1)
        if fields and (len(fields) != 1 + n_labels or not set(fields[1:]) <= {"0", "1"})
    ]
    if wrong:
        expected = f"a file name and {n_labels} times 0 or 1" if n_labels else "a file name alone"
        fix = f"the official and the CheXNet lists share the name {TEST_LIST}: keep the latter in labels/"
        problems.add(str(file), f"{len(wrong)} lines are not {expected}: lines {listing(wrong)}", fix)
        return {}
    report_repeated([fields[0] for fields in lines if fields], str(file), problems)
    return {fields[0]: [int(label) for label in fields[1:]] for fields in lines if fields}


def _list_of(table: _Table, lists: Sequence[dict[str, list[int]]], names: Sequence[str], folder: Path) -> Ints:
    """(N,) the number of the list that each image is in.

    Raises:
        UserError: images are in no list, in two, or not in the table; patients are in two lists.
    """
    problems = Problems()
    places = [str(folder / name) for name in names]
    number = number_of_list(table.images, [list(one) for one in lists], places, table.place, problems)
    listed = np.flatnonzero(number != UNLISTED)
    divided = divided_groups([table.groups[row] for row in listed], number[listed])
    report(divided, "patients are in more than one list", str(folder), problems)
    problems.raise_if_any()
    return number


NIH_CXR14 = Published(
    name="nih-cxr14",
    task=Task.MULTI_LABEL,
    classes=CLASSES,
    grey=True,
    variants=("nih-cxr14", "nih-cxr14:official", "nih-cxr14:chexnet", "nih-cxr14:patient"),
    read_images=_read,
    no_finding=_NO_FINDING,
)

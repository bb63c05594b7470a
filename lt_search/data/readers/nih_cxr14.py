"""NIH ChestX-ray14 (frontal chest radiographs, 14 findings, multi-label), from its folder as downloaded.

    Data_Entry_2017_v2020.csv or Data_Entry_2017.csv   of its columns: Image Index, Finding Labels, Patient ID
    images/{Image Index} or images_001/images/{Image Index} to images_012/images/
    train_val_list.txt, test_list.txt                  the official lists: a file name a line
    labels/{train,val,test}_list.txt                   the CheXNet lists (also without labels/, or with ChestX-ray14/
                                                       before it): a file name and 14 times 0 or 1 a line

An image with "No Finding" has none of the 14. Images are grey to the trainer, including the few RGBA files.

- `nih-cxr14:official`: the official test images; the other ones are divided 7:1 into training and validation images,
  by patient.
- `nih-cxr14:chexnet`: the CheXNet-style lists, as LDRNet uses them, with the labels in them: those of the
  table have been revised since.
- `nih-cxr14:patient`: all images, divided 7:1:2 by patient. Scores are some points higher than on the official test
  images.
- `nih-cxr14`: official, or by patient where neither official list is there; a warning says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.csv_cells import Cells, listing
from lt_search.data.file_source import FileState, inspect_images
from lt_search.data.readers.given_lists import UNLISTED, part_of_lists
from lt_search.data.readers.layout import AS_PUBLISHED, find, read_table, report_repeated, report_unnamed, size_warnings
from lt_search.data.splits import SHARES, TEST, split_groups
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError
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

VARIANTS = ("nih-cxr14", "nih-cxr14:official", "nih-cxr14:chexnet", "nih-cxr14:patient")
"""How the data set is addressed."""

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The table's names; the first one that is there is read."""
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
CHEXNET_LISTS = ("train_list.txt", "val_list.txt", "test_list.txt")
"""In the order of `PART_NAMES`."""
PUBLISHED_SIZE = 112_120

_IMAGE, _FINDINGS, _PATIENT = "image index", "finding labels", "patient id"
_NOTHING = "No Finding"
_SEPARATOR = "|"
_TRAIN_VAL_SHARES = SHARES[:TEST]

Membership = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Table:
    """All images in the order of their names."""

    place: str
    """The file."""
    images: tuple[str, ...]
    membership: Membership
    """(N, 14) 0 / 1."""
    units: tuple[str, ...]
    """(N,) patients."""


@dataclass(frozen=True, eq=False)
class _Division:
    """A split, and what comes with it."""

    part_of: Ints
    """(N,) index into `PART_NAMES`."""
    membership: Membership
    """(N, 14) the labels to use."""
    origin: str
    warnings: tuple[str, ...] = ()


def read_nih_cxr14(argument: str, root: Path, split_seed: int) -> Dataset:
    """Reads the table and lists and looks for the images, which are not opened yet: there are 112,120 of them.

    Args:
        argument: what follows the colon in the data set's address: `official`, `chexnet`, `patient`, or nothing.
        root: the folder as downloaded; it must exist.
        split_seed: moves patients between those parts that no list gives.

    Raises:
        UserError: with everything that is wrong with the argument and the folder.
    """
    problems = Problems()
    variant = problems.collect(lambda: _variant(argument))
    file = find(root, TABLES, problems)
    # Two headers are bracketed and hold a comma, such as "OriginalImage[Width,Height]". To a CSV reader they are two
    # columns each, and so are the cells below them.
    cells = read_table(file, (_IMAGE, _FINDINGS, _PATIENT), problems)
    table = _table(cells, str(file), problems) if cells else None
    found = _find_images(root, sorted(set(cells.column(_IMAGE))) if cells else None, str(file), problems)
    division = problems.collect(lambda: _divide(variant, table, root, split_seed)) if variant and table else None
    problems.raise_if_any()
    assert table is not None and found is not None and division is not None
    check_parts(
        division.part_of, division.membership, CLASSES, table.place, problems, fill=AS_PUBLISHED, train=AS_PUBLISHED
    )
    problems.raise_if_any()
    paths, states = found
    return assemble(
        LabelledFiles(root, table.images, paths, division.membership, table.units, states, grey=True),
        division.part_of,
        name=f"nih-cxr14:{argument}" if argument else "nih-cxr14",
        task=Task.MULTI_LABEL,
        classes=CLASSES,
        split_origin=division.origin,
        warnings=(*_table_warnings(root, table), *division.warnings),
        nothing=_NOTHING,
    )


def _variant(argument: str) -> str:
    known = [variant.partition(":")[2] for variant in VARIANTS]
    if argument not in known:
        what = f"{argument!r} after 'nih-cxr14' is none of {', '.join(known[1:])}"
        raise UserError(Problem("--dataset", what, f"use one of {', '.join(VARIANTS)}"))
    return argument or "default"


def _table(cells: Cells, place: str, problems: Problems) -> _Table | None:
    """The table, unless something about its cells adds to `problems`."""
    if not _is_sound(cells, place, problems):
        return None
    names, findings, patients = (cells.column(name) for name in (_IMAGE, _FINDINGS, _PATIENT))
    order = sorted(range(len(names)), key=names.__getitem__)
    return _Table(
        place=place,
        images=tuple(names[row] for row in order),
        membership=_membership([findings[row] for row in order]),
        units=tuple(f"patient:{patients[row]}" for row in order),
    )


def _is_sound(cells: Cells, place: str, problems: Problems) -> bool:
    """Whether the rows can be used; adds repeated images, blank cells and unknown findings."""
    own = Problems()
    names, patients = cells.column(_IMAGE), cells.column(_PATIENT)
    report_repeated(names, place, own)
    blank = [
        line for line, name, patient in zip(cells.numbers, names, patients, strict=True) if not name or not patient
    ]
    if blank:
        own.add(place, f"{len(blank)} rows have no image or no patient: lines {listing(blank)}", AS_PUBLISHED)
    counts = Counter(name for labels in cells.column(_FINDINGS) for name in labels.split(_SEPARATOR))
    unknown = [f"{name!r} ({count} rows)" for name, count in counts.items() if name not in {*CLASSES, _NOTHING}]
    if unknown:
        own.add(place, f"unknown findings: {listing(unknown)}", AS_PUBLISHED)
    problems.collect(own.raise_if_any)
    return not own


def _membership(findings: Sequence[str]) -> Membership:
    """(N, 14) from the findings of each image."""
    column = {name: index for index, name in enumerate(CLASSES)}
    membership = np.zeros((len(findings), len(CLASSES)), np.uint8)
    for row, labels in enumerate(findings):
        for name in labels.split(_SEPARATOR):
            if name != _NOTHING:
                membership[row, column[name]] = 1
    return membership


def _find_images(
    root: Path, images: Sequence[str] | None, place: str, problems: Problems
) -> tuple[tuple[str, ...], tuple[FileState, ...]] | None:
    """The path from `root` of each image and the state of its file, unless images are missing.

    Args:
        root: the folder as downloaded.
        images: (N,) their names; None where the table that has them cannot be read.
        place: that table.
        problems: takes what is wrong.
    """
    folders = [folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir()]
    if not folders:
        find(root, ("images", "images_001/images"), problems, folder=True)
    if not folders or images is None:
        return None
    path_of = {path.name: str(path.relative_to(root)) for folder in folders for path in folder.iterdir()}
    missing = [image for image in images if image not in path_of]
    if missing:
        looked = listing([folder.relative_to(root) for folder in folders])
        problems.add(
            place,
            f"{len(missing)} of {len(images)} images are missing: {listing(missing)}; looked in {looked}",
            "unpack the archives of all images, or remove the rows of those that you do not have",
        )
        report_unnamed(root, path_of, images, problems)
        return None
    paths = tuple(path_of[image] for image in images)
    return paths, inspect_images(root, paths, place, problems, all_missing=AS_PUBLISHED, grey=True)


def _divide(variant: str, table: _Table, root: Path, split_seed: int) -> _Division:
    """The split of a variant.

    Raises:
        UserError: with everything that is wrong with its lists.
    """
    if variant == "chexnet":
        return _by_chexnet_lists(table, root)
    listed = any((root / name).is_file() for name in (TRAIN_VAL_LIST, TEST_LIST))
    if variant == "official" or (variant == "default" and listed):
        return _by_official_lists(table, root, split_seed)
    origin = f"{':'.join(map(str, SHARES))} by patient, seed {split_seed}"
    part_of = split_groups(table.membership, table.units, split_seed)
    absent = (
        f"neither {TRAIN_VAL_LIST} nor {TEST_LIST} is in {root}, so all images were divided by patient; scores are "
    )
    warnings = (f"{absent}some points higher than on the official test images",) if variant == "default" else ()
    return _Division(part_of, table.membership, origin, warnings)


def _by_official_lists(table: _Table, root: Path, split_seed: int) -> _Division:
    problems = Problems()
    fix = "copy the lists as published there, or use nih-cxr14:patient"
    files = [find(root, [name], problems, fix=fix) for name in (TRAIN_VAL_LIST, TEST_LIST)]
    lists = [_read_list(file, 0, problems) for file in files if file is not None]
    problems.raise_if_any()
    listed = _listed(table, [list(one) for one in lists], [TRAIN_VAL_LIST, TEST_LIST], root)
    part_of = np.full(len(table.images), TEST, np.int64)
    rest = np.flatnonzero(listed == 0)
    patients = [table.units[row] for row in rest]
    part_of[rest] = split_groups(table.membership[rest], patients, split_seed, _TRAIN_VAL_SHARES)
    shares = ":".join(map(str, _TRAIN_VAL_SHARES))
    origin = f"official lists, {TRAIN_VAL_LIST} divided {shares} by patient, seed {split_seed}"
    return _Division(part_of, table.membership, origin)


def _by_chexnet_lists(table: _Table, root: Path) -> _Division:
    problems = Problems()
    places = (root / "labels", root / "ChestX-ray14" / "labels", root)
    folder = next((place for place in places if (place / CHEXNET_LISTS[0]).is_file()), root)
    fix = f"copy the lists of the CheXNet split ({', '.join(CHEXNET_LISTS)}) to {root / 'labels'}"
    files = [find(folder, [name], problems, fix=fix) for name in CHEXNET_LISTS]
    lists = [_read_list(file, len(CLASSES), problems) for file in files if file is not None]
    problems.raise_if_any()
    part_of = _listed(table, [list(one) for one in lists], CHEXNET_LISTS, folder)
    label_of = {image: labels for one in lists for image, labels in one.items()}
    membership = np.array([label_of[image] for image in table.images], np.uint8)
    revised = int((membership != table.membership).any(axis=1).sum())
    warning = f"the labels are those of the CheXNet lists; {revised} images have others in {Path(table.place).name}"
    return _Division(part_of, membership, "given by the CheXNet lists", (warning,) if revised else ())


def _read_list(file: Path, n_labels: int, problems: Problems) -> dict[str, list[int]]:
    """The labels of each image of a list; adds to `problems` what is wrong with it.

    Args:
        file: lines of a file name and labels, with blanks between them.
        n_labels: labels in each line.
        problems: takes what is wrong.
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
        problems.add(
            str(file),
            f"{len(wrong)} lines are not {expected}: lines {listing(wrong)}",
            f"the official and the CheXNet lists share the name {TEST_LIST}: keep the latter in labels/",
        )
        return {}
    report_repeated([fields[0] for fields in lines if fields], str(file), problems)
    return {fields[0]: [int(label) for label in fields[1:]] for fields in lines if fields}


def _listed(table: _Table, lists: Sequence[Sequence[str]], names: Sequence[str], folder: Path) -> Ints:
    """(N,) the number of the list that each image is in.

    Raises:
        UserError: images are in no list, in two, or not in the table; patients are in two lists.
    """
    problems = Problems()
    listed = part_of_lists(table.images, lists, [str(folder / name) for name in names], table.place, problems)
    lists_of: defaultdict[str, set[int]] = defaultdict(set)
    for unit, number in zip(table.units, listed.tolist(), strict=True):
        lists_of[unit].add(number)
    torn = [unit for unit, found in lists_of.items() if len(found - {UNLISTED}) > 1]
    if torn:
        problems.add(str(folder), f"{len(torn)} patients are in more than one list: {listing(torn)}", AS_PUBLISHED)
    problems.raise_if_any()
    return listed


def _table_warnings(root: Path, table: _Table) -> tuple[str, ...]:
    both = all((root / name).is_file() for name in TABLES)
    read = (f"{' and '.join(TABLES)} are both there; {Path(table.place).name} was read",) if both else ()
    return (*size_warnings(len(table.images), PUBLISHED_SIZE), *read)

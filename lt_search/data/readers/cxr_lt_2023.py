"""CXR-LT 2023 (radiographs of MIMIC-CXR-JPG, 26 findings, multi-label), from the folders as downloaded.

    train.csv, development.csv, test.csv    also in cxr-lt-2023/; of their columns: dicom_id, subject_id, study_id, path
                                            (or fpath), and one of 0 and 1 for each finding
    {path}                                  such as files/p10/p10000032/s50414267/{dicom_id}.jpg, also in
                                            physionet.org/files/mimic-cxr-jpg/{version}/, as wget leaves it

"No Finding" is a class of its own. A study may be written 50414267 or s50414267. Views of one study share labels, so
that images of one subject stay together. Images are grey to the trainer.

- `cxr-lt-2023:official`: the published parts; development is validation. Where they divide subjects a warning says so.
- `cxr-lt-2023:subject`: the images of all tables that are there with labels, divided 7:1:2 by subject.
- `cxr-lt-2023`: official; by subject where not all three tables are there with labels, and a warning says so.

The objective is mAP, the challenge's; it also reports `macro_auc`, `macro_f1` and `macro_ece`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.csv_cells import Cells, listing
from lt_search.data.file_source import inspect_images
from lt_search.data.readers.layout import AS_PUBLISHED, find, read_table, report_repeated, size_warnings
from lt_search.data.readers.one_hot import divided_units
from lt_search.data.splits import SHARES, split_groups
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

CLASSES = (
    "Atelectasis",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fracture",
    "Hernia",
    "Infiltration",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
)
"""In the order of the published tables, which is alphabetical."""

VARIANTS = ("cxr-lt-2023", "cxr-lt-2023:official", "cxr-lt-2023:subject")
"""How the data set is addressed."""

TABLES = ("train.csv", "development.csv", "test.csv")
"""In the order of `PART_NAMES`."""
TABLE_FOLDERS = ("", "cxr-lt-2023/")
MIRROR = "physionet.org/files/mimic-cxr-jpg/*"
"""Where `wget` puts the images."""
PUBLISHED_SIZE = 377_110

_IMAGE, _SUBJECT, _STUDY = "dicom_id", "subject_id", "study_id"
_PATHS = ("path", "fpath")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Table:
    """All images in the order of their names."""

    place: str
    images: tuple[str, ...]
    paths: tuple[str, ...]
    membership: npt.NDArray[np.uint8]
    """(N, 26)"""
    units: tuple[str, ...]
    """(N,) subjects."""
    part_of: Ints
    """(N,) which of `TABLES` each image is from."""


def read_cxr_lt_2023(argument: str, root: Path, split_seed: int) -> Dataset:
    """Reads the tables and looks for the images, which are not opened yet: there are 377,110 of them.

    Args:
        argument: what follows the colon in the data set's address: `official`, `subject`, or nothing.
        root: the folder with the tables and the images; it must exist.
        split_seed: moves subjects between parts where the published ones are not used.

    Raises:
        UserError: with everything that is wrong with the argument and the folder.
    """
    problems = Problems()
    variant = problems.collect(lambda: _variant(argument))
    official = variant == "official" or (variant == "default" and _has_labels(root, TABLES))
    table = problems.collect(lambda: _read(root, every=official)) if variant is not None else None
    problems.raise_if_any()
    assert table is not None
    folder = _image_folder(root, table.paths)
    unpack = "unpack MIMIC-CXR-JPG there, with its folder files/"
    states = inspect_images(folder, table.paths, table.place, problems, all_missing=unpack, grey=True)
    problems.raise_if_any()
    if official:
        part_of, origin = table.part_of, f"given by {', '.join(TABLES)}"
    else:
        part_of = split_groups(table.membership, table.units, split_seed)
        origin = f"{':'.join(map(str, SHARES))} by subject, seed {split_seed}"
    check_parts(part_of, table.membership, CLASSES, table.place, problems, fill=AS_PUBLISHED, train=AS_PUBLISHED)
    problems.raise_if_any()
    absent = (
        f"not all of {', '.join(TABLES)} are there with labels, so the images that have them were divided by subject; "
        "scores are not those of the challenge"
    )
    return assemble(
        LabelledFiles(folder, table.images, table.paths, table.membership, table.units, states, grey=True),
        part_of,
        name=f"cxr-lt-2023:{argument}" if argument else "cxr-lt-2023",
        task=Task.MULTI_LABEL,
        classes=CLASSES,
        split_origin=origin,
        warnings=(
            *size_warnings(len(table.images), PUBLISHED_SIZE),
            *((absent,) if variant == "default" and not official else ()),
            *_label_warnings(table, part_of),
        ),
    )


def _variant(argument: str) -> str:
    known = [variant.partition(":")[2] for variant in VARIANTS]
    if argument not in known:
        what = f"{argument!r} after 'cxr-lt-2023' is none of {', '.join(known[1:])}"
        raise UserError(Problem("--dataset", what, f"use one of {', '.join(VARIANTS)}"))
    return argument or "default"


def _places(name: str) -> list[str]:
    return [f"{folder}{name}" for folder in TABLE_FOLDERS]


def _has_labels(root: Path, names: Sequence[str]) -> bool:
    """Whether all of these tables are there with a column of labels; those handed out in the challenge had none."""
    for name in names:
        file = next((root / place for place in _places(name) if (root / place).is_file()), None)
        if file is None:
            return False
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            if CLASSES[0].lower() not in lines.readline().lower():
                return False
    return True


def _read(root: Path, *, every: bool) -> _Table:
    """The tables: `every` one of them, else those that have labels.

    Raises:
        UserError: with everything that is wrong with them.
    """
    problems = Problems()
    wanted = [name for name in TABLES if every or _has_labels(root, [name])] or TABLES[:1]
    files = [find(root, _places(name), problems) for name in wanted]
    images: list[str] = []
    paths: list[str] = []
    units: list[str] = []
    studies: list[str] = []
    parts: list[int] = []
    labels = []
    for name, file in zip(wanted, files, strict=True):
        cells = read_table(file, (_IMAGE, _SUBJECT, _STUDY, *(one.lower() for one in CLASSES)), problems)
        if cells is None:
            continue
        labels.append(_membership(cells, str(file), problems))
        paths += _paths(cells, str(file), problems)
        images += cells.column(_IMAGE)
        units += [f"subject:{subject}" for subject in cells.column(_SUBJECT)]
        studies += [study.removeprefix("s") for study in cells.column(_STUDY)]
        parts += [TABLES.index(name)] * len(cells.rows)
    place = str(files[0].parent if files[0] else root)
    report_repeated(images, place, problems)
    _check_studies(studies, units, place, problems)
    problems.raise_if_any()
    order = np.array(sorted(range(len(images)), key=images.__getitem__))
    rows = order.tolist()
    return _Table(
        place=place,
        images=tuple(images[row] for row in rows),
        paths=tuple(paths[row] for row in rows),
        membership=np.concatenate(labels)[order],
        units=tuple(units[row] for row in rows),
        part_of=np.array(parts, np.int64)[order],
    )


def _membership(cells: Cells, place: str, problems: Problems) -> npt.NDArray[np.uint8]:
    """(N, 26) from cells of 0 and 1; adds rows with another one."""
    value_of = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
    columns = [[value_of.get(cell, -1) for cell in cells.column(name.lower())] for name in CLASSES]
    values = np.array(columns, np.int8).T
    wrong = [cells.numbers[row] for row in np.flatnonzero((values < 0).any(axis=1)).tolist()]
    if wrong:
        problems.add(
            place, f"{len(wrong)} rows have a label that is neither 0 nor 1: lines {listing(wrong)}", AS_PUBLISHED
        )
    return values.astype(np.uint8)


def _paths(cells: Cells, place: str, problems: Problems) -> list[str]:
    """(N,) where images are; adds rows whose path is not that of their image, study and subject."""
    column = next((name for name in _PATHS if name in cells.columns), None)
    if column is None:
        found = ", ".join(map(repr, cells.columns))
        problems.add(
            f"{place}, line 1", f"no column {' or '.join(map(repr, _PATHS))}; the columns are: {found}", AS_PUBLISHED
        )
        return [""] * len(cells.rows)
    wrong = []
    keys = (cells.column(name) for name in (column, _IMAGE, _STUDY, _SUBJECT))
    for line, path, image, study, subject in zip(cells.numbers, *keys, strict=True):
        own = (f"p{subject}", f"s{study.removeprefix('s')}", f"{image}.jpg")
        if not image or not subject or PurePosixPath(path).parts[-len(own) :] != own:
            wrong.append(line)
    if wrong:
        what = f"{len(wrong)} rows have a path that does not end with their subject, study and image"
        problems.add(place, f"{what}: lines {listing(wrong)}", AS_PUBLISHED)
    return cells.column(column)


def _check_studies(studies: Sequence[str], units: Sequence[str], place: str, problems: Problems) -> None:
    """Adds studies of several subjects."""
    subjects: defaultdict[str, set[str]] = defaultdict(set)
    for study, unit in zip(studies, units, strict=True):
        subjects[study].add(unit)
    torn = [study for study, found in subjects.items() if len(found) > 1]
    if torn:
        problems.add(place, f"{len(torn)} studies are of more than one subject: {listing(torn)}", AS_PUBLISHED)


def _image_folder(root: Path, paths: Sequence[str]) -> Path:
    """The first folder that has the first image; `root` where none has it, so that it is named as missing there."""
    return next((folder for folder in (root, *sorted(root.glob(MIRROR))) if (folder / paths[0]).is_file()), root)


def _label_warnings(table: _Table, part_of: Ints) -> tuple[str, ...]:
    """Sentences on images without any label, and on subjects that are divided."""
    found = []
    unlabelled = int((table.membership.sum(axis=1) == 0).sum())
    if unlabelled:
        found.append(
            f"{unlabelled} images have none of the {len(CLASSES)} labels, not even No Finding; they are kept as "
            "negatives of every class"
        )
    divided = divided_units(table.units, part_of)
    if divided:
        found.append(
            f"{divided} subjects have images in more than one published part, so that scores on val and test may be "
            "too good; cxr-lt-2023:subject keeps them together"
        )
    return tuple(found)

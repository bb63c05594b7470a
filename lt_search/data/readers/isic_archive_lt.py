"""ISIC Archive (LT) (dermoscopy of skin lesions, 14 diagnoses), from the folder that its images were downloaded to.

    {isic_id}.jpg or {isic_id}.JPG               also in images/ or ISIC_Archive/
    training.csv, validation.csv, testing.csv    the lists of LMD (also in split/ISIC_Archive/): image, then a column of
                                                 0 and 1 for each class
    AK.csv, AMP.csv, ... VASC.csv                what the archive said of the images of each diagnosis (also beside the
                                                 images): isic_id and, where known, patient_id and lesion_id

The archive has grown and been relabelled since, so that downloading it again gives other images: the lists of LMD are
what makes scores comparable. Never combine it with ISIC 2019, whose images are among these.

- `isic-archive-lt`: as the lists of LMD say where they are; else by patient, and a warning says so.
- `isic-archive-lt:lists`: the lists of LMD, which draw single images. Where the tables of the archive are there, too, a
  warning says how many patients or lesions they divide.
- `isic-archive-lt:patient`: the images of the 14 tables of the archive, divided 7:1:2. Images of one patient or lesion
  stay together; one without either is taken for a patient of its own.

The objective is balanced accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.csv_cells import listing
from lt_search.data.file_source import FileState, inspect_images
from lt_search.data.readers.layout import AS_PUBLISHED, find, read_table, report_repeated, report_unnamed, size_warnings
from lt_search.data.readers.one_hot import divided_units, one_hot_classes
from lt_search.data.splits import SHARES, split_groups
from lt_search.data.table import Dataset
from lt_search.data.units import tied_units
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

CLASSES = ("AK", "AMP", "AN", "BCC", "BKL", "DF", "LK", "LS", "MEL", "NV", "SCC", "SK", "SL", "VASC")
"""In the order of the published lists, which is alphabetical."""

VARIANTS = ("isic-archive-lt", "isic-archive-lt:lists", "isic-archive-lt:patient")
"""How the data set is addressed."""

LISTS = ("training.csv", "validation.csv", "testing.csv")
"""In the order of `PART_NAMES`."""
LIST_FOLDERS = ("", "split/ISIC_Archive/")
IMAGE_FOLDERS = ("images", "ISIC_Archive", "")
"""Where images may lie; the first that has any."""
SUFFIXES = (".jpg", ".JPG")
PUBLISHED_SIZE = 25_020

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Table:
    """All images in the order of their names."""

    place: str
    images: list[str]
    classes: Ints
    """(N,) index into `CLASSES`."""
    units: tuple[str, ...]
    """(N,) what must stay together, as far as it is known."""
    part_of: Ints
    origin: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Archive:
    """What the archive said of images."""

    place: Path
    class_of: Mapping[str, int]
    ties_of: Mapping[str, tuple[str, ...]]
    """The patient and the lesion of each image."""


def read_isic_archive_lt(argument: str, root: Path, split_seed: int) -> Dataset:
    """Reads lists and tables and looks for the images, which are not opened yet: they are known to be RGB.

    Args:
        argument: what follows the colon in the data set's address: `lists`, `patient`, or nothing.
        root: the folder as downloaded; it must exist.
        split_seed: moves patients between parts where no list is used.

    Raises:
        UserError: with everything that is wrong with the argument and the folder.
    """
    problems = Problems()
    variant = problems.collect(lambda: _variant(argument))
    folder = next(place for name in IMAGE_FOLDERS if _has_images(place := root / name) or not name)
    listed = any((root / place / name).is_file() for place in LIST_FOLDERS for name in LISTS)
    tables = next((place for place in (root, folder) if _tables_in(place)), root)
    table = None
    if variant == "patient" or (variant == "default" and not listed):
        table = problems.collect(lambda: _by_patient(tables, split_seed, said=variant == "patient"))
    elif variant is not None:
        table = problems.collect(lambda: _by_lists(root, tables))
    found = _find_images(folder, table, problems) if table else None
    problems.raise_if_any()
    assert table is not None and found is not None
    paths, states = found
    membership = np.eye(len(CLASSES), dtype=np.uint8)[table.classes]
    check_parts(table.part_of, membership, CLASSES, table.place, problems, fill=AS_PUBLISHED, train=AS_PUBLISHED)
    problems.raise_if_any()
    return assemble(
        LabelledFiles(folder, tuple(table.images), paths, membership, table.units, states, grey=False),
        table.part_of,
        name=f"isic-archive-lt:{argument}" if argument else "isic-archive-lt",
        task=Task.MULTI_CLASS,
        classes=CLASSES,
        split_origin=table.origin,
        warnings=(*size_warnings(len(table.images), PUBLISHED_SIZE), *table.warnings),
    )


def _variant(argument: str) -> str:
    known = [variant.partition(":")[2] for variant in VARIANTS]
    if argument not in known:
        what = f"{argument!r} after 'isic-archive-lt' is none of {', '.join(known[1:])}"
        raise UserError(Problem("--dataset", what, f"use one of {', '.join(VARIANTS)}"))
    return argument or "default"


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix in SUFFIXES for path in folder.iterdir())


def _tables_in(folder: Path) -> list[str]:
    """The classes whose table of the archive is in a folder."""
    return [name for name in CLASSES if (folder / f"{name}.csv").is_file()]


def _by_lists(root: Path, tables: Path) -> _Table:
    """The images of the lists of LMD.

    Raises:
        UserError: with everything that is wrong with the lists.
    """
    problems = Problems()
    fix = "copy the lists of LMD (split/ISIC_Archive) there, all three"
    columns = ("image", *(name.lower() for name in CLASSES))
    files = [find(root, [f"{place}{name}" for place in LIST_FOLDERS], problems, fix=fix) for name in LISTS]
    read = [read_table(file, columns, problems) for file in files]
    images: list[str] = []
    classes: list[int] = []
    parts: list[int] = []
    for part, (file, cells) in enumerate(zip(files, read, strict=True)):
        if cells is not None:
            names = cells.column("image")
            images += names
            classes += one_hot_classes(cells, CLASSES, str(file), problems).tolist()
            parts += [part] * len(names)
    place = str(files[0].parent if files[0] else root)
    report_repeated(images, place, problems)
    problems.raise_if_any()
    archive = _archive(tables, _tables_in(tables))
    order = sorted(range(len(images)), key=images.__getitem__)
    images, chosen, part_of = [images[row] for row in order], np.array(classes)[order], np.array(parts)[order]
    units = tied_units([archive.ties_of.get(image, (f"image:{image}",)) for image in images])
    divided = divided_units(units, part_of)
    sentence = (
        f"{divided} patients or lesions have images in more than one of the published lists, so that scores on val and "
        "test are too good; isic-archive-lt:patient keeps them together"
    )
    relabelled = sum(
        archive.class_of.get(image, label) != label for image, label in zip(images, chosen.tolist(), strict=True)
    )
    other = f"{relabelled} images have another diagnosis in the tables of the archive than in the lists, which are used"
    return _Table(
        place=place,
        images=images,
        classes=chosen,
        units=units,
        part_of=part_of,
        origin="given by the lists of LMD",
        warnings=((sentence,) if divided else ()) + ((other,) if relabelled else ()),
    )


def _by_patient(tables: Path, split_seed: int, *, said: bool) -> _Table:
    """The images of the archive's own tables.

    Raises:
        UserError: with everything that is wrong with them.
    """
    archive = _archive(tables, CLASSES)
    images = sorted(archive.class_of)
    classes = np.array([archive.class_of[image] for image in images], np.int64)
    units = tied_units([archive.ties_of[image] for image in images])
    part_of = split_groups(np.eye(len(CLASSES), dtype=np.uint8)[classes], units, split_seed)
    alone = sum(unit.startswith("image:") for unit in units)
    warnings = [f"{alone} images have neither a patient_id nor a lesion_id: each is divided by itself"] if alone else []
    if not said:
        warnings.insert(
            0,
            f"none of {', '.join(LISTS)} is there, so all images were divided by patient; the scores of papers are on "
            "the lists of LMD",
        )
    return _Table(
        place=str(archive.place),
        images=images,
        classes=classes,
        units=units,
        part_of=part_of,
        origin=f"{':'.join(map(str, SHARES))} by patient or lesion where they are known, seed {split_seed}",
        warnings=tuple(warnings),
    )


def _archive(folder: Path, names: Sequence[str]) -> _Archive:
    """What the tables of these classes say.

    Raises:
        UserError: with everything that is wrong with them.
    """
    problems = Problems()
    class_of: dict[str, int] = {}
    ties_of: dict[str, tuple[str, ...]] = {}
    seen: Counter[str] = Counter()
    for name in names:
        fix = f"copy the metadata of {name} there, or the lists of LMD ({', '.join(LISTS)})"
        cells = read_table(find(folder, [f"{name}.csv"], problems, fix=fix), ("isic_id",), problems)
        if cells is None:
            continue
        columns = (cells.column(column) for column in ("isic_id", "patient_id", "lesion_id"))
        for image, patient, lesion in zip(*columns, strict=True):
            named = (("patient", patient), ("lesion", lesion))
            ties = tuple(f"{kind}:{key}" for kind, key in named if key)
            class_of[image], ties_of[image] = CLASSES.index(name), ties or (f"image:{image}",)
            seen[image] += 1
    report_repeated(seen.elements(), str(folder), problems)
    problems.raise_if_any()
    return _Archive(folder, class_of, ties_of)


def _find_images(
    folder: Path, table: _Table, problems: Problems
) -> tuple[tuple[str, ...], tuple[FileState, ...]] | None:
    """The path from `folder` of each image and the state of its file, unless images are missing."""
    there = {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}
    missing = [image for image in table.images if image not in there]
    if missing:
        problems.add(
            table.place,
            f"{len(missing)} of {len(table.images)} images are missing from {folder}: {listing(missing)}",
            "download them from the archive by their ids, names as there",
        )
        report_unnamed(folder, there.values(), [there.get(image, "") for image in table.images], problems)
        return None
    paths = tuple(there[image] for image in table.images)
    return paths, inspect_images(folder, paths, table.place, problems, all_missing=AS_PUBLISHED, grey=False)

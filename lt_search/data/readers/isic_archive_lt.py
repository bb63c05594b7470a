"""ISIC Archive (LT) (dermoscopy of skin lesions, 14 diagnoses), from the folder that its images were downloaded to.

    {isic_id}.jpg or {isic_id}.JPG               also in images/ or ISIC_Archive/
    training.csv, validation.csv, testing.csv    the lists of LMD (also in split/ISIC_Archive/): image, then a column of
                                                 0 and 1 for each class
    AK.csv, AMP.csv, ... VASC.csv                the archive's metadata of the images of each diagnosis (also beside the
                                                 images): isic_id and, where known, patient_id and lesion_id

The archive has grown and been relabelled since, so that downloading it again gives other images: the lists of LMD are
what makes scores comparable. Never combine it with ISIC 2019, whose images are among these.

- `isic-archive-lt`: by the lists of LMD where they exist; otherwise by patient, with a warning.
- `isic-archive-lt:lists`: the lists of LMD, which draw single images. Where the tables of the archive exist as well, a
  warning says how many patients or lesions they divide.
- `isic-archive-lt:patient`: the images of the 14 tables of the archive, divided 7:1:2. Images of one patient or lesion
  stay together; one without either is treated as a patient of its own.

The objective is balanced accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lt_search.data.groups import tied_groups
from lt_search.data.readers.layout import (
    divided_groups,
    find,
    one_hot_classes,
    read_table,
    report_repeated,
    size_warnings,
)
from lt_search.data.readers.published import Published, PublishedImages, Request, Split, one_hot, split_by
from lt_search.errors import Problems
from trainers.task import Task

CLASSES = ("AK", "AMP", "AN", "BCC", "BKL", "DF", "LK", "LS", "MEL", "NV", "SCC", "SK", "SL", "VASC")
"""In the order of the published lists, which is alphabetical."""

LISTS = ("training.csv", "validation.csv", "testing.csv")
"""In the order of `PART_NAMES`."""
LIST_FOLDERS = ("", "split/ISIC_Archive/")
IMAGE_FOLDERS = ("images", "ISIC_Archive", "")
"""Where images may lie; the first that has any."""
SUFFIXES = (".jpg", ".JPG")
PUBLISHED_SIZE = 25_020


@dataclass(frozen=True)
class _Archive:
    """The archive's metadata."""

    class_of: Mapping[str, int]
    """By image."""
    ties_of: Mapping[str, tuple[str, ...]]
    """The patient and the lesion of each image."""


@dataclass(frozen=True)
class _Table:
    place: str
    images: Sequence[str]
    classes: Sequence[int]
    """(N,) index into `CLASSES`."""
    groups: tuple[str, ...]
    """(N,) patients or lesions, as far as they are known."""
    split: Split


def _read(request: Request) -> PublishedImages | None:
    root, variant, problems = request.root, request.variant, request.problems
    folder = next(place for name in IMAGE_FOLDERS if _has_images(place := root / name) or not name)
    listed = any((root / place / name).is_file() for place in LIST_FOLDERS for name in LISTS)
    tables = next((place for place in (root, folder) if _tables_in(place)), root)
    if variant == "patient" or (not variant and not listed):
        table = problems.collect(lambda: _by_patient(tables, request))
    else:
        table = problems.collect(lambda: _by_lists(root, tables))
    if table is None:
        return None
    file_of = {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}
    return PublishedImages(
        table=table.place,
        folder=folder,
        ids=table.images,
        paths=[file_of.get(image, f"{image}{SUFFIXES[0]}") for image in table.images],
        labels=one_hot(table.classes, len(CLASSES)),
        groups=table.groups,
        split=table.split,
        warnings=size_warnings(len(table.images), PUBLISHED_SIZE),
        searched=(folder,),
        unpack="download them from the archive by their ids, names as there",
    )


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix in SUFFIXES for path in folder.iterdir())


def _tables_in(folder: Path) -> list[str]:
    """The classes whose table of the archive is in a folder."""
    return [name for name in CLASSES if (folder / f"{name}.csv").is_file()]


def _by_lists(root: Path, tables: Path) -> _Table:
    """The images of the lists of LMD.

    Raises:
        UserError: with every problem with the lists.
    """
    problems = Problems()
    fix = "copy the lists of LMD (split/ISIC_Archive) there, all three"
    columns = ("image", *(name.lower() for name in CLASSES))
    files = [find(root, [f"{place}{name}" for place in LIST_FOLDERS], problems, fix=fix) for name in LISTS]
    images: list[str] = []
    classes: list[int] = []
    parts: list[int] = []
    for part, file in enumerate(files):
        cells = read_table(file, columns, problems)
        if cells is not None:
            images += cells.column("image")
            classes += one_hot_classes(cells, CLASSES, str(file), problems).tolist()
            parts += [part] * len(cells.rows)
    place = str(files[0].parent if files[0] else root)
    report_repeated(images, place, problems)
    problems.raise_if_any()
    archive = _archive(tables, _tables_in(tables))
    part_of = np.array(parts)
    groups = tied_groups([archive.ties_of.get(image, (f"image:{image}",)) for image in images])
    warnings = []
    divided = len(divided_groups(groups, part_of))
    if divided:
        warnings.append(
            f"{divided} patients or lesions have images in more than one of the published lists, so that scores on val "
            "and test are too good; isic-archive-lt:patient keeps them together"
        )
    relabelled = sum(archive.class_of.get(image, label) != label for image, label in zip(images, classes, strict=True))
    if relabelled:
        warnings.append(
            f"{relabelled} images have another diagnosis in the tables of the archive than in the lists, which are used"
        )
    return _Table(place, images, classes, groups, Split(part_of, "given by the lists of LMD", tuple(warnings)))


def _by_patient(tables: Path, request: Request) -> _Table:
    """The images of the archive's own tables.

    Raises:
        UserError: with every problem with them.
    """
    archive = _archive(tables, CLASSES)
    images, classes = list(archive.class_of), list(archive.class_of.values())
    groups = tied_groups([archive.ties_of[image] for image in images])
    warnings = []
    if not request.variant:
        warnings.append(
            f"none of {', '.join(LISTS)} is there, so all images were divided by patient; the scores of papers are on "
            "the lists of LMD"
        )
    alone = sum(group.startswith("image:") for group in groups)
    if alone:
        warnings.append(f"{alone} images have neither a patient_id nor a lesion_id: each is divided by itself")
    kind, labels = "patient or lesion where they are known", one_hot(classes, len(CLASSES))
    split = split_by(kind, labels, groups, request.split_seed, tuple(warnings))
    return _Table(str(tables), images, classes, groups, split)


def _archive(folder: Path, names: Sequence[str]) -> _Archive:
    """The metadata in the tables of these classes.

    Raises:
        UserError: with every problem with them.
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
    return _Archive(class_of, ties_of)


ISIC_ARCHIVE_LT = Published(
    name="isic-archive-lt",
    task=Task.MULTI_CLASS,
    classes=CLASSES,
    grey=False,
    variants=("isic-archive-lt", "isic-archive-lt:lists", "isic-archive-lt:patient"),
    read_images=_read,
)

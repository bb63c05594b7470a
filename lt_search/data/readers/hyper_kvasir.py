"""Hyper-Kvasir, the labelled images (endoscopy of the digestive tract, 23 findings), from its folder as downloaded.

    labeled-images/image-labels.csv     Video file, Organ, Finding, Classification
    labeled-images/{lower-gi-tract or upper-gi-tract}/{Classification}/{Finding}/{Video file}.jpg
    training.csv, validation.csv, testing.csv      the lists of LMD (also in split/hyper-kvasir/): of their columns,
                                                   Video file is read
    2_fold_split.csv, 5_fold_split.csv             the official folds (also in official_splits/): file-name;
                                                   class-name;split-index

`Video file` is the name of an image, without `.jpg`. There is no patient and no video id: near-identical frames may lie
on both sides of any split, and a warning says so.

- `hyper-kvasir`: the lists of LMD where they are; else drawn by its code, 80:10:10 of each class, which with split seed
  0 gives the same images.
- `hyper-kvasir:lists`: the lists of LMD.
- `hyper-kvasir:official-2-0`, `hyper-kvasir:official-5-3`: fold 0 of the official two (fold 3 of the five) is the
  test part; the other images are divided 7:1.

The objective is balanced accuracy; for the kappa of LMD's paper, `quadratic_kappa`, the order of classes matters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.csv_cells import Cells, listing
from lt_search.data.file_source import inspect_images
from lt_search.data.readers.given_lists import part_of_lists
from lt_search.data.readers.layout import AS_PUBLISHED, find, read_table, report_repeated, size_warnings
from lt_search.data.splits import SHARES, TEST, TRAIN, VAL, split_groups
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

CLASSES = (
    "barretts",
    "barretts-short-segment",
    "bbps-0-1",
    "bbps-2-3",
    "cecum",
    "dyed-lifted-polyps",
    "dyed-resection-margins",
    "esophagitis-a",
    "esophagitis-b-d",
    "hemorrhoids",
    "ileum",
    "impacted-stool",
    "polyps",
    "pylorus",
    "retroflex-rectum",
    "retroflex-stomach",
    "ulcerative-colitis-grade-0-1",
    "ulcerative-colitis-grade-1",
    "ulcerative-colitis-grade-1-2",
    "ulcerative-colitis-grade-2",
    "ulcerative-colitis-grade-2-3",
    "ulcerative-colitis-grade-3",
    "z-line",
)
"""The findings in alphabetical order, as LMD numbers them."""

VARIANTS = ("hyper-kvasir", "hyper-kvasir:lists", "hyper-kvasir:official-2-0", "hyper-kvasir:official-5-0")
"""How the data set is addressed; the last number is any fold of the official ones."""

IMAGES, TABLE = "labeled-images", "image-labels.csv"
ORGANS = {"Lower GI": "lower-gi-tract", "Upper GI": "upper-gi-tract"}
"""The folder of each organ."""
LISTS = ("training.csv", "validation.csv", "testing.csv")
"""In the order of `PART_NAMES`."""
LIST_FOLDERS = ("", "split/hyper-kvasir/")
PUBLISHED_SIZE = 10_662
PUBLISHED_SEED = 42
"""Of LMD's code."""

_IMAGE, _ORGAN, _FINDING, _KIND = "video file", "organ", "finding", "classification"
_FRAMES = (
    "the data names neither patients nor videos: frames of one video may be in several parts, so that scores on val "
    "and test may be too good"
)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Table:
    """All images in the order of the published table."""

    place: str
    images: list[str]
    paths: list[str]
    """(N,) from the folder of the table."""
    classes: Ints
    """(N,) index into `CLASSES`."""

    @property
    def membership(self) -> npt.NDArray[np.uint8]:
        """(N, 23) one 1 a row."""
        return np.eye(len(CLASSES), dtype=np.uint8)[self.classes]


def read_hyper_kvasir(argument: str, root: Path, split_seed: int) -> Dataset:
    """Reads the table and lists and looks for the images, which are not opened yet: they are known to be RGB.

    Args:
        argument: what follows the colon in the data set's address.
        root: the folder as downloaded, or its `labeled-images`; it must exist.
        split_seed: moves images between those parts that no list gives.

    Raises:
        UserError: with everything that is wrong with the argument and the folder.
    """
    problems = Problems()
    variant = problems.collect(lambda: _variant(argument))
    folder = root if (root / TABLE).is_file() else find(root, [IMAGES], problems, folder=True)
    file = None if folder is None else find(folder, [TABLE], problems)
    cells = read_table(file, (_IMAGE, _ORGAN, _FINDING, _KIND), problems)
    table = _table(cells, str(file), problems) if cells else None
    division = problems.collect(lambda: _divide(variant, table, root, split_seed)) if variant and table else None
    if table is None or folder is None:
        problems.raise_if_any()
    assert table is not None and folder is not None
    order = sorted(range(len(table.images)), key=table.images.__getitem__)
    ids, paths = (tuple(all_[row] for row in order) for all_ in (table.images, table.paths))
    unpack = f"unpack the whole archive into {folder}, names as published"
    states = inspect_images(folder, paths, table.place, problems, all_missing=unpack, grey=False)
    problems.raise_if_any()
    assert division is not None
    part_of, origin = division[0][order], division[1]
    membership = table.membership[order]
    check_parts(part_of, membership, CLASSES, table.place, problems, fill=AS_PUBLISHED, train=AS_PUBLISHED)
    problems.raise_if_any()
    units = tuple(f"image:{image}" for image in ids)
    return assemble(
        LabelledFiles(folder, ids, paths, membership, units, states, grey=False),
        part_of,
        name=f"hyper-kvasir:{argument}" if argument else "hyper-kvasir",
        task=Task.MULTI_CLASS,
        classes=CLASSES,
        split_origin=origin,
        warnings=(*size_warnings(len(ids), PUBLISHED_SIZE), _FRAMES),
    )


def divide_like_lmd(classes: Ints, seed: int) -> Ints:
    """Divides images 80:10:10, stratified by class, as LMD's code does with pandas and scikit-learn.

    Args:
        classes: (N,) class of each image, in the order of the published table.
        seed: of the draws; 42 there.

    Returns:
        (N,) index into `PART_NAMES`.

    Raises:
        ValueError: a class has too few images to be divided.
    """
    from sklearn.model_selection import train_test_split  # takes seconds, and reading other data needs none of it

    order = np.random.RandomState(seed).permutation(len(classes))
    rest, test = train_test_split(order, test_size=0.1, random_state=seed, stratify=classes[order])
    train, val = train_test_split(rest, test_size=1 / 9, random_state=seed, stratify=classes[rest])
    part_of = np.empty(len(classes), np.int64)
    for part, rows in ((TRAIN, train), (VAL, val), (TEST, test)):
        part_of[rows] = part
    return part_of


def _variant(argument: str) -> str:
    if argument not in ("", "lists") and re.fullmatch(r"official-(2-[01]|5-[0-4])", argument) is None:
        what = f"{argument!r} after 'hyper-kvasir' is neither lists nor official-2-F or official-5-F with a fold F"
        raise UserError(Problem("--dataset", what, f"for example {', '.join(VARIANTS)}"))
    return argument or "default"


def _table(cells: Cells, place: str, problems: Problems) -> _Table | None:
    """The table, unless something about its cells adds to `problems`."""
    own = Problems()
    images, organs, findings, kinds = (cells.column(name) for name in (_IMAGE, _ORGAN, _FINDING, _KIND))
    report_repeated(images, place, own)
    blank = [line for line, *row in zip(cells.numbers, images, kinds, strict=True) if not all(row)]
    if blank:
        own.add(place, f"{len(blank)} rows have no video file or classification: lines {listing(blank)}", AS_PUBLISHED)
    for what, found, known in (("organs", organs, set(ORGANS)), ("findings", findings, set(CLASSES))):
        unknown = [f"{name!r} ({count} rows)" for name, count in Counter(found).items() if name not in known]
        if unknown:
            own.add(place, f"unknown {what}: {listing(unknown)}", AS_PUBLISHED)
    problems.collect(own.raise_if_any)
    if own:
        return None
    return _Table(
        place=place,
        images=images,
        paths=[
            f"{ORGANS[organ]}/{kind}/{finding}/{image}.jpg"
            for image, organ, finding, kind in zip(images, organs, findings, kinds, strict=True)
        ],
        classes=np.array([CLASSES.index(finding) for finding in findings], np.int64),
    )


def _divide(variant: str, table: _Table, root: Path, split_seed: int) -> tuple[Ints, str]:
    """(N,) the part of each image; and how that came about, in words.

    Raises:
        UserError: with everything that is wrong with the lists, or that there are too few images.
    """
    if variant.startswith("official"):
        _, n_folds, fold = variant.split("-")
        return _by_official_fold(table, root, int(n_folds), int(fold), split_seed)
    places = [root / folder / name for folder in LIST_FOLDERS for name in LISTS]
    if variant == "lists" or any(place.is_file() for place in places):
        return _by_lists(table, root)
    try:
        part_of = divide_like_lmd(table.classes, PUBLISHED_SEED + split_seed)
    except ValueError as error:
        what = f"too few images to divide every class 80:10:10 ({error})"
        raise UserError(Problem(table.place, what, AS_PUBLISHED)) from error
    return part_of, f"80:10:10 of each class by image, the published seed {PUBLISHED_SEED} + seed {split_seed}"


def _by_lists(table: _Table, root: Path) -> tuple[Ints, str]:
    problems = Problems()
    fix = "copy the lists of LMD (split/hyper-kvasir) there, all three"
    files = [find(root, [f"{folder}{name}" for folder in LIST_FOLDERS], problems, fix=fix) for name in LISTS]
    cells = [read_table(file, (_IMAGE,), problems) for file in files]
    problems.raise_if_any()
    listed = [one.column(_IMAGE) for one in cells if one is not None]
    part_of = part_of_lists(table.images, listed, [str(file) for file in files], table.place, problems)
    problems.raise_if_any()
    return part_of, "given by the lists of LMD"


def _by_official_fold(table: _Table, root: Path, n_folds: int, fold: int, split_seed: int) -> tuple[Ints, str]:
    problems = Problems()
    name = f"{n_folds}_fold_split.csv"
    fix = "copy it from official_splits of the data set's repository"
    file = find(root, [name, f"official_splits/{name}"], problems, fix=fix)
    cells = read_table(file, ("file-name", "split-index"), problems, delimiter=";")
    problems.raise_if_any()
    assert cells is not None
    names, folds = cells.column("file-name"), cells.column("split-index")
    known = [str(number) for number in range(n_folds)]
    wrong = [line for line, found in zip(cells.numbers, folds, strict=True) if found not in known]
    if wrong:
        what = f"{len(wrong)} rows have a split-index that is none of {', '.join(known)}: lines {listing(wrong)}"
        raise UserError(Problem(str(file), what, AS_PUBLISHED))
    listed = [_stems(names, folds, number) for number in known]
    places = [f"{file}, fold {number}" for number in known]
    fold_of = part_of_lists(table.images, listed, places, table.place, problems)
    problems.raise_if_any()
    shares = SHARES[:TEST]
    part_of = np.full(len(table.images), TEST, np.int64)
    rest = np.flatnonzero(fold_of != fold)
    images = [table.images[row] for row in rest]
    part_of[rest] = split_groups(table.membership[rest], images, split_seed, shares)
    divided = f"the others divided {':'.join(map(str, shares))} by image, seed {split_seed}"
    return part_of, f"fold {fold} of the official {n_folds} for test, {divided}"


def _stems(names: Sequence[str], folds: Sequence[str], number: str) -> list[str]:
    """The images of a fold, named as in the table of labels."""
    return [Path(name).stem for name, fold in zip(names, folds, strict=True) if fold == number]

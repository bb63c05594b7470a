"""Hyper-Kvasir, the labelled images (endoscopy of the digestive tract, 23 findings), from its folder as downloaded.

    labeled-images/image-labels.csv     Video file, Organ, Finding, Classification
    labeled-images/{lower-gi-tract or upper-gi-tract}/{Classification}/{Finding}/{Video file}.jpg
    training.csv, validation.csv, testing.csv      the lists of LMD (also in split/hyper-kvasir/): of their columns,
                                                   Video file is read
    2_fold_split.csv, 5_fold_split.csv             the official folds (also in official_splits/): file-name;
                                                   class-name;split-index

`Video file` is the name of an image, without `.jpg`. There is no patient and no video id: near-identical frames may be
in several splits, as a warning says.

- `hyper-kvasir`: the lists of LMD where they exist; otherwise drawn as its code does, 80:10:10 of each class, which
  gives the same images for split seed 0.
- `hyper-kvasir:lists`: the lists of LMD.
- `hyper-kvasir:official-2-0`, `hyper-kvasir:official-5-3`: fold 0 of the official two (fold 3 of the five) is the
  test split; the other images are divided 7:1.

The objective is balanced accuracy; for the kappa of LMD's paper, `quadratic_kappa`, the order of classes matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lt_search.data.csv_cells import Cells
from lt_search.data.readers.layout import (
    AS_PUBLISHED,
    find,
    number_of_list,
    read_table,
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
    one_hot,
    split_rest,
)
from lt_search.data.splits import TEST, TRAIN, VAL
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
"""The findings in alphabetical order, the class indices of LMD."""

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
    def labels(self) -> MultiHot:
        """(N, 23) one-hot."""
        return one_hot(self.classes, len(CLASSES))


def _read(request: Request) -> PublishedImages | None:
    root, problems = request.root, request.problems
    folder = root if (root / TABLE).is_file() else find(root, [IMAGES], problems, folder=True)
    file = None if folder is None else find(folder, [TABLE], problems)
    cells = read_table(file, (_IMAGE, _ORGAN, _FINDING, _KIND), problems)
    table = problems.collect(lambda: _table(cells, str(file))) if cells else None
    if table is None or folder is None:
        return None
    return PublishedImages(
        table=table.place,
        folder=folder,
        ids=table.images,
        paths=table.paths,
        labels=table.labels,
        groups=[f"image:{image}" for image in table.images],
        split=problems.collect(lambda: _split(request, table)),
        warnings=(*size_warnings(len(table.images), PUBLISHED_SIZE), _FRAMES),
        unpack=f"unpack the whole archive into {folder}, names as published",
    )


def divide_like_lmd(classes: Ints, seed: int) -> Ints:
    """Divides images 80:10:10, stratified by class, with the draws of LMD's code (pandas and scikit-learn).

    Args:
        classes: (N,) class of each image, in the order of the published table.
        seed: of the draws; 42 there.

    Returns:
        (N,) index into `PART_NAMES`.

    Raises:
        ValueError: a class has too few images to be divided.
    """
    from sklearn.model_selection import train_test_split  # takes seconds to import

    order = np.random.RandomState(seed).permutation(len(classes))
    rest, test = train_test_split(order, test_size=0.1, random_state=seed, stratify=classes[order])
    train, val = train_test_split(rest, test_size=1 / 9, random_state=seed, stratify=classes[rest])
    part_of = np.empty(len(classes), np.int64)
    for part, rows in ((TRAIN, train), (VAL, val), (TEST, test)):
        part_of[rows] = part
    return part_of


def _table(cells: Cells, place: str) -> _Table:
    """Raises `UserError` with every problem with the cells."""
    problems = Problems()
    images, organs, findings, kinds = (cells.column(name) for name in (_IMAGE, _ORGAN, _FINDING, _KIND))
    report_repeated(images, place, problems)
    blank = [not image or not kind for image, kind in zip(images, kinds, strict=True)]
    report_rows(cells, blank, "have no video file or classification", place, problems)
    report_unknown(organs, ORGANS, "organs", place, problems)
    report_unknown(findings, CLASSES, "findings", place, problems)
    problems.raise_if_any()
    return _Table(
        place=place,
        images=images,
        paths=[
            f"{ORGANS[organ]}/{kind}/{finding}/{image}.jpg"
            for image, organ, finding, kind in zip(images, organs, findings, kinds, strict=True)
        ],
        classes=np.array([CLASSES.index(finding) for finding in findings], np.int64),
    )


def _split(request: Request, table: _Table) -> Split:
    """Raises `UserError` with every problem with the lists, or where there are too few images."""
    root, seed = request.root, request.split_seed
    if request.variant.startswith("official"):
        _, n_folds, fold = request.variant.split("-")
        return _by_official_fold(table, root, int(n_folds), int(fold), seed)
    places = [root / folder / name for folder in LIST_FOLDERS for name in LISTS]
    if request.variant == "lists" or any(place.is_file() for place in places):
        return _by_lists(table, root)
    try:
        part_of = divide_like_lmd(table.classes, PUBLISHED_SEED + seed)
    except ValueError as error:
        what = f"too few images to divide every class 80:10:10 ({error})"
        raise UserError(Problem(table.place, what, AS_PUBLISHED)) from error
    return Split(part_of, f"80:10:10 of each class by image, the published seed {PUBLISHED_SEED} + seed {seed}")


def _by_lists(table: _Table, root: Path) -> Split:
    problems = Problems()
    fix = "copy the lists of LMD (split/hyper-kvasir) there, all three"
    files = [find(root, [f"{folder}{name}" for folder in LIST_FOLDERS], problems, fix=fix) for name in LISTS]
    cells = [read_table(file, (_IMAGE,), problems) for file in files]
    problems.raise_if_any()
    lists = [one.column(_IMAGE) for one in cells if one is not None]
    part_of = number_of_list(table.images, lists, [str(file) for file in files], table.place, problems)
    problems.raise_if_any()
    return Split(part_of, "given by the lists of LMD")


def _by_official_fold(table: _Table, root: Path, n_folds: int, fold: int, split_seed: int) -> Split:
    problems = Problems()
    name = f"{n_folds}_fold_split.csv"
    fix = "copy it from official_splits of the data set's repository"
    file = find(root, [name, f"official_splits/{name}"], problems, fix=fix)
    cells = read_table(file, ("file-name", "split-index"), problems, delimiter=";")
    problems.raise_if_any()
    assert cells is not None
    names, folds = cells.column("file-name"), cells.column("split-index")
    known = [str(number) for number in range(n_folds)]
    wrong = [number not in known for number in folds]
    report_rows(cells, wrong, f"have a split-index that is none of {', '.join(known)}", str(file), problems)
    problems.raise_if_any()
    # Images are named without their suffix in the table of labels.
    lists = [[Path(name).stem for name, of in zip(names, folds, strict=True) if of == number] for number in known]
    places = [f"{file}, fold {number}" for number in known]
    fold_of = number_of_list(table.images, lists, places, table.place, problems)
    problems.raise_if_any()
    part_of, ratio = split_rest(fold_of == fold, table.labels, table.images, split_seed)
    origin = f"fold {fold} of the official {n_folds} for test, the others divided {ratio} by image, seed {split_seed}"
    return Split(part_of, origin)


HYPER_KVASIR = Published(
    name="hyper-kvasir",
    task=Task.MULTI_CLASS,
    classes=CLASSES,
    grey=False,
    variants=("hyper-kvasir", "hyper-kvasir:lists", "hyper-kvasir:official-2-0", "hyper-kvasir:official-5-0"),
    pattern="official-(2-[01]|5-[0-4])",
    numbers="the last number being any fold of the official ones",
    read_images=_read,
)

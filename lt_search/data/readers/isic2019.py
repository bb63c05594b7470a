"""ISIC 2019 (dermoscopy of skin lesions, 8 classes), from its folder as downloaded.

    ISIC_2019_Training_GroundTruth.csv   image, then a column of 0 and 1 for each class, and UNK, which is always 0
    ISIC_2019_Training_Metadata.csv      of its columns, image and lesion_id are read
    ISIC_2019_Training_Input/{image}.jpg

The labels of the official test images are not in this download; papers divide the training images.

- `isic2019`: all images, divided 7:1:2, those of one lesion together. Where the lesion is not known, an image is
  taken for a lesion of its own. There is no patient id.
- `isic2019:lt-F`: ISIC-2019-LT by the code of MRC-VFC and LMD, with imbalance factor F (there 100, 200, 500). With
  split seed 0 the images drawn are those of that code with its own seed, 42.
- `isic2019:balanced-F`: ISIC-2019-LT with as many validation and test images of every class, after Ju et al. (2022).
  The numbers are theirs; their lists of images are not in the download.

The long-tailed versions draw single images, as published, and so divide lesions: a warning says how many.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.csv_cells import listing
from lt_search.data.file_source import inspect_images
from lt_search.data.readers.isic2019_lt import (
    BALANCED_TEST,
    BALANCED_VAL,
    LEFT_OUT,
    PUBLISHED_SEED,
    balanced_counts,
    divide_balanced,
    divide_long_tailed,
    long_tailed_counts,
)
from lt_search.data.readers.layout import AS_PUBLISHED, find, read_table, report_repeated, report_unnamed, size_warnings
from lt_search.data.readers.one_hot import divided_units, one_hot_classes, report_empty
from lt_search.data.splits import SHARES, split_groups
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""In the order of the published table."""

VARIANTS = ("isic2019", "isic2019:lt-100", "isic2019:balanced-100")
"""How the data set is addressed, with an example of the imbalance factor."""

GROUND_TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
IMAGES = "ISIC_2019_Training_Input"
PUBLISHED_SIZE = 25_331

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Variant:
    name: str
    kind: str
    """`all`, `lt` or `balanced`."""
    factor: float
    """The imbalance factor; not used for `all`."""


@dataclass(frozen=True, eq=False)
class _Table:
    """All images in the order of the published table."""

    images: list[str]
    classes: Ints
    """(N,) index into `CLASSES`."""
    units: list[str]
    """(N,) the lesion of each image, or the image itself where that is not known."""


def read_isic2019(argument: str, root: Path, split_seed: int) -> Dataset:
    """Reads the tables and looks for the images, which are not opened yet: they are known to be RGB.

    Args:
        argument: what follows the colon in the data set's address; empty for all images.
        root: the folder as downloaded; it must exist.
        split_seed: moves lesions between parts; for a long-tailed version it decides which images are kept, too.

    Raises:
        UserError: with everything that is wrong with the argument and the folder.
    """
    problems = Problems()
    variant = problems.collect(lambda: _variant(argument))
    folder = find(root, [IMAGES], problems, folder=True)
    table = _read(root, problems)
    divided = None
    if variant is not None and table is not None and not problems:
        divided = problems.collect(lambda: _divide(table, variant, split_seed))
    if table is None or folder is None:
        problems.raise_if_any()
    assert table is not None
    assert folder is not None
    kept = range(len(table.images)) if divided is None else np.flatnonzero(divided[0] != LEFT_OUT).tolist()
    chosen = sorted(kept, key=table.images.__getitem__)
    files = tuple(f"{table.images[row]}.jpg" for row in chosen)
    place = str(root / GROUND_TRUTH)
    unpack = f"unpack the images into {folder}, names as published"
    states = inspect_images(folder, files, place, problems, all_missing=unpack, grey=False)
    if len(states) < len(files):
        there = (path.name for path in folder.iterdir())
        report_unnamed(folder, there, [f"{image}.jpg" for image in table.images], problems)
    problems.raise_if_any()
    assert variant is not None
    assert divided is not None
    part_of, origin = divided
    part_of = part_of[chosen]
    membership = np.eye(len(CLASSES), dtype=np.uint8)[table.classes[chosen]]
    check_parts(part_of, membership, CLASSES, place, problems, fill=AS_PUBLISHED, train=AS_PUBLISHED)
    problems.raise_if_any()
    units = tuple(table.units[row] for row in chosen)
    return assemble(
        LabelledFiles(folder, files, files, membership, units, states, grey=False),
        part_of,
        name=variant.name,
        task=Task.MULTI_CLASS,
        classes=CLASSES,
        split_origin=origin,
        warnings=(*size_warnings(len(table.images), PUBLISHED_SIZE), *_lesion_warnings(units, part_of)),
    )


def _variant(argument: str) -> _Variant:
    if not argument:
        return _Variant("isic2019", "all", 1.0)
    match = re.fullmatch(r"(lt|balanced)-(\d+(?:\.\d+)?)", argument)
    if match is None or float(match[2]) < 1:
        what = f"{argument!r} after 'isic2019' is neither lt-F nor balanced-F with an imbalance factor F of 1 or more"
        raise UserError(Problem("--dataset", what, f"for example {', '.join(VARIANTS)}"))
    return _Variant(f"isic2019:{argument}", match[1], float(match[2]))


def _read(root: Path, problems: Problems) -> _Table | None:
    """Both tables, with what is wrong with them; None where not even the images are known."""
    truth_file, metadata_file = (find(root, [name], problems) for name in (GROUND_TRUTH, METADATA))
    truth = read_table(truth_file, ("image", *(name.lower() for name in CLASSES)), problems)
    metadata = read_table(metadata_file, ("image", "lesion_id"), problems)
    if truth is None:
        return None
    images = truth.column("image")
    report_repeated(images, str(truth_file), problems)
    lesion_of: dict[str, str] = {}
    if metadata is not None:
        lesion_of = dict(zip(metadata.column("image"), metadata.column("lesion_id"), strict=True))
        absent = [image for image in images if image not in lesion_of]
        if absent:
            what = f"{len(absent)} images of {GROUND_TRUTH} are not in it: {listing(absent)}"
            problems.add(str(metadata_file), what, AS_PUBLISHED)
    units = [f"lesion:{lesion_of[image]}" if lesion_of.get(image) else f"image:{image}" for image in images]
    classes = one_hot_classes(truth, CLASSES, str(truth_file), problems)
    report_empty(classes, CLASSES, str(truth_file), problems)
    return _Table(images, classes, units)


def _divide(table: _Table, variant: _Variant, split_seed: int) -> tuple[Ints, str]:
    """(N,) the part of each image, or `LEFT_OUT`; and how that came about, in words.

    Raises:
        UserError: there are not enough images for the imbalance factor.
    """
    if variant.kind == "all":
        membership = np.eye(len(CLASSES), dtype=np.uint8)[table.classes]
        origin = f"{':'.join(map(str, SHARES))} by lesion, or by image where that is not known, seed {split_seed}"
        return split_groups(membership, table.units, split_seed), origin
    counts = np.bincount(table.classes, minlength=len(CLASSES)).tolist()
    if variant.kind == "lt":
        kept = long_tailed_counts(counts, variant.factor)
        _check_supply(kept, counts, variant)
        part_of = divide_long_tailed(table.classes, kept, PUBLISHED_SEED + split_seed)
        return part_of, f"70:10:20 of each class by image, the published seed {PUBLISHED_SEED} + seed {split_seed}"
    n_train = balanced_counts(counts, variant.factor)
    _check_supply([number + BALANCED_VAL + BALANCED_TEST for number in n_train], counts, variant)
    origin = f"{BALANCED_VAL} val and {BALANCED_TEST} test images of each class, by image, seed {split_seed}"
    return divide_balanced(table.classes, n_train, split_seed), origin


def _check_supply(needed: Sequence[int], counts: Sequence[int], variant: _Variant) -> None:
    short = [
        f"{number} of {name} (there are {count})"
        for name, number, count in zip(CLASSES, needed, counts, strict=True)
        if number > count
    ]
    if short:
        fix = "give a larger imbalance factor, or complete the download"
        raise UserError(Problem("--dataset", f"{variant.name} needs more images than there are: {listing(short)}", fix))


def _lesion_warnings(units: Sequence[str], part_of: Ints) -> tuple[str, ...]:
    """Sentences on lesions that are divided, and on images whose lesion is not known."""
    found = []
    divided = divided_units(units, part_of)
    if divided:
        found.append(
            f"{divided} lesions have images in more than one part, as in the published lists, so that scores on val "
            "and test are too good; isic2019 without a variant keeps lesions together"
        )
    alone = sum(unit.startswith("image:") for unit in units)
    if alone:
        found.append(f"{alone} images have no lesion_id; another image of their lesion may be in another part")
    return tuple(found)

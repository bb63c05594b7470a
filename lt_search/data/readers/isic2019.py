"""ISIC 2019 (dermoscopy of skin lesions, 8 classes), from its folder as downloaded.

    ISIC_2019_Training_GroundTruth.csv   image, then a column of 0 and 1 for each class, and UNK, which is always 0
    ISIC_2019_Training_Metadata.csv      of its columns, image and lesion_id are read
    ISIC_2019_Training_Input/{image}.jpg

The labels of the official test images are not in this download; papers divide the training images.

- `isic2019`: all images, divided 7:1:2 by lesion. An image whose lesion is not known is treated as a lesion of its
  own. There is no patient id.
- `isic2019:lt-F`: ISIC-2019-LT by the code of MRC-VFC and LMD, with imbalance factor F (there 100, 200, 500). With
  split seed 0 the images drawn are those of that code with its own seed, 42.
- `isic2019:balanced-F`: ISIC-2019-LT with equally many validation and test images of every class, after Ju et al.
  (2022). The numbers are theirs; their lists of images are not in the download.

The long-tailed versions draw single images, as published, and so divide lesions: a warning says how many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_search.data.csv_cells import listing
from lt_search.data.readers.isic2019_lt import (
    BALANCED_TEST,
    BALANCED_VAL,
    PUBLISHED_SEED,
    balanced_counts,
    divide_balanced,
    divide_long_tailed,
    long_tailed_counts,
)
from lt_search.data.readers.layout import (
    divided_groups,
    find,
    one_hot_classes,
    read_table,
    report,
    report_empty,
    report_repeated,
    size_warnings,
)
from lt_search.data.readers.published import (
    EXCLUDED,
    Ints,
    Published,
    PublishedImages,
    Request,
    Split,
    one_hot,
    split_by,
)
from lt_search.errors import Problem, UserError
from trainers.task import Task

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""In the order of the published table."""

GROUND_TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
IMAGES = "ISIC_2019_Training_Input"
PUBLISHED_SIZE = 25_331


def _read(request: Request) -> PublishedImages | None:
    root, problems = request.root, request.problems
    folder = find(root, [IMAGES], problems, folder=True)
    truth_file, metadata_file = (find(root, [name], problems) for name in (GROUND_TRUTH, METADATA))
    truth = read_table(truth_file, ("image", *(name.lower() for name in CLASSES)), problems)
    metadata = read_table(metadata_file, ("image", "lesion_id"), problems)
    if truth is None:
        return None
    place, images = str(truth_file), truth.column("image")
    report_repeated(images, place, problems)
    lesion_of: dict[str, str] = {}
    if metadata is not None:
        lesion_of = dict(zip(metadata.column("image"), metadata.column("lesion_id"), strict=True))
        absent = [image for image in images if image not in lesion_of]
        report(absent, f"images of {GROUND_TRUTH} are not in it", str(metadata_file), problems)
    classes = one_hot_classes(truth, CLASSES, place, problems)
    report_empty(classes, CLASSES, place, problems)
    files = [f"{image}.jpg" for image in images]
    groups = [f"lesion:{lesion_of[image]}" if lesion_of.get(image) else f"image:{image}" for image in images]
    if folder is None:
        return None
    return PublishedImages(
        table=place,
        folder=folder,
        ids=files,
        paths=files,
        labels=one_hot(classes, len(CLASSES)),
        groups=groups,
        split=None if problems else problems.collect(lambda: _split(request, classes, groups)),
        warnings=size_warnings(len(images), PUBLISHED_SIZE),
        searched=(folder,),
    )


def _split(request: Request, classes: Ints, groups: Sequence[str]) -> Split:
    """Raises `UserError` where there are too few images for the imbalance factor."""
    seed = request.split_seed
    if not request.variant:
        kind = "lesion, or by image where that is not known"
        split = split_by(kind, one_hot(classes, len(CLASSES)), groups, seed)
        return Split(split.part_of, split.origin, _lesion_warnings(groups, split.part_of))
    kind, _, text = request.variant.partition("-")
    factor, counts = float(text), np.bincount(classes, minlength=len(CLASSES)).tolist()
    if kind == "lt":
        kept = long_tailed_counts(counts, factor)
        _check_supply(kept, counts, request.variant)
        part_of = divide_long_tailed(classes, kept, PUBLISHED_SEED + seed)
        origin = f"70:10:20 of each class by image, the published seed {PUBLISHED_SEED} + seed {seed}"
    else:
        n_train = balanced_counts(counts, factor)
        _check_supply([number + BALANCED_VAL + BALANCED_TEST for number in n_train], counts, request.variant)
        part_of = divide_balanced(classes, n_train, seed)
        origin = f"{BALANCED_VAL} val and {BALANCED_TEST} test images of each class, by image, seed {seed}"
    return Split(part_of, origin, _lesion_warnings(groups, part_of))


def _check_supply(needed: Sequence[int], counts: Sequence[int], variant: str) -> None:
    short = [
        f"{number} of {name} (there are {count})"
        for name, number, count in zip(CLASSES, needed, counts, strict=True)
        if number > count
    ]
    if short:
        what = f"isic2019:{variant} needs more images than there are: {listing(short)}"
        raise UserError(Problem("--dataset", what, "give a larger imbalance factor, or complete the download"))


def _lesion_warnings(all_groups: Sequence[str], part_of: Ints) -> tuple[str, ...]:
    """On lesions that are divided, and on images whose lesion is not known."""
    kept = np.flatnonzero(part_of != EXCLUDED)
    groups = [all_groups[row] for row in kept.tolist()]
    warnings = []
    divided = len(divided_groups(groups, part_of[kept]))
    if divided:
        warnings.append(
            f"{divided} lesions have images in more than one part, as in the published lists, so that scores on val "
            "and test are too good; isic2019 without a variant keeps lesions together"
        )
    alone = sum(group.startswith("image:") for group in groups)
    if alone:
        warnings.append(f"{alone} images have no lesion_id; another image of their lesion may be in another part")
    return tuple(warnings)


ISIC2019 = Published(
    name="isic2019",
    task=Task.MULTI_CLASS,
    classes=CLASSES,
    grey=False,
    variants=("isic2019", "isic2019:lt-100", "isic2019:balanced-100"),
    pattern=r"(lt|balanced)-0*[1-9]\d*(\.\d+)?",
    numbers="with any imbalance factor of 1 or more",
    read_images=_read,
)

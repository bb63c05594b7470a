"""Skin7 (dermoscopy of skin lesions, 7 classes): the training set of ISIC 2018 task 3, from its folder as downloaded.

    ISIC2018_Task3_Training_GroundTruth.csv       image, then a column of 0 and 1 for each class
    ISIC2018_Task3_Training_LesionGroupings.csv   of its columns, image and lesion_id are read; or
    HAM10000_metadata.csv                         of its columns, image_id and lesion_id
    ISIC2018_Task3_Training_Input/{image}.jpg

Tables may lie in a folder of the same name without `.csv`, as their archives unpack.

- `skin7`: all images, divided 7:1:2 by lesion.
- `skin7:fold-1` to `skin7:fold-5`: five-fold cross-validation, as Skin7 is used. That fold is the test split; the other
  four are divided 7:1. Folds are stratified by class and by lesion; the lists of the papers are not published.

The objective is balanced accuracy.
"""

from __future__ import annotations

from pathlib import Path

from lt_search.data.readers.layout import (
    find,
    one_hot_classes,
    read_table,
    report,
    report_empty,
    report_repeated,
    size_warnings,
)
from lt_search.data.readers.published import (
    MultiHot,
    Published,
    PublishedImages,
    Request,
    Split,
    one_hot,
    split_by,
    split_rest,
)
from lt_search.data.splits import split_groups
from trainers.task import Task

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
"""In the order of the published table."""

N_FOLDS = 5

GROUND_TRUTH = "ISIC2018_Task3_Training_GroundTruth.csv"
LESIONS = ("ISIC2018_Task3_Training_LesionGroupings.csv", "HAM10000_metadata.csv")
"""The first one that exists is read."""
IMAGES = "ISIC2018_Task3_Training_Input"
PUBLISHED_SIZE = 10_015


def _read(request: Request) -> PublishedImages | None:
    root, problems = request.root, request.problems
    folder = find(root, [IMAGES], problems, folder=True)
    truth_file = find(root, _places(GROUND_TRUTH), problems)
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
        report(unknown, f"images of {GROUND_TRUTH} have no lesion in it", str(lesion_file), problems)
    files, labels = [f"{image}.jpg" for image in images], one_hot(classes, len(CLASSES))
    groups = [f"lesion:{lesion_of.get(image, '')}" for image in images]
    if folder is None:
        return None
    return PublishedImages(
        table=place,
        folder=folder,
        ids=files,
        paths=files,
        labels=labels,
        groups=groups,
        split=None if problems else _split(request, labels, groups),
        warnings=size_warnings(len(images), PUBLISHED_SIZE),
        searched=(folder,),
    )


def _places(name: str) -> tuple[str, str]:
    """Where a table of the archive may lie."""
    return name, f"{Path(name).stem}/{name}"


def _split(request: Request, labels: MultiHot, groups: list[str]) -> Split:
    seed = request.split_seed
    if not request.variant:
        return split_by("lesion", labels, groups, seed)
    fold = int(request.variant.removeprefix("fold-"))
    fold_of = split_groups(labels, groups, seed, (1,) * N_FOLDS)
    part_of, ratio = split_rest(fold_of == fold - 1, labels, groups, seed)
    return Split(part_of, f"fold {fold} of {N_FOLDS} for test, the others divided {ratio}, by lesion, seed {seed}")


SKIN7 = Published(
    name="skin7",
    task=Task.MULTI_CLASS,
    classes=CLASSES,
    grey=False,
    variants=("skin7", *(f"skin7:fold-{number}" for number in range(1, N_FOLDS + 1))),
    read_images=_read,
)

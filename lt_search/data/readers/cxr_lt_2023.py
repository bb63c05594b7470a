"""CXR-LT 2023 (radiographs of MIMIC-CXR-JPG, 26 findings, multi-label), from the folders as downloaded.

    train.csv, development.csv, test.csv    also in cxr-lt-2023/; of their columns: dicom_id, subject_id, study_id, path
                                            (or fpath), and one of 0 and 1 for each finding
    {path}                                  such as files/p10/p10000032/s50414267/{dicom_id}.jpg, also in
                                            physionet.org/files/mimic-cxr-jpg/{version}/, as wget leaves it

"No Finding" is a class of its own. A study may be written 50414267 or s50414267. Views of one study share labels, so
that images of one subject stay together. Images are grey to the trainer.

- `cxr-lt-2023:official`: the published splits; development is validation. A warning says if they divide subjects.
- `cxr-lt-2023:subject`: the images of all tables that have labels, divided 7:1:2 by subject.
- `cxr-lt-2023`: official; by subject, with a warning, where one of the three tables is missing or has no labels.

The objective is mAP, the challenge's; it also reports `macro_auc`, `macro_f1` and `macro_ece`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from lt_search.data.csv_cells import Cells
from lt_search.data.readers.layout import (
    AS_PUBLISHED,
    divided_groups,
    find,
    read_table,
    report,
    report_repeated,
    report_rows,
    size_warnings,
)
from lt_search.data.readers.published import Ints, MultiHot, Published, PublishedImages, Request, Split, split_by
from lt_search.errors import Problems
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

TABLES = ("train.csv", "development.csv", "test.csv")
"""In the order of `PART_NAMES`."""
TABLE_FOLDERS = ("", "cxr-lt-2023/")
MIRROR = "physionet.org/files/mimic-cxr-jpg/*"
"""Where `wget` puts the images."""
PUBLISHED_SIZE = 377_110

_IMAGE, _SUBJECT, _STUDY = "dicom_id", "subject_id", "study_id"
_PATHS = ("path", "fpath")


def _read(request: Request) -> PublishedImages | None:
    root, problems = request.root, request.problems
    official = request.variant == "official" or (not request.variant and _has_labels(root, TABLES))
    wanted = [name for name in TABLES if official or _has_labels(root, [name])] or TABLES[:1]
    files = [find(root, _places(name), problems) for name in wanted]
    images: list[str] = []
    paths: list[str] = []
    groups: list[str] = []
    studies: list[str] = []
    parts: list[int] = []
    label_blocks: list[MultiHot] = []
    for name, file in zip(wanted, files, strict=True):
        cells = read_table(file, (_IMAGE, _SUBJECT, _STUDY, *(one.lower() for one in CLASSES)), problems)
        if cells is None:
            continue
        label_blocks.append(_labels(cells, str(file), problems))
        paths += _paths(cells, str(file), problems)
        images += cells.column(_IMAGE)
        groups += [f"subject:{subject}" for subject in cells.column(_SUBJECT)]
        studies += [study.removeprefix("s") for study in cells.column(_STUDY)]
        parts += [TABLES.index(name)] * len(cells.rows)
    place = str(files[0].parent if files[0] else root)
    report_repeated(images, place, problems)
    subjects = np.unique(groups, return_inverse=True)[1]
    report(divided_groups(studies, subjects), "studies are of more than one subject", place, problems)
    if problems:
        return None
    labels = np.concatenate(label_blocks)
    return PublishedImages(
        table=place,
        folder=_image_folder(root, paths),
        ids=images,
        paths=paths,
        labels=labels,
        groups=groups,
        split=_split(request, labels, groups, np.array(parts) if official else None),
        warnings=size_warnings(len(images), PUBLISHED_SIZE),
        unpack="unpack MIMIC-CXR-JPG there, with its folder files/",
    )


def _places(name: str) -> list[str]:
    return [f"{folder}{name}" for folder in TABLE_FOLDERS]


def _has_labels(root: Path, names: Sequence[str]) -> bool:
    """Whether all of these tables exist with a column of labels; those handed out in the challenge had none."""
    for name in names:
        file = next((root / place for place in _places(name) if (root / place).is_file()), None)
        if file is None:
            return False
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            if CLASSES[0].lower() not in lines.readline().lower():
                return False
    return True


def _labels(cells: Cells, place: str, problems: Problems) -> MultiHot:
    """(N, 26) from cells of 0 and 1; adds rows with another one."""
    value_of = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
    columns = [[value_of.get(cell, -1) for cell in cells.column(name.lower())] for name in CLASSES]
    values: npt.NDArray[np.int8] = np.array(columns, np.int8).T
    report_rows(cells, values.min(axis=1) < 0, "have a label that is neither 0 nor 1", place, problems)
    return values.astype(np.uint8)


def _paths(cells: Cells, place: str, problems: Problems) -> list[str]:
    """(N,) paths of the images; adds rows whose path is not that of their image, study and subject."""
    column = next((name for name in _PATHS if name in cells.columns), None)
    if column is None:
        what = f"no column {' or '.join(map(repr, _PATHS))}; the columns are: {', '.join(map(repr, cells.columns))}"
        problems.add(f"{place}, line 1", what, AS_PUBLISHED)
        return [""] * len(cells.rows)
    keys = (cells.column(name) for name in (column, _IMAGE, _STUDY, _SUBJECT))
    wrong = []
    for path, image, study, subject in zip(*keys, strict=True):
        own = (f"p{subject}", f"s{study.removeprefix('s')}", f"{image}.jpg")
        wrong.append(not image or not subject or PurePosixPath(path).parts[-len(own) :] != own)
    report_rows(cells, wrong, "have a path that does not end with their subject, study and image", place, problems)
    return cells.column(column)


def _image_folder(root: Path, paths: Sequence[str]) -> Path:
    """The first folder that has the first image; `root` where none has it, so that it is reported as missing there."""
    return next((folder for folder in (root, *sorted(root.glob(MIRROR))) if (folder / paths[0]).is_file()), root)


def _split(request: Request, labels: MultiHot, groups: Sequence[str], published: Ints | None) -> Split:
    """The published split, or by subject where that is None."""
    if published is None:
        split = split_by("subject", labels, groups, request.split_seed)
    else:
        split = Split(published, f"given by {', '.join(TABLES)}")
    warnings = []
    if published is None and not request.variant:
        warnings.append(
            f"not all of {', '.join(TABLES)} are there with labels, so the images that have them were divided by "
            "subject; scores are not those of the challenge"
        )
    unlabelled = int((labels.sum(axis=1) == 0).sum())
    if unlabelled:
        warnings.append(
            f"{unlabelled} images have none of the {len(CLASSES)} labels, not even No Finding; they are kept as "
            "negatives of every class"
        )
    divided = len(divided_groups(groups, split.part_of))
    if divided:
        warnings.append(
            f"{divided} subjects have images in more than one published part, so that scores on val and test may be "
            "too good; cxr-lt-2023:subject keeps them together"
        )
    return Split(split.part_of, split.origin, tuple(warnings))


CXR_LT_2023 = Published(
    name="cxr-lt-2023",
    task=Task.MULTI_LABEL,
    classes=CLASSES,
    grey=True,
    variants=("cxr-lt-2023", "cxr-lt-2023:official", "cxr-lt-2023:subject"),
    read_images=_read,
)

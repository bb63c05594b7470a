"""ODIR-5K (photographs of both eyes of a patient, 8 labels, multi-label), from its folder as downloaded.

    ODIR-5K_Training_Annotations(Updated)_V2.xlsx    or data.xlsx; either saved as .csv; or full_df.csv, a row per eye
        ID, Left-Fundus, Right-Fundus, Left-Diagnostic Keywords, Right-Diagnostic Keywords, and N, D, G, C, A, H, M, O
        (in some copies Normal, Diabetes and so on)
    Training Images/{Left-Fundus or Right-Fundus}    or ODIR-5K_Training_Dataset/, ODIR-5K_Training_Images/

All of it may lie in ODIR-5K/ or ODIR-5K/ODIR-5K/. The challenge's test patients have no public labels.

The table's labels are those of a *patient*: a normal eye of a patient whose other eye has a cataract has the label C.
Those of an eye are derived from its keywords, which are separated by full-width commas (U+FF0C) or plain ones.

- `odir5k`: an image is a patient: both eyes, two views of three channels each, give one prediction of the table's
  labels.
- `odir5k:eyes`: an image is an eye with the labels of its keywords. Eyes whose keywords only say that the photograph
  shows no fundus or a bad one are dropped; a warning says how many.

Both divide the same patients 7:1:2. The objective of `odir5k` is `odir_score`, the challenge's final score; its parts
are `pooled_kappa`, `mACC` (the challenge's micro F1) and `pooled_auc`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lt_search.data.csv_cells import check_cells, listing, read_cells
from lt_search.data.readers.layout import AS_PUBLISHED, find, report, report_rows, size_warnings
from lt_search.data.readers.published import EXCLUDED, Published, PublishedImages, Request, split_by
from lt_search.data.readers.xlsx import read_xlsx
from lt_search.errors import Problems
from trainers.task import Task

CLASSES = ("N", "D", "G", "C", "A", "H", "M", "O")
"""Normal, diabetes, glaucoma, cataract, age-related macular degeneration, hypertension, pathological myopia, other."""

TABLES = (
    "ODIR-5K_Training_Annotations(Updated)_V2.xlsx",
    "ODIR-5K_Training_Annotations(Updated)_V2.csv",
    "data.xlsx",
    "data.csv",
    "full_df.csv",
)
"""The table's names; the first one that exists is read."""
IMAGES = ("Training Images", "ODIR-5K_Training_Dataset", "ODIR-5K_Training_Images")
FOLDERS = ("", "ODIR-5K/", "ODIR-5K/ODIR-5K/")
PUBLISHED_PATIENTS = 3500

NORMAL = CLASSES[0]
KEYWORDS = {
    "normal fundus": "N",
    "diabetic retinopathy": "D",
    "proliferative retinopathy": "D",
    "glaucoma": "G",
    "cataract": "C",
    "macular degeneration": "A",
    "hypertensive retinopathy": "H",
    "myopi": "M",
}
"""Label of a keyword that contains this text; any other disease is O."""
QUALITY_NOTES = frozenset(
    {
        "anterior segment image",
        "image offset",
        "lens dust",
        "low image quality",
        "no fundus image",
        "optic disk photographically invisible",
    }
)
"""Keywords about the photograph, not about the eye."""

_COMMAS = re.compile("[,\uff0c]")
_ID = "id"
_FUNDI = ("left-fundus", "right-fundus")
_KEYWORDS = ("left-diagnostic keywords", "right-diagnostic keywords")
_OTHER_NAMES: Mapping[str, str] = {
    "normal": "n",
    "diabetes": "d",
    "glaucoma": "g",
    "cataract": "c",
    "age related macular degeneration": "a",
    "hypertension": "h",
    "pathological myopia": "m",
    "other diseases/abnormalities": "o",
}
"""Columns of labels as some copies call them."""


@dataclass(frozen=True)
class _Patient:
    """A row of the table."""

    name: str
    eyes: tuple[str, ...]
    """Left and right file."""
    keywords: tuple[str, ...]
    """Of each eye."""
    cells: tuple[str, ...]
    """Of the 8 labels."""

    @property
    def labels(self) -> list[int]:
        """(8,) 0 / 1 as in the table."""
        return [int(float(cell)) for cell in self.cells]


def _read(request: Request) -> PublishedImages | None:
    root, problems = request.root, request.problems
    file = find(root, [f"{folder}{name}" for name in TABLES for folder in FOLDERS], problems)
    folder = find(root, [f"{place}{name}" for name in IMAGES for place in FOLDERS], problems, folder=True)
    patients = problems.collect(lambda: _patients(file)) if file else None
    if file is None or folder is None or patients is None:
        return None
    labels = np.array([patient.labels for patient in patients], np.uint8)
    split = split_by("patient", labels, [patient.name for patient in patients], request.split_seed)
    images = PublishedImages(
        table=str(file),
        folder=folder,
        ids=[patient.name for patient in patients],
        paths=[patient.eyes[side] for side in range(len(_FUNDI)) for patient in patients],
        labels=labels,
        groups=[f"patient:{patient.name}" for patient in patients],
        split=split,
        warnings=(*size_warnings(len(patients), PUBLISHED_PATIENTS, "patients"), *_contradictions(patients)),
        searched=(folder,),
        objective="odir_score",
        unpack=f"unpack the training images into {folder}, names as published",
    )
    return images if request.variant != "eyes" else _eyes(images, patients)


def _eyes(images: PublishedImages, patients: Sequence[_Patient]) -> PublishedImages:
    """Each eye as an image, in the split of its patient; those without a label are dropped."""
    keywords = [patient.keywords[side] for side in range(len(_FUNDI)) for patient in patients]
    labels = np.array([eye_labels(of_eye) for of_eye in keywords], np.uint8)
    assert images.split is not None
    part_of = np.where(labels.any(axis=1), np.tile(images.split.part_of, len(_FUNDI)), EXCLUDED)
    dropped = int((part_of == EXCLUDED).sum())
    warning = f"{dropped} eyes are left out: their keywords only say that the photograph shows no fundus or a bad one"
    return replace(
        images,
        ids=images.paths,
        labels=labels,
        groups=[*images.groups] * len(_FUNDI),
        split=replace(images.split, part_of=part_of),
        warnings=(*images.warnings, *((warning,) if dropped else ())),
        objective=None,
    )


def eye_labels(keywords: str) -> list[int]:
    """(8,) 0 / 1 from the keywords of one eye; all 0 where they are only about the photograph.

    An eye is normal if a keyword says so and none names a disease.
    """
    labels = set()
    for keyword in (one.strip().lower() for one in _COMMAS.split(keywords)):
        if keyword and keyword not in QUALITY_NOTES:
            labels.add(next((label for text, label in KEYWORDS.items() if text in keyword), "O"))
    if labels != {NORMAL}:
        labels.discard(NORMAL)
    return [int(label in labels) for label in CLASSES]


def patient_labels(keywords: Sequence[str]) -> list[int]:
    """(8,) 0 / 1 of a patient: the diseases of either eye; normal if no eye has any and one is normal."""
    either = np.max([eye_labels(one) for one in keywords], axis=0)
    if either[1:].any():
        either[0] = 0
    labels: list[int] = either.tolist()
    return labels


def _patients(file: Path) -> list[_Patient]:
    """Raises `UserError` with every problem with the table."""
    cells = read_xlsx(file) if file.suffix == ".xlsx" else read_cells(file)
    cells = replace(cells, columns=tuple(_OTHER_NAMES.get(name, name) for name in cells.columns))
    label_columns = tuple(name.lower() for name in CLASSES)
    check_cells(cells, file, (_ID, *_FUNDI, *_KEYWORDS, *label_columns), AS_PUBLISHED)
    place, problems = str(file), Problems()
    sides = [zip(*map(cells.column, names), strict=True) for names in (_FUNDI, _KEYWORDS, label_columns)]
    rows = [_Patient(*row) for row in zip(cells.column(_ID), *sides, strict=True)]
    patients: dict[str, _Patient] = {}
    # A table with a row per eye repeats what it says of the patient.
    differing = {row.name: None for row in rows if patients.setdefault(row.name, row) != row}
    report(list(differing), "patients have several rows that differ", place, problems)
    blank = [not all((row.name, *row.eyes, *row.keywords)) for row in rows]
    report_rows(cells, blank, "have no id, image or keywords", place, problems)
    wrong = [not set(row.cells) <= {"0", "1", "0.0", "1.0"} for row in rows]
    report_rows(cells, wrong, "have a label that is neither 0 nor 1", place, problems)
    none = [set(row.cells) <= {"0", "0.0"} for row in rows]
    report_rows(cells, none, f"have none of the labels {', '.join(CLASSES)}, not even N", place, problems)
    eyes = Counter(eye for patient in patients.values() for eye in patient.eyes if eye)
    repeated = [eye for eye, count in eyes.items() if count > 1]
    report(repeated, "images are listed for more than one eye", place, problems)
    problems.raise_if_any()
    return [patients[name] for name in sorted(patients)]


def _contradictions(patients: Sequence[_Patient]) -> tuple[str, ...]:
    """A warning on patients whose labels are not those of their eyes' keywords."""
    names = [patient.name for patient in patients if patient_labels(patient.keywords) != patient.labels]
    if not names:
        return ()
    return (
        f"{len(names)} patients have other labels in the table than by the keywords of their eyes: {listing(names)}",
    )


ODIR5K = Published(
    name="odir5k",
    task=Task.MULTI_LABEL,
    classes=CLASSES,
    grey=False,
    variants=("odir5k", "odir5k:eyes"),
    read_images=_read,
)

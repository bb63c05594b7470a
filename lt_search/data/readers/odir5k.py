"""ODIR-5K (photographs of both eyes of a patient, 8 labels, multi-label), from its folder as downloaded.

    ODIR-5K_Training_Annotations(Updated)_V2.xlsx    or data.xlsx; either saved as .csv; or full_df.csv, a row per eye
        ID, Left-Fundus, Right-Fundus, Left-Diagnostic Keywords, Right-Diagnostic Keywords, and N, D, G, C, A, H, M, O
        (in some copies Normal, Diabetes and so on)
    Training Images/{Left-Fundus or Right-Fundus}    or ODIR-5K_Training_Dataset/, ODIR-5K_Training_Images/

All of it may lie in ODIR-5K/ or ODIR-5K/ODIR-5K/. The challenge's test patients have no public labels.

The table's labels are those of a *patient*: a normal eye of a patient whose other eye has a cataract has the label C.
Those of an eye follow from its keywords, which are separated by full-width commas (U+FF0C) or plain ones.

- `odir5k`: an image is a patient: both eyes, two views of three channels each, give one prediction of the table's
  labels.
- `odir5k:eyes`: an image is an eye with the labels of its keywords. Eyes whose keywords only say that the photograph
  shows no fundus or a bad one are left out; a warning says how many.

Both divide the same patients 7:1:2. The objective of `odir5k` is `odir_score`, the challenge's final score; its parts
are `pooled_kappa`, `mACC` (the challenge's micro F1) and `pooled_auc`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.csv_cells import Cells, check_cells, listing, read_cells
from lt_search.data.file_source import inspect_images
from lt_search.data.readers.layout import AS_PUBLISHED, find, report_unnamed, size_warnings
from lt_search.data.splits import SHARES, split_groups
from lt_search.data.table import Dataset
from lt_search.data.xlsx_cells import read_xlsx_cells
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

CLASSES = ("N", "D", "G", "C", "A", "H", "M", "O")
"""Normal, diabetes, glaucoma, cataract, age-related macular degeneration, hypertension, pathological myopia, other."""

VARIANTS = ("odir5k", "odir5k:eyes")
"""How the data set is addressed."""

TABLES = (
    "ODIR-5K_Training_Annotations(Updated)_V2.xlsx",
    "ODIR-5K_Training_Annotations(Updated)_V2.csv",
    "data.xlsx",
    "data.csv",
    "full_df.csv",
)
"""The table's names; the first one that is there is read."""
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
"""What a keyword that contains this text stands for; any other disease is O."""
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
"""Keywords that are about the photograph, not about the eye."""

_COMMAS = re.compile("[,\uff0c]")
_ID = "id"
_FUNDI = ("left-fundus", "right-fundus")
_NOTES = ("left-diagnostic keywords", "right-diagnostic keywords")
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

Membership = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Patient:
    """A row of the table."""

    name: str
    eyes: tuple[str, ...]
    """Left and right file."""
    notes: tuple[str, ...]
    """The keywords of each eye."""
    labels: tuple[str, ...]
    """The cells of the 8 labels."""

    @property
    def membership(self) -> list[int]:
        """(8,) 0 / 1 as the table has it."""
        return [int(float(label)) for label in self.labels]


def read_odir5k(argument: str, root: Path, split_seed: int) -> Dataset:
    """Reads the table and looks for the images, which are not opened yet: they are known to be RGB.

    Args:
        argument: what follows the colon in the data set's address: `eyes`, or nothing.
        root: the folder as downloaded; it must exist.
        split_seed: moves patients between parts.

    Raises:
        UserError: with everything that is wrong with the argument and the folder.
    """
    problems = Problems()
    by_eye = problems.collect(lambda: _by_eye(argument))
    file = find(root, [f"{folder}{name}" for name in TABLES for folder in FOLDERS], problems)
    folder = find(root, [f"{place}{name}" for name in IMAGES for place in FOLDERS], problems, folder=True)
    patients = problems.collect(lambda: _patients(file)) if file else None
    if by_eye is None or file is None or folder is None or patients is None:
        problems.raise_if_any()
    assert by_eye is not None and file is not None and folder is not None and patients is not None
    of_patients = np.array([patient.membership for patient in patients], np.uint8)
    part_of_patient = split_groups(of_patients, [patient.name for patient in patients], split_seed)
    if by_eye:
        ids, paths, rows, membership, warnings = _eyes(patients)
    else:
        ids = tuple(patient.name for patient in patients)
        paths = tuple(patient.eyes[side] for side in range(len(_FUNDI)) for patient in patients)
        rows, membership, warnings = list(range(len(patients))), of_patients, ()
    unpack = f"unpack the training images into {folder}, names as published"
    states = inspect_images(folder, paths, str(file), problems, all_missing=unpack, grey=False)
    if len(states) < len(paths):
        named = [eye for patient in patients for eye in patient.eyes]
        report_unnamed(folder, (path.name for path in folder.iterdir()), named, problems)
    problems.raise_if_any()
    part_of = part_of_patient[rows]
    check_parts(part_of, membership, CLASSES, str(file), problems, fill=AS_PUBLISHED, train=AS_PUBLISHED)
    problems.raise_if_any()
    units = tuple(f"patient:{patients[row].name}" for row in rows)
    return assemble(
        LabelledFiles(folder, ids, paths, membership, units, states, grey=False),
        part_of,
        name=f"odir5k:{argument}" if argument else "odir5k",
        task=Task.MULTI_LABEL,
        classes=CLASSES,
        split_origin=f"{':'.join(map(str, SHARES))} by patient, seed {split_seed}",
        warnings=(
            *size_warnings(len(patients), PUBLISHED_PATIENTS, "patients"),
            *_contradictions(patients),
            *warnings,
        ),
        objective=None if by_eye else "odir_score",
    )


def eye_labels(keywords: str) -> list[int]:
    """(8,) 0 / 1 from the keywords of one eye; all 0 where they only speak of the photograph.

    An eye is normal where a keyword says so and none names a disease.
    """
    found = set()
    for keyword in (one.strip().lower() for one in _COMMAS.split(keywords)):
        if keyword and keyword not in QUALITY_NOTES:
            found.add(next((label for text, label in KEYWORDS.items() if text in keyword), "O"))
    if found != {NORMAL}:
        found.discard(NORMAL)
    return [int(label in found) for label in CLASSES]


def patient_labels(keywords: Sequence[str]) -> list[int]:
    """(8,) 0 / 1 of a patient: the diseases of either eye; normal where no eye has any and one is said to be normal."""
    either = np.max([eye_labels(one) for one in keywords], axis=0)
    if either[1:].any():
        either[0] = 0
    labels: list[int] = either.tolist()
    return labels


def _by_eye(argument: str) -> bool:
    if argument not in ("", "eyes"):
        what = f"{argument!r} after 'odir5k' is not eyes"
        raise UserError(Problem("--dataset", what, f"use one of {', '.join(VARIANTS)}"))
    return argument == "eyes"


def _patients(file: Path) -> list[_Patient]:
    """The patients in the order of their names.

    Raises:
        UserError: with everything that is wrong with the table.
    """
    cells = read_xlsx_cells(file) if file.suffix == ".xlsx" else read_cells(file)
    cells = replace(cells, columns=tuple(_OTHER_NAMES.get(name, name) for name in cells.columns))
    labels = tuple(name.lower() for name in CLASSES)
    check_cells(cells, file, (_ID, *_FUNDI, *_NOTES, *labels), AS_PUBLISHED)
    problems = Problems()
    patients: dict[str, _Patient] = {}
    differing: dict[str, None] = {}
    for patient in _rows(cells, labels):
        # A table with a row per eye repeats what it says of the patient.
        if patients.setdefault(patient.name, patient) != patient:
            differing[patient.name] = None
    if differing:
        what = f"{len(differing)} patients have several rows that differ: {listing(list(differing))}"
        problems.add(str(file), what, AS_PUBLISHED)
    _check_cells(cells, labels, str(file), problems)
    _check_files(list(patients.values()), str(file), problems)
    problems.raise_if_any()
    return [patients[name] for name in sorted(patients)]


def _rows(cells: Cells, labels: Sequence[str]) -> list[_Patient]:
    sides = [zip(*(cells.column(name) for name in names), strict=True) for names in (_FUNDI, _NOTES, labels)]
    return [_Patient(*row) for row in zip(cells.column(_ID), *sides, strict=True)]


def _check_cells(cells: Cells, labels: Sequence[str], place: str, problems: Problems) -> None:
    """Adds rows with blank cells, with labels that are neither 0 nor 1, and with no label at all."""
    columns = (_ID, *_FUNDI, *_NOTES)
    blank = [
        line
        for line, *row in zip(cells.numbers, *(cells.column(name) for name in columns), strict=True)
        if not all(row)
    ]
    if blank:
        what = f"{len(blank)} rows have no id, image or keywords: lines {listing(blank)}"
        problems.add(place, what, AS_PUBLISHED)
    rows = list(zip(cells.numbers, *(cells.column(name) for name in labels), strict=True))
    wrong = [line for line, *row in rows if not set(row) <= {"0", "1", "0.0", "1.0"}]
    if wrong:
        what = f"{len(wrong)} rows have a label that is neither 0 nor 1: lines {listing(wrong)}"
        problems.add(place, what, AS_PUBLISHED)
    none = [line for line, *row in rows if set(row) <= {"0", "0.0"}]
    if none:
        what = f"{len(none)} rows have none of the labels {', '.join(CLASSES)}, not even N: lines {listing(none)}"
        problems.add(place, what, AS_PUBLISHED)


def _check_files(patients: Sequence[_Patient], place: str, problems: Problems) -> None:
    """Adds images that more than one patient has, or one twice."""
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for eye in (eye for patient in patients for eye in patient.eyes if eye):
        if eye in seen:
            repeated[eye] = None
        seen.add(eye)
    if repeated:
        what = f"{len(repeated)} images are listed for more than one eye: {listing(list(repeated))}"
        problems.add(place, what, AS_PUBLISHED)


def _eyes(
    patients: Sequence[_Patient],
) -> tuple[tuple[str, ...], tuple[str, ...], list[int], Membership, tuple[str, ...]]:
    """File names (twice: ids and paths), the row of each eye's patient, labels, and how many eyes are left out."""
    known = sorted(
        (name, row, labels)
        for row, patient in enumerate(patients)
        for name, notes in zip(patient.eyes, patient.notes, strict=True)
        if any(labels := eye_labels(notes))
    )
    names = tuple(name for name, _, _ in known)
    membership = np.array([labels for _, _, labels in known], np.uint8)
    left_out = len(_FUNDI) * len(patients) - len(known)
    warning = f"{left_out} eyes are left out: their keywords only say that the photograph shows no fundus or a bad one"
    return names, names, [row for _, row, _ in known], membership, (warning,) if left_out else ()


def _contradictions(patients: Sequence[_Patient]) -> tuple[str, ...]:
    """A sentence on patients whose labels are not those of their eyes' keywords."""
    found = [patient.name for patient in patients if patient_labels(patient.notes) != patient.membership]
    if not found:
        return ()
    return (
        f"{len(found)} patients have other labels in the table than by the keywords of their eyes: {listing(found)}",
    )

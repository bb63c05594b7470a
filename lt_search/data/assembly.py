"""Construction of a data set from labelled image files and their split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.csv_cells import listing
from lt_search.data.file_source import FileImages, FileState
from lt_search.data.table import (
    PART_NAMES,
    Dataset,
    Labels,
    Part,
    PartName,
    digest,
    digest_rows,
    digest_split,
    scarcity_warnings,
)
from lt_search.errors import Problems
from trainers.task import Task


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """Image files with labels, group ids and file sizes, in the order of their ids."""

    folder: Path
    ids: tuple[str, ...]
    """(N,) names of the images, unique and sorted."""
    paths: tuple[str, ...]
    """(V N,) relative to `folder`: with V views per image, the first views of all images, then the second ones."""
    labels: npt.NDArray[np.uint8]
    """(N, C) multi-hot."""
    groups: tuple[str, ...]
    """(N,) group ids, see `Part.groups`."""
    states: tuple[FileState, ...]
    """(V N,) of the files at `paths`."""
    grey: bool
    """Whether images are grey to the trainer, otherwise RGB."""
    ties: tuple[tuple[str, ...], ...] = ()
    """See `Part.ties`."""

    @property
    def n_views(self) -> int:
        """V, the files that make one image to the trainer, such as both eyes of a patient."""
        return len(self.paths) // len(self.ids)


def assemble(
    files: LabelledFiles,
    part_of: npt.NDArray[np.int64],
    *,
    name: str,
    task: Task,
    classes: tuple[str, ...],
    split_origin: str,
    warnings: Sequence[str] = (),
    objective: str | None = None,
    nothing: str | None = None,
) -> Dataset:
    """Builds the data set.

    Args:
        files: all images.
        part_of: (N,) index into `PART_NAMES`.
        name: its name.
        task: multi-class takes each image's one class.
        classes: (C,) their names, in the order of `files.labels`.
        split_origin: how the split was made, in words.
        warnings: for people; one on classes with few images is added.
        objective: the metric of the data set's publication, where it is not the task's main metric.
        nothing: the data set's name for an image with none of its classes, if any.
    """
    n_images, n_views = len(files.ids), files.n_views
    labels: Labels = files.labels if task is Task.MULTI_LABEL else files.labels.argmax(axis=1).astype(np.int64)

    def part(part_name: PartName) -> Part:
        chosen = np.flatnonzero(part_of == PART_NAMES.index(part_name))
        ids, groups = (tuple(column[index] for index in chosen) for column in (files.ids, files.groups))
        chosen_files = [int(index) + view * n_images for view in range(n_views) for index in chosen]
        paths = tuple(files.paths[index] for index in chosen_files)
        states = [files.states[index] for index in chosen_files]
        return Part(
            name=part_name,
            ids=ids,
            labels=labels[chosen],
            groups=groups,
            source=FileImages.of(files.folder, paths, states, files.grey, n_views),
            fingerprint=digest_rows(ids, labels[chosen], groups, [state.size for state in states]),
            ties=tuple(files.ties[index] for index in chosen) if files.ties else (),
        )

    parts = [part(part_name) for part_name in PART_NAMES]
    images = digest_rows(files.ids, labels, files.groups, [state.size for state in files.states])
    train, val, test = parts
    return Dataset(
        name=name,
        task=task,
        classes=classes,
        train=train,
        val=val,
        test=test,
        fingerprint=digest((*classes, images)),
        split_hash=digest_split({one.name: one.ids for one in parts}),
        split_origin=split_origin,
        warnings=(*warnings, *scarcity_warnings(classes, parts)),
        objective=objective,
        nothing=nothing,
    )


def empty_parts(part_of: npt.NDArray[np.int64]) -> list[PartName]:
    """The splits without an image."""
    return [name for index, name in enumerate(PART_NAMES) if not (part_of == index).any()]


def check_parts(
    part_of: npt.NDArray[np.int64],
    labels: npt.NDArray[np.uint8],
    classes: Sequence[str],
    place: str,
    problems: Problems,
    *,
    fill: str,
    train: str,
) -> None:
    """Adds splits without an image, and classes without a training image.

    Args:
        part_of: (N,) index into `PART_NAMES`.
        labels: (N, C) multi-hot.
        classes: (C,) their names.
        place: the file that gives the split.
        problems: collects the problems.
        fill: what to do about an empty split.
        train: what to do about a class without a training image.
    """
    empty = empty_parts(part_of)
    for name in empty:
        problems.add(place, f"no image is in the {name} split", fill)
    counts = labels[part_of == PART_NAMES.index("train")].sum(axis=0)
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if absent and "train" not in empty:
        problems.add(place, f"{len(absent)} classes have no training image: {listing(absent)}", train)

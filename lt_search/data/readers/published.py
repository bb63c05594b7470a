"""Skeleton of the readers of published data sets; a reader adds what is particular to its data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.assembly import LabelledFiles, assemble, check_parts
from lt_search.data.file_source import inspect_images
from lt_search.data.readers.layout import AS_PUBLISHED, report_unnamed
from lt_search.data.splits import SHARES, TEST, split_groups
from lt_search.data.table import Dataset
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

EXCLUDED = -1
"""In `Split.part_of`: the image belongs to no split."""

Ints = npt.NDArray[np.int64]
MultiHot = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """What a reader is asked for."""

    variant: str
    """What follows the colon in the data set's address; empty for the default."""
    root: Path
    """The folder as downloaded; it exists."""
    split_seed: int
    """Seed of those splits that the data set does not give."""
    problems: Problems
    """Collects every problem with the folder."""


@dataclass(frozen=True, eq=False)
class Split:
    """An assignment of images to training, validation and test split."""

    part_of: Ints
    """(N,) index into `PART_NAMES`, or `EXCLUDED`."""
    origin: str
    """How it was made, in words."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PublishedImages:
    """The labelled images of a published data set, in any order."""

    table: str
    """The file that names them, for messages."""
    folder: Path
    """Where `paths` start."""
    ids: Sequence[str]
    """(N,) unique."""
    paths: Sequence[str]
    """(V N,) of the files; with V views per image, the first views of all images come first."""
    labels: MultiHot
    """(N, C) multi-hot."""
    groups: Sequence[str]
    """(N,) group ids: images of one group are not divided, unless the data set does so."""
    split: Split | None
    """None where `Request.problems` says why there is none."""
    warnings: tuple[str, ...] = ()
    searched: tuple[Path, ...] = ()
    """Folders that hold nothing but images: where some are missing, files that no row names are reported as well."""
    objective: str | None = None
    """The metric of the data set's publication, where it is not the task's main metric."""
    unpack: str = "unpack the images there, names as published"
    """What to do where not a single image exists."""


@dataclass(frozen=True)
class Published:
    """A data set that users download themselves."""

    name: str
    task: Task
    classes: tuple[str, ...]
    grey: bool
    """Whether images are grey to the trainer, otherwise RGB. It is known, so that no image is opened to find out."""
    variants: tuple[str, ...]
    """Its addresses, `name` or `name:variant`."""
    read_images: Callable[[Request], PublishedImages | None]
    """Reads tables, labels and split; None where the problems leave no image to look for."""
    pattern: str | None = None
    """Regular expression of the variants, where those in `variants` are examples."""
    numbers: str = ""
    """What the numbers in such variants may be."""
    no_finding: str | None = None
    """The data set's name for an image with none of its classes."""

    def read(self, variant: str, root: Path, split_seed: int) -> Dataset:
        """Reads the tables and checks that the images exist, without opening them.

        Args:
            variant: what follows the colon in the data set's address; empty for the default.
            root: the folder as downloaded; it must exist.
            split_seed: seed of those splits that the data set does not give.

        Raises:
            UserError: with every problem with the variant and the folder.
        """
        problems = Problems()
        problems.collect(lambda: self.check_variant(variant))
        images = self.read_images(Request("" if problems else variant, root, split_seed, problems))
        if images is None:
            problems.raise_if_any()
        assert images is not None
        n_images, split = len(images.ids), images.split
        kept = range(n_images) if split is None else np.flatnonzero(split.part_of != EXCLUDED).tolist()
        order = sorted(kept, key=images.ids.__getitem__)
        paths = tuple(images.paths[row + start] for start in range(0, len(images.paths), n_images) for row in order)
        states = inspect_images(
            images.folder,
            paths,
            images.table,
            problems,
            all_missing=images.unpack,
            grey=self.grey,
            searched=images.searched,
        )
        if len(states) < len(paths):
            report_unnamed(images.searched, images.paths, problems)
        problems.raise_if_any()
        assert split is not None
        part_of, labels = split.part_of[order], images.labels[order]
        check_parts(part_of, labels, self.classes, images.table, problems, fill=AS_PUBLISHED, train=AS_PUBLISHED)
        problems.raise_if_any()
        ids, groups = (tuple(column[row] for row in order) for column in (images.ids, images.groups))
        return assemble(
            LabelledFiles(images.folder, ids, paths, labels, groups, states, self.grey),
            part_of,
            name=f"{self.name}:{variant}" if variant else self.name,
            task=self.task,
            classes=self.classes,
            split_origin=split.origin,
            warnings=(*images.warnings, *split.warnings),
            objective=images.objective,
            nothing=self.no_finding,
        )

    def check_variant(self, variant: str) -> None:
        """Raises `UserError` for a variant that the data set does not have."""
        known = [address.partition(":")[2] for address in self.variants]
        if variant not in known and not (self.pattern and re.fullmatch(self.pattern, variant)):
            what = f"{self.name!r} has no variant {variant!r}"
            fix = f"use one of {', '.join(self.variants)}" + (f", {self.numbers}" if self.numbers else "")
            raise UserError(Problem("--dataset", what, fix))


def one_hot(classes: npt.ArrayLike, n_classes: int) -> MultiHot:
    """(N, C) labels from (N,) class indices."""
    labels: MultiHot = np.eye(n_classes, dtype=np.uint8)[np.asarray(classes)]
    return labels


def split_by(kind: str, labels: MultiHot, groups: Sequence[str], seed: int, warnings: tuple[str, ...] = ()) -> Split:
    """7:1:2 by group; `kind` says what groups are, for people."""
    origin = f"{':'.join(map(str, SHARES))} by {kind}, seed {seed}"
    return Split(split_groups(labels, groups, seed), origin, warnings)


def split_rest(is_test: npt.NDArray[np.bool_], labels: MultiHot, groups: Sequence[str], seed: int) -> tuple[Ints, str]:
    """Divides the images outside a given test split 7:1 by group: `Split.part_of`, and the ratio in words."""
    shares = SHARES[:TEST]
    part_of = np.full(len(groups), TEST, np.int64)
    rest = np.flatnonzero(~is_test)
    part_of[rest] = split_groups(labels[rest], [groups[row] for row in rest.tolist()], seed, shares)
    return part_of, ":".join(map(str, shares))

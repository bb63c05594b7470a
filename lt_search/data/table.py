"""What a data set is: three separate parts, each with its labels, its groups and a way to its images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from trainers.task import Task

PartName = Literal["train", "val", "test"]
PART_NAMES: tuple[PartName, ...] = ("train", "val", "test")

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.int64] | npt.NDArray[np.int8]
"""(N, C) uint8 of 0 / 1 for multi-label, (N,) int64 class indices for multi-class.

Of further training images (`ExtraData`) only: (N, C) int8 of 0 / 1, or -1 for a class that nobody has looked for."""

FEW_IMAGES = 5
"""A class with fewer images than this in a part gets a warning: its scores there mean little."""

_SAMPLED_SIDES = 200


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about its image before it is decoded."""

    mode: str
    """Pillow's name of the pixel format, such as `L` or `RGB`."""
    width: int
    height: int


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message says why, without naming the image."""


class ImageSource(Protocol):
    """The images of one part, by index. Small and picklable; holds nothing of other parts."""

    def channels(self) -> int:
        """1 if all images of the *data set* are grey, else 3 for each view of an image; the same for all its parts."""

    def header(self, index: int) -> ImageHeader:
        """Mode and size of image `index`, without decoding it. Raises `UnreadableImageError`."""

    def decode(self, index: int, size: int) -> npt.NDArray[np.uint8]:
        """Image `index` as (channels, size, size) uint8. Raises `UnreadableImageError`."""

    def check(self, index: int) -> str | None:
        """Decodes image `index` in full; returns what is wrong with it, or None."""

    def pixels_key(self) -> str:
        """A key that differs whenever the decoded pixels may differ; labels and groups do not move it."""


@dataclass(frozen=True, eq=False)
class Part:
    """One side of the split. It holds nothing of the other sides, so a trial given a part cannot leak."""

    name: PartName
    ids: tuple[str, ...]
    """(N,) names of the images, unique in the data set, sorted."""
    labels: Labels
    """(N, C) or (N,), see `Labels`."""
    groups: tuple[str, ...]
    """(N,) what must stay together, such as the patient; unique per image where nothing is known."""
    source: ImageSource
    """The images, by the same index as `ids`."""
    fingerprint: str
    """Hash of names, labels, groups and file sizes of this part."""
    ties: tuple[tuple[str, ...], ...] = ()
    """(N,) all patients and groups that tie an image to others, where `groups` may name one of several; else empty."""

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.groups):
            raise ValueError(
                f"{self.name}: {len(self.ids)} ids, {len(self.labels)} labels and {len(self.groups)} groups; "
                "there must be one of each per image"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def counts(self, n_classes: int) -> npt.NDArray[np.int64]:
        """(n_classes,) images of each class."""
        if self.labels.ndim == 2:
            return np.asarray((self.labels > 0).sum(axis=0), np.int64)
        return np.bincount(self.labels, minlength=n_classes).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ExtraData:
    """Images of another data set that join training, see `lt_search.data.extra`."""

    name: str
    train: Part
    """Its training images, but for those left out; labels (N, C) int8 in the order of one's own classes."""
    of_images: int
    """Images of the other data set in all its parts."""
    unknown: tuple[str, ...]
    """Classes that it says nothing of."""
    left_out: tuple[str, ...]
    """Its own names that are none of the classes."""
    dropped: tuple[str, ...]
    """Sentences on training images of its own that are left out."""

    def sentences(self) -> tuple[str, ...]:
        """What was added, what is unknown and what was left out, in words."""
        facts = [
            f"{len(self.train):,} images of its training part join training, of {self.of_images:,} in all",
            *self.dropped,
            f"unknown there: {', '.join(self.unknown)}" if self.unknown else "it has every class",
        ]
        if self.left_out:
            facts.append(f"its labels that are no class are left out: {', '.join(self.left_out)}")
        return tuple(f"extra data {self.name}: {fact}" for fact in facts)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled, split data set. The driver's: trials are handed its `train` and `val` parts only."""

    name: str
    task: Task
    classes: tuple[str, ...]
    """Names of the classes; their order is that of every label vector, logit and per-class score."""
    train: Part
    val: Part
    test: Part
    fingerprint: str
    """Hash of the task, the classes and of every image's name, labels, group and file size; not of the split."""
    split_hash: str
    """Hash of which image is in which part."""
    split_origin: str
    """How the split came about, in words for a person."""
    warnings: tuple[str, ...] = ()
    """What a person should know before trusting results on this data."""
    objective: str | None = None
    """The metric that the data set is published with, where it is not its task's main one; it goes before a space's."""
    nothing: str | None = None
    """What the data set calls an image with none of its classes, such as "No Finding", where that is none of them."""
    extra: tuple[ExtraData, ...] = ()
    """Further training data, which no count, split or fingerprint of the data set itself knows of."""

    def parts(self) -> Iterator[Part]:
        """Train, val and test, in this order."""
        yield from (self.train, self.val, self.test)

    def train_counts(self) -> npt.NDArray[np.int64]:
        """(C,) training images of each class."""
        return self.train.counts(len(self.classes))

    def typical_side(self) -> int:
        """Median of the shorter side, in pixels, over an evenly spread sample of training images.

        Raises:
            UnreadableImageError: an image changed on disk since the data set was read.
        """
        stride = max(1, len(self.train) // _SAMPLED_SIDES)
        headers = (self.train.source.header(index) for index in range(0, len(self.train), stride))
        return int(median(min(header.width, header.height) for header in headers))


def digest(items: Iterable[str | int | bytes]) -> str:
    """16 hex digits that depend on every item and on where one ends and the next begins."""
    state = hashlib.blake2b(digest_size=8)
    for item in items:
        data = item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogateescape")
        state.update(b"%d:" % len(data))
        state.update(data)
    return state.hexdigest()


def digest_rows(ids: Sequence[str], labels: Labels, groups: Sequence[str], contents: Sequence[int | str]) -> str:
    """Fingerprint of images with their labels and groups, in the order given.

    Args:
        ids: (N,) names.
        labels: (N, C) or (N,).
        groups: (N,) group keys.
        contents: (N,) something that changes with an image's content, such as its file's size.
    """
    columns = (*ids, *groups, *contents, *labels.shape)
    return digest((*columns, np.ascontiguousarray(labels).astype("<i8").tobytes()))


def digest_split(members: Mapping[PartName, Iterable[str]]) -> str:
    """Hash of which image is in which part; the order of images within a part does not matter."""
    return digest(item for name in PART_NAMES for item in (name, *sorted(members[name])))


def scarcity_warnings(classes: Sequence[str], parts: Iterable[Part]) -> tuple[str, ...]:
    """A sentence for each part that has fewer than `FEW_IMAGES` images of some class."""
    found = []
    for part in parts:
        counts = part.counts(len(classes))
        scarce = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < FEW_IMAGES]
        if scarce:
            found.append(f"{part.name} has fewer than {FEW_IMAGES} images of: {', '.join(scarce)}")
    return tuple(found)

"""Types of a data set: three separate splits, each with labels, group ids and access to its images."""

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

For extra training images (`ExtraData`) only: (N, C) int8 of 0 / 1, or -1 for unknown."""

FEW_IMAGES = 5
"""A class with fewer images than this in a split gets a warning: its scores there mean little."""

_SAMPLED_SIDES = 200


@dataclass(frozen=True)
class ImageHeader:
    """Pixel format and size of an image, read without decoding it."""

    mode: str
    """Pillow's name of the pixel format, such as `L` or `RGB`."""
    width: int
    height: int


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message says why, without naming the image."""


class ImageSource(Protocol):
    """The images of one split, by index. Small and picklable; holds nothing of other splits."""

    def channels(self) -> int:
        """1 if all images of the *data set* are grey, otherwise 3 per view of an image; the same for all its splits."""

    def header(self, index: int) -> ImageHeader:
        """Mode and size of image `index`, without decoding it. Raises `UnreadableImageError`."""

    def decode(self, index: int, size: int) -> npt.NDArray[np.uint8]:
        """Image `index` as (channels, size, size) uint8. Raises `UnreadableImageError`."""

    def check(self, index: int) -> str | None:
        """Decodes image `index` in full; returns why it cannot be decoded, or None."""

    def pixels_key(self) -> str:
        """A key that differs whenever the decoded pixels may differ; it does not depend on labels and groups."""


@dataclass(frozen=True, eq=False)
class Part:
    """One split: training, validation or test. It holds nothing of the others, so that nothing leaks into a trial."""

    name: PartName
    ids: tuple[str, ...]
    """(N,) names of the images, unique in the data set, sorted."""
    labels: Labels
    """(N, C) or (N,), see `Labels`."""
    groups: tuple[str, ...]
    """(N,) group ids, such as the patient: no split divides a group. Unique per image where nothing is known."""
    source: ImageSource
    """The images, by the same index as `ids`."""
    fingerprint: str
    """Hash of names, labels, groups and file sizes of this split."""
    ties: tuple[tuple[str, ...], ...] = ()
    """(N,) all keys that tie an image to others, where `groups` may name one of several; otherwise empty."""

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
    """Images of another data set that are added to training, see `lt_search.data.extra`."""

    name: str
    train: Part
    """Its training images without those dropped; labels (N, C) int8 in the order of the classes of the data set."""
    of_images: int
    """Images in all splits of the other data set."""
    unknown: tuple[str, ...]
    """Classes that it has no labels of."""
    left_out: tuple[str, ...]
    """Its labels that match no class."""
    dropped: tuple[str, ...]
    """Sentences on those of its training images that are dropped."""

    def sentences(self) -> tuple[str, ...]:
        """What was added, what is unknown and what was dropped, in words."""
        facts = [
            f"{len(self.train):,} images of its training split are added to training, of {self.of_images:,} in all",
            *self.dropped,
            f"unknown there: {', '.join(self.unknown)}" if self.unknown else "it has every class",
        ]
        if self.left_out:
            facts.append(f"labels that match no class are dropped: {', '.join(self.left_out)}")
        return tuple(f"extra data {self.name}: {fact}" for fact in facts)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled, split data set. Only the driver has it: trials are given `train` and `val` alone."""

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
    """Hash of which image is in which split."""
    split_origin: str
    """How the split was made, in words."""
    warnings: tuple[str, ...] = ()
    """For people, about what limits results on this data."""
    objective: str | None = None
    """The metric of the data set's publication, where it is not the task's main metric; it overrides a space's."""
    nothing: str | None = None
    """The data set's name for an image with none of its classes, such as "No Finding", where that is not a class."""
    extra: tuple[ExtraData, ...] = ()
    """Extra training data; no count, split or fingerprint of the data set includes it."""

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
        contents: (N,) values that change with an image's content, such as the size of its file.
    """
    columns = (*ids, *groups, *contents, *labels.shape)
    return digest((*columns, np.ascontiguousarray(labels).astype("<i8").tobytes()))


def digest_split(members: Mapping[PartName, Iterable[str]]) -> str:
    """Hash of which image is in which split; the order of images within a split does not matter."""
    return digest(item for name in PART_NAMES for item in (name, *sorted(members[name])))


def scarcity_warnings(classes: Sequence[str], parts: Iterable[Part]) -> tuple[str, ...]:
    """A warning for each split that has fewer than `FEW_IMAGES` images of some class."""
    found = []
    for part in parts:
        counts = part.counts(len(classes))
        scarce = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < FEW_IMAGES]
        if scarce:
            found.append(f"{part.name} has fewer than {FEW_IMAGES} images of: {', '.join(scarce)}")
    return tuple(found)

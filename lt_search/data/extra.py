"""Extra training data: images of other data sets, with their labels in the columns of this data set's classes.

As Hong et al. (arXiv 2308.08853) add ChestX-ray14 and CheXpert to CXR-LT. The rules:

- Only the training split of the other set is added, and only to training: validation and test stay unchanged, and so
  do the counts by which classes are head, medium or tail.
- Labels are matched by name (`label_alignment`). A class that the other set does not have is unknown in its images;
  labels that match no class are dropped and reported. If it has a name for an image with none of its classes, such as
  "No Finding", and that is one of the classes, such images have it.
- No patient leaks from evaluation into training: images whose patient or group has the name of one in the validation
  or test split are dropped, whether a table calls it patient or group. Two hospitals may both have a patient 17: losing
  a few images is the smaller harm. Files that the data set already has are dropped as well, whatever their name.
- Grey and RGB images are converted to the channels of the data set's own images.

`ExtraData.sentences` reports what was added and what was dropped.
"""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lt_search.data.csv_cells import listing
from lt_search.data.file_source import FileImages
from lt_search.data.groups import people_of
from lt_search.data.image_files import to_planes
from lt_search.data.label_alignment import align_labels, plain
from lt_search.data.registry import PUBLISHED, load_dataset, split_root
from lt_search.data.table import Dataset, ExtraData, ImageHeader, ImageSource, Labels, Part, digest
from lt_search.errors import Problem, Problems, UserError
from trainers.task import Task

OPTION = "--extra-data"

UNKNOWN = -1
"""In the labels of extra training images: unknown whether the image has the class."""

_RGB = 3


def add_extra_data(dataset: Dataset, texts: Sequence[str], split_seed: int = 0) -> Dataset:
    """The data set with extra training data in `Dataset.extra`, otherwise unchanged.

    Args:
        dataset: the data set that is searched on.
        texts: name and root of each other set, see `lt_search.data.registry.split_root`.
        split_seed: as of `load_dataset`.

    Raises:
        UserError: with every problem with any of them.
    """
    if texts and dataset.task is not Task.MULTI_LABEL:
        what = f"needs multi-label data: the class of an image of {dataset.name} cannot be partly unknown"
        raise UserError(Problem(OPTION, what, "leave the option out, or use multi-label data"))
    problems = Problems()
    found: list[ExtraData] = []
    for text in texts:
        if texts.count(text) > 1:
            problems.add(f"{OPTION} {text}", "is given twice", "keep one of the two")
            continue
        extra = problems.collect(lambda text=text: _read(text, dataset, found, split_seed))  # type: ignore[misc]
        if extra is not None:
            found.append(extra)
    problems.raise_if_any()
    return replace(dataset, extra=tuple(found))


@dataclass(frozen=True)
class ChosenImages:
    """Some images of a source, in grey or RGB as asked: the `ImageSource` of extra training images."""

    source: ImageSource
    chosen: tuple[int, ...]
    n_channels: int
    """1 or 3 if the source has 1 or 3, otherwise as many as the source."""

    def channels(self) -> int:
        """As asked."""
        return self.n_channels

    def header(self, index: int) -> ImageHeader:
        """As of the source."""
        return self.source.header(self.chosen[index])

    def decode(self, index: int, size: int) -> npt.NDArray[np.uint8]:
        """(channels, size, size) uint8: grey repeated, or RGB weighted by Pillow's luma (ITU-R 601-2)."""
        planes = self.source.decode(self.chosen[index], size)
        if len(planes) == self.n_channels:
            return planes
        if self.n_channels == _RGB:
            return np.repeat(planes, _RGB, axis=0)
        return to_planes(Image.fromarray(planes.transpose(1, 2, 0)).convert("L"))

    def check(self, index: int) -> str | None:
        """As of the source."""
        return self.source.check(self.chosen[index])

    def pixels_key(self) -> str:
        """Hash of the source's key, the choice and the channels."""
        return digest((self.source.pixels_key(), self.n_channels, *self.chosen))


def _read(text: str, dataset: Dataset, earlier: Sequence[ExtraData], split_seed: int) -> ExtraData:
    """One set of extra training data.

    Raises:
        UserError: with every problem with it.
    """
    place = f"{OPTION} {text}"
    other = _load(text, split_seed)
    channels = _channels(dataset, other, place)
    labels, unknown, left_out = _aligned(other, dataset.classes, place)
    part = other.train
    held_out = set().union(*people_of(dataset.val), *people_of(dataset.test))
    scored = {index for index, people in enumerate(people_of(part)) if people & held_out}
    there = [*dataset.parts(), *(extra.train for extra in earlier)]
    copies = set(_copies(part, there)) - scored
    chosen = tuple(index for index in range(len(part)) if index not in scored | copies)
    dropped = []
    if scored:
        people = people_of(part)
        names = sorted(set().union(*(people[index] & held_out for index in scored)))
        dropped.append(
            f"{len(scored)} of its images are dropped: val or test of {dataset.name} has their patients or groups, "
            f"by name ({listing(names)})"
        )
    if copies:
        named = listing([part.ids[index] for index in sorted(copies)])
        dropped.append(f"{len(copies)} of its images are dropped: the data already has them ({named})")
    if not chosen:
        fix = "leave the option out, or rename its patients if they are other people"
        raise UserError(Problem(place, f"none of its images can be added: {'; '.join(dropped)}", fix))
    as_it_is = len(chosen) == len(part) and part.source.channels() == channels
    source = part.source if as_it_is else ChosenImages(part.source, chosen, channels)
    ids, groups = (tuple(column[index] for index in chosen) for column in (part.ids, part.groups))
    ties = tuple(part.ties[index] for index in chosen) if part.ties else ()
    labels = labels[list(chosen)]
    fingerprint = digest((part.fingerprint, channels, *dataset.classes, *ids, labels.tobytes()))
    return ExtraData(
        name=other.name,
        train=Part("train", ids, labels, groups, source, fingerprint, ties),
        of_images=sum(map(len, other.parts())),
        unknown=unknown,
        left_out=left_out,
        dropped=tuple(dropped),
    )


def _load(text: str, split_seed: int) -> Dataset:
    """The other set as its reader gives it; problems name this option instead of those of the data set."""
    name, root = split_root(text)
    place = f"{OPTION} {text}"
    if root is None and name.partition(":")[0] in PUBLISHED:
        raise UserError(Problem(place, f"{name} is not bundled", f"say where it was unpacked: {OPTION} {name}=DIR"))
    try:
        return load_dataset(name, Path(root) if root else None, split_seed, training_only=True)
    except UserError as error:
        raise UserError(
            *(
                Problem(
                    place if problem.place in {"--dataset", "--data-root"} else f"{OPTION}: {problem.place}",
                    problem.what,
                    problem.fix.replace("--data-root", f"{OPTION} {name}=DIR").replace("--dataset", OPTION),
                )
                for problem in error.problems
            )
        ) from error


def _channels(dataset: Dataset, other: Dataset, place: str) -> int:
    """Channels of the data set's images, which those of the other one can be converted to."""
    own, others = dataset.train.source.channels(), other.train.source.channels()
    if own != others and max(own, others) > _RGB:
        views = [f"{count // _RGB} views" if count > _RGB else "one view" for count in (own, others)]
        what = f"an image of {dataset.name} is {views[0]}, one of {other.name} is {views[1]}"
        raise UserError(Problem(place, what, "add data with as many views, or leave the option out"))
    return own


def _aligned(
    other: Dataset, classes: Sequence[str], place: str
) -> tuple[npt.NDArray[np.int8], tuple[str, ...], tuple[str, ...]]:
    """Labels (N, C) of its training images, classes that it does not label, and its labels that match no class.

    Raises:
        UserError: none of its names is one of the classes, or two are the same one.
    """
    labels, names = _multi_hot(other.train.labels, len(other.classes)), list(other.classes)
    if other.nothing is not None and plain(other.nothing) in map(plain, classes):
        labels = np.column_stack([labels, labels.max(axis=1) == 0])
        names.append(other.nothing)
    try:
        found = align_labels(labels, names, classes)
    except ValueError as error:
        fix = "rename its labels, which are matched by name; case, underscores and spaces do not matter"
        raise UserError(Problem(place, str(error), fix)) from error
    aligned = found.labels.nan_to_num(nan=UNKNOWN).numpy().astype(np.int8)
    return aligned, found.unknown, found.unmapped


def _multi_hot(labels: Labels, n_classes: int) -> npt.NDArray[np.int8]:
    """(N, K) 0 / 1, also from one label per image."""
    return labels.astype(np.int8) if labels.ndim == 2 else np.eye(n_classes, dtype=np.int8)[labels]


def _copies(part: Part, others: Sequence[Part]) -> Iterator[int]:
    """The images of a split that others have as well: files of the same size and content."""
    if not isinstance(part.source, FileImages):
        return
    sizes = set(part.source.sizes)
    files: defaultdict[int, list[Path]] = defaultdict(list)
    for other in others:
        source = other.source.source if isinstance(other.source, ChosenImages) else other.source
        for size, path in source.files() if isinstance(source, FileImages) else ():
            if size in sizes:
                files[size].append(path)
    start_of = cache(_start)  # differs for most files of one size, so that few are read in full

    def is_there(size: int, path: Path) -> bool:
        return any(
            start_of(other) == start_of(path) and filecmp.cmp(path, other, shallow=False)
            for other in files.get(size, ())
        )

    for index in range(len(part)):
        if any(map(is_there, part.source.sizes_of(index), part.source.paths(index))):
            yield index


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)

"""Summary of a data set and of its undecodable images, as `lt-search data check` prints it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lt_search.data.csv_cells import LISTED
from lt_search.data.table import PART_NAMES, Dataset, ExtraData, ImageHeader, Part, PartName, UnreadableImageError
from lt_search.data.workers import progress_bar, usable_cores
from lt_search.metrics.class_groups import ClassGroups, class_groups
from lt_search.metrics.evaluate import metrics_for
from trainers.task import Task

RGB = 3
"""Channels of one colour view."""


@dataclass(frozen=True)
class PartDescription:
    """Counts of one split."""

    images: int
    groups: int
    """Different patients or groups."""
    unlabelled: int
    """Images without any label; 0 for multi-class."""
    counts: tuple[int | None, ...]
    """(C,) images of each class; None where it is unknown."""


@dataclass(frozen=True)
class Description:
    """Summary of a data set after every image was decoded."""

    name: str
    task: Task
    classes: tuple[str, ...]
    fingerprint: str
    split_hash: str
    split_origin: str
    channels: int
    parts: Mapping[PartName, PartDescription]
    class_groups: ClassGroups
    """Head, medium and tail classes, by training images."""
    modes: Mapping[str, int]
    """Files of each pixel format, as Pillow names it."""
    sizes: Mapping[tuple[int, int], int]
    """Images of each (width, height)."""
    unreadable: tuple[str, ...]
    """Images that cannot be decoded, each with its split and the reason."""
    warnings: tuple[str, ...]
    extra: Mapping[str, PartDescription] = field(default_factory=dict)
    """Counts of each set of extra training data, by name; None for classes that it has no labels of."""
    extra_sentences: tuple[str, ...] = ()
    """On what extra training data adds and what was dropped."""
    objective: str | None = None
    """The metric of the data set's publication, where it is not the task's main metric."""

    @property
    def sound(self) -> bool:
        """Whether every image can be decoded."""
        return not self.unreadable

    def render(self) -> str:
        """The description as text, for a terminal or a log."""
        names = [metric.name for metric in metrics_for(self.task)]
        main = self.objective or names[0]
        others = ", ".join(name for name in names if name != main)
        chosen = "of any search, unless --metric says otherwise" if self.objective else "unless a space says otherwise"
        lines = [
            f"{self.name}: {self.task}, {sum(part.images for part in self.parts.values())} images, "
            f"{len(self.classes)} classes",
            f"fingerprint {self.fingerprint}, split {self.split_hash} ({self.split_origin})",
            f"images: {self._sizes()}; {_counted(self.modes)}; {self._pixels()} to a trainer",
            f"class order: {', '.join(self.classes)}",
            f"objective: {main} {chosen}; also scored: {others}",
            "",
            *self._table(),
        ]
        if self.extra_sentences:
            lines += ["", *self.extra_sentences, "head, medium and tail go by the data set's own images"]
        for title, items in (("warnings", self.warnings), ("cannot be decoded", self.unreadable)):
            if items:
                lines += ["", f"{title} ({len(items)}):", *(f"  {item}" for item in items[:LISTED])]
                lines += [f"  and {len(items) - LISTED} more"] if len(items) > LISTED else []
        return "\n".join(lines)

    def _pixels(self) -> str:
        if self.channels > RGB:
            return f"{self.channels // RGB} RGB views an image"
        return "RGB" if self.channels == RGB else "grey"

    def _sizes(self) -> str:
        if not self.sizes:
            return "no size known"
        if len(self.sizes) == 1:
            ((width, height),) = self.sizes
            return f"all {width} x {height}"
        widths, heights = zip(*self.sizes, strict=True)
        return f"{len(self.sizes)} sizes, {min(widths)}-{max(widths)} wide and {min(heights)}-{max(heights)} high"

    def _table(self) -> list[str]:
        """Rows of counts per part: the classes from head to tail, then images and groups."""
        group_of = {index: name for name, indices in self.class_groups.items() for index in indices}
        parts = [*self.parts.values(), *self.extra.values()]
        rows = [["class", "", *self.parts, *self.extra]]
        for index in sorted(group_of, key=list(group_of).index):
            rows.append([self.classes[index], group_of[index], *(_shown(part.counts[index]) for part in parts)])
        if any(part.unlabelled for part in parts):
            rows.append(["(no label)", "", *(str(part.unlabelled) for part in parts)])
        rows.append(["images", "", *(str(part.images) for part in parts)])
        rows.append(["patients or groups", "", *(str(part.groups) for part in parts)])
        return _aligned(rows)


def describe(dataset: Dataset, *, workers: int | None = None, progress: bool = False) -> Description:
    """Decodes every image of all splits and of extra training data.

    Formats and sizes are those of the data set alone.

    Args:
        dataset: the data set.
        workers: decoding threads; None for one per core that this process may use.
        progress: show a progress bar, where standard error is a terminal.
    """
    modes: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable: list[str] = []
    extra = _by_name(dataset.extra)
    looks: list[tuple[Part, str, int]] = [
        (part, part.name, index) for part in dataset.parts() for index in range(len(part))
    ]
    looks += [(one.train, name, index) for name, one in extra.items() for index in range(len(one.train))]
    with ThreadPoolExecutor(workers or usable_cores()) as pool, progress_bar(progress) as bar:
        found = bar.track(pool.map(_look, looks), total=len(looks), description="decoding images")
        for (part, name, index), header in zip(looks, found, strict=True):
            if not isinstance(header, ImageHeader):
                unreadable.append(f"{name}: {part.ids[index]} ({header})")
            elif name not in extra:
                modes[header.mode] += 1
                sizes[header.width, header.height] += 1
    return Description(
        name=dataset.name,
        task=dataset.task,
        classes=dataset.classes,
        fingerprint=dataset.fingerprint,
        split_hash=dataset.split_hash,
        split_origin=dataset.split_origin,
        channels=dataset.train.source.channels(),
        parts={part.name: _describe_part(part, len(dataset.classes)) for part in dataset.parts()},
        class_groups=class_groups(dataset.train_counts().tolist()),
        modes=dict(modes),
        sizes=dict(sizes),
        unreadable=tuple(unreadable),
        warnings=dataset.warnings,
        extra={name: _describe_extra(one, dataset.classes) for name, one in extra.items()},
        extra_sentences=tuple(sentence for one in dataset.extra for sentence in one.sentences()),
        objective=dataset.objective,
    )


def _by_name(extra: Sequence[ExtraData]) -> dict[str, ExtraData]:
    """Extra training data by a name that is unique and not that of a split."""
    names = Counter(one.name for one in extra)
    named = {}
    for number, one in enumerate(extra, 1):
        unique = names[one.name] == 1 and one.name not in PART_NAMES
        named[one.name if unique else f"{one.name} (extra {number})"] = one
    return named


def _look(where: tuple[Part, str, int]) -> ImageHeader | str:
    """The header of an image, or why it cannot be decoded."""
    part, _, index = where
    try:
        header = part.source.header(index)
    except UnreadableImageError as error:
        return str(error)
    return part.source.check(index) or header


def _describe_part(part: Part, n_classes: int) -> PartDescription:
    unlabelled = int((part.labels.sum(axis=1) == 0).sum()) if part.labels.ndim == 2 else 0
    counts = tuple(int(count) for count in part.counts(n_classes))
    return PartDescription(len(part), len(set(part.groups)), unlabelled, counts)


def _describe_extra(extra: ExtraData, classes: Sequence[str]) -> PartDescription:
    part = extra.train
    none = int((part.labels.max(axis=1) <= 0).sum())
    counted = zip(classes, part.counts(len(classes)), strict=True)
    counts = tuple(None if name in extra.unknown else int(count) for name, count in counted)
    return PartDescription(len(part), len(set(part.groups)), none, counts)


def _shown(count: int | None) -> str:
    return "?" if count is None else str(count)


def _counted(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items(), key=lambda item: -item[1])) or "none"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines; the first two columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]

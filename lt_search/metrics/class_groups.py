"""Head, medium and tail classes, by their number of training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassGroups:
    """The classes of each group as class indices, most frequent first."""

    head: tuple[int, ...]
    medium: tuple[int, ...]
    """Empty where there are only two classes."""
    tail: tuple[int, ...]

    @property
    def n_classes(self) -> int:
        """The number of classes in all groups together."""
        return len(self.head) + len(self.medium) + len(self.tail)

    def items(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and class indices of each group, from head to tail."""
        yield "head", self.head
        yield "medium", self.medium
        yield "tail", self.tail

    def describe(self, classes: Sequence[str]) -> str:
        """One sentence that names the classes of every group.

        Args:
            classes: the names of all classes, in class order.
        """
        if len(classes) != self.n_classes:
            raise ValueError(f"{len(classes)} names for {self.n_classes} classes")
        parts = (
            f"{name}: {', '.join(classes[index] for index in indices) or 'none'}" for name, indices in self.items()
        )
        return f"Classes by training images, most frequent first: {'; '.join(parts)}."


def class_groups(train_counts: Sequence[int]) -> ClassGroups:
    """Divides the classes into thirds by rank of their training count.

    Ranks rather than fixed counts or shares, so that every group has classes on small and large data alike.
    Head and tail hold round(C / 3) classes each and medium holds the rest: 1 + 0 + 1 of two classes, 1 + 1 + 1
    of three, 5 + 4 + 5 of fourteen. Of two classes with the same count, the earlier one ranks higher.

    Args:
        train_counts: (C,) training images of each class, in class order.

    Raises:
        ValueError: with fewer than two classes.
    """
    n_classes = len(train_counts)
    if n_classes < 2:
        raise ValueError(f"class groups need at least two classes, not {n_classes}")
    ranked = sorted(range(n_classes), key=lambda index: -train_counts[index])
    third = (n_classes + 1) // 3  # round(C / 3); C / 3 never ends in .5
    return ClassGroups(
        head=tuple(ranked[:third]),
        medium=tuple(ranked[third : n_classes - third]),
        tail=tuple(ranked[n_classes - third :]),
    )

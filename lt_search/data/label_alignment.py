"""Alignment of another data set's labels with this one's classes; classes without labels are unknown, not absent.

Hong et al. (arXiv 2308.08853) add ChestX-ray14 and CheXpert, whose labels are some of theirs, and treat missing
ones as absent; a trainer may also mask them in its loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIASES = {"effusion": "pleural effusion"}
"""Two names of one finding: ChestX-ray14 has the first, CXR-LT and CheXpert the second. See `plain`."""


def plain(name: str) -> str:
    """A name without differences of spelling: case, underscores and repeated spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


@dataclass(frozen=True)
class AlignedLabels:
    """Labels in the columns of other classes."""

    labels: Tensor
    """(N, C) float32: 1 present, 0 absent, NaN unknown."""
    unmapped: tuple[str, ...]
    """Labels of the other data set that match no class; their columns are dropped."""
    unknown: tuple[str, ...]
    """Classes that the other data set has no labels of."""


def align_labels(
    labels: npt.ArrayLike, names: Sequence[str], classes: Sequence[str], aliases: Mapping[str, str] = ALIASES
) -> AlignedLabels:
    """Puts labels (N, K) of the columns `names` into those of `classes` (C).

    A label matches a class of the same spelling, see `plain`, or by `aliases`, in either direction. Values below 0
    (CheXpert's uncertain ones) and NaN (its blanks, where the reader leaves them) are unknown.

    Raises:
        ValueError: if no label matches a class, or two match the same one; the message lists them.
    """
    renamed = {plain(name): plain(other) for name, other in aliases.items()}
    exact = {plain(name): column for column, name in enumerate(classes)}
    column_of = {renamed.get(name, name): column for name, column in exact.items()} | exact
    columns: dict[int, list[int]] = {}
    for source, name in enumerate(names):
        own = plain(name)
        target = column_of.get(own, column_of.get(renamed.get(own, own)))
        if target is not None:
            columns.setdefault(target, []).append(source)
    twice = [" and ".join(names[source] for source in sources) for sources in columns.values() if len(sources) > 1]
    if twice:
        raise ValueError(f"several labels are the same class: {'; '.join(twice)}")
    if not columns:
        raise ValueError(f"none of the labels {', '.join(names)} is one of the classes {', '.join(classes)}")
    values = np.asarray(labels, np.float32)
    aligned = np.full((len(values), len(classes)), np.nan, np.float32)
    for target, (source,) in columns.items():
        aligned[:, target] = np.where(values[:, source] < 0, np.nan, values[:, source])
    mapped = {source for (source,) in columns.values()}
    return AlignedLabels(
        torch.from_numpy(aligned),
        unmapped=tuple(name for source, name in enumerate(names) if source not in mapped),
        unknown=tuple(name for column, name in enumerate(classes) if column not in columns),
    )

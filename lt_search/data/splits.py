"""Stratified group splits into training, validation and test images, 7:1:2 by default."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lt_search.data.table import PART_NAMES

SHARES = (7, 1, 2)
"""Shares of training, validation and test images."""

TRAIN, VAL, TEST = range(len(PART_NAMES))

_UNASSIGNED = -1
_SMALLEST_GAIN = 1e-9
_WORK = 200_000_000
"""Bounds the time spent on improving the split of a large data set, where the initial one is already good."""

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def split_groups(
    labels: npt.NDArray[np.uint8], groups: Sequence[str], seed: int, shares: Sequence[int] = SHARES
) -> Counts:
    """Assigns every image to a split, stratified by label, without dividing groups.

    Groups are dealt in random order by iterative stratification (Sechidis et al. 2011), the class with the fewest
    images left first. Then single groups are moved, the best move first, as long as that lets more classes
    reach every part or else brings the numbers closer to the shares, where the distance is the sum over parts and
    classes of (number - wanted)^2 / wanted. Images without a label count as one more class, and so do all images
    together.

    Guarantees: no group is divided; every class has a training image; a class that has at least three groups to
    itself reaches every split. Where groups hold several classes, classes reach validation and test unless every
    single move of a group prevents it. The result depends on the images, their labels and groups and the seed, not
    on the order of the rows.

    Args:
        labels: (N, C) multi-hot.
        groups: (N,) group ids.
        seed: of the order in which groups are assigned.
        shares: of each split, training first; 7 and 1 divide into training and validation only.

    Returns:
        (N,) index into `shares`, and so into `PART_NAMES`. Validation or test may be empty where there are too few
        groups.
    """
    names, group_of = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    unlabelled = labels.sum(axis=1) == 0
    columns = np.column_stack([labels, unlabelled, np.ones(len(labels))]).astype(np.int64)
    counts = np.zeros((len(names), columns.shape[1]), np.int64)
    np.add.at(counts, group_of, columns)

    order = np.random.default_rng(seed).permutation(len(names))
    part = np.empty(len(names), np.int64)
    part[order] = _improve(_deal(counts[order], shares), counts[order], labels.shape[1], shares)
    return part[group_of]


def _wanted(counts: Counts, shares: Sequence[int]) -> Floats:
    """(parts, columns) images that each part should have."""
    return np.outer(np.array(shares) / sum(shares), counts.sum(axis=0))


def _deal(counts: Counts, shares: Sequence[int]) -> Counts:
    """(G,) a part for each group, by iterative stratification in the order given.

    Args:
        counts: (G, columns) images of each group in each column; the last column is all images.
    """
    part = np.full(len(counts), _UNASSIGNED, np.int64)
    lacking = _wanted(counts, shares)
    while (free := np.flatnonzero(part == _UNASSIGNED)).size:
        left = counts[free].sum(axis=0)
        label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        for group in free[counts[free, label] > 0]:
            chosen = np.lexsort((-lacking[:, -1], -lacking[:, label]))[0]
            part[group] = chosen
            lacking[chosen] -= counts[group]
    return part


def _improve(part: Counts, counts: Counts, n_classes: int, shares: Sequence[int]) -> Counts:
    """(G,) the parts after moving single groups as long as that helps."""
    part = part.copy()
    wanted = np.maximum(_wanted(counts, shares), 1e-12)
    has = counts[:, :n_classes] > 0
    # A class missing from training outweighs whatever its move may cost validation and test.
    weight = np.ones(len(shares), np.int64)
    weight[TRAIN] = 2 * n_classes + 1

    moves = 3 * n_classes + _WORK // (len(shares) * counts.size)
    groups = np.arange(len(part))
    for _ in range(moves):
        now = np.stack([counts[part == index].sum(axis=0) for index in range(len(shares))]).astype(float)
        holders = np.stack([has[part == index].sum(axis=0) for index in range(len(shares))])

        # Leaving: the group may have been the last of a class in its part.
        lost = (has & (holders[part] == 1)).sum(axis=1) * weight[part]
        left = _change(now[part], -counts, wanted[part])
        # Arriving, for each part.
        gained = (has @ (holders == 0).T) * weight
        joined = np.stack([_change(now[index], counts, wanted[index]) for index in range(len(shares))], axis=1)

        missing = lost[:, None] - gained
        distance = left[:, None] + joined
        missing[groups, part] = 0
        distance[groups, part] = 0
        best = int(missing.min())
        distance[missing > best] = np.inf
        group, target = np.unravel_index(distance.argmin(), distance.shape)
        if best == 0 and distance[group, target] > -_SMALLEST_GAIN:
            break
        part[group] = target
    return part


def _change(now: Floats, added: Counts, wanted: Floats) -> Floats:
    """(G,) how the distance changes when `added` (G, columns) is added to numbers `now`, group by group."""
    return np.asarray((added * (2 * (now - wanted) + added) / wanted).sum(axis=1), np.float64)

"""ISIC-2019-LT: images and splits of the two long-tailed versions of ISIC 2019.

Both draw single images of each class, as published, whatever lesion they show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lt_search.data.readers.published import EXCLUDED, Ints
from lt_search.data.splits import TEST, TRAIN, VAL

BALANCED_HEAD = 5000
"""Training images of the most frequent class in the version with balanced validation and test splits."""
BALANCED_VAL, BALANCED_TEST = 50, 100
"""Validation and test images of every class there."""

PUBLISHED_SEED = 42
"""Of the published code."""


def long_tailed_counts(counts: Sequence[int], factor: float) -> tuple[int, ...]:
    """Images of each class that are kept, in all splits together, by the code of MRC-VFC and LMD.

    Of classes by falling count n_0 .. n_{K-1}, ceil(n_i u^i) are kept, u = (n_0 / (n_{K-1} F))^{1/(K-1)}.

    Args:
        counts: (K,) images of each class, in any order, none of them 0.
        factor: F, how many times more images the first class then has than the last one.

    Returns:
        (K,) in the order of `counts`; more than there are where `factor` is below the imbalance of `counts`.
    """
    ranked = _by_falling_count(counts)
    ratio = (counts[ranked[0]] / (counts[ranked[-1]] * factor)) ** (1 / (len(counts) - 1))
    kept = {index: math.ceil(counts[index] * ratio**rank) for rank, index in enumerate(ranked)}
    return tuple(kept[index] for index in range(len(counts)))


def part_counts(kept: int) -> tuple[int, int, int]:
    """Training, validation and test images of a class with `kept` images: 70:10:20, held-out ones rounded up."""
    held_out = math.ceil(0.3 * kept)
    val = math.ceil(held_out / 3)
    return kept - held_out, val, held_out - val


def balanced_counts(counts: Sequence[int], factor: float) -> tuple[int, ...]:
    """Training images of each class in the version of Ju et al. with balanced validation and test splits.

    5000 u^i, rounded up, of the i-th most frequent class, u = (1 / F)^{1/(K-1)}. The power is a floating-point
    number, so that the last count is 51 for F = 100 and 11 for F = 500, as in the published lists.

    Args:
        counts: (K,) images of each class, in any order; only their order by size matters.
        factor: F.

    Returns:
        (K,) in the order of `counts`.
    """
    ratio = (1 / factor) ** (1 / (len(counts) - 1))
    kept = {index: math.ceil(BALANCED_HEAD * ratio**rank) for rank, index in enumerate(_by_falling_count(counts))}
    return tuple(kept[index] for index in range(len(counts)))


def divide_long_tailed(classes: Ints, kept: Sequence[int], seed: int) -> Ints:
    """Draws the images to keep of each class and divides them 70:10:20.

    For the published table, its order of rows and seed 42 these are the images of the published code, which samples
    with pandas and divides with scikit-learn; the draws below are what those do.

    Args:
        classes: (N,) class of each image, in the order of the table.
        kept: (K,) images of each class to keep, not more than there are.
        seed: of the draws.

    Returns:
        (N,) index into `PART_NAMES`, or `EXCLUDED`.
    """
    part_of = np.full(len(classes), EXCLUDED, np.int64)
    for index, number in enumerate(kept):
        members = np.flatnonzero(classes == index)
        drawn = members[np.random.RandomState(seed).permutation(len(members))[:number]]
        n_train, n_val, _ = part_counts(number)
        shuffled = drawn[np.random.RandomState(seed).permutation(number)]
        held_out, train = shuffled[: number - n_train], shuffled[number - n_train :]
        again = held_out[np.random.RandomState(seed).permutation(len(held_out))]
        part_of[train] = TRAIN
        part_of[again[:n_val]] = VAL
        part_of[again[n_val:]] = TEST
    return part_of


def divide_balanced(classes: Ints, n_train: Sequence[int], seed: int) -> Ints:
    """Draws for each class its validation, its test and its training images.

    Args:
        classes: (N,) class of each image.
        n_train: (K,) training images of each class; there must be 150 more of each.
        seed: of the draws; the validation and test images do not depend on `n_train`.

    Returns:
        (N,) index into `PART_NAMES`, or `EXCLUDED`.
    """
    part_of = np.full(len(classes), EXCLUDED, np.int64)
    generator = np.random.default_rng(seed)
    for index, number in enumerate(n_train):
        drawn = generator.permutation(np.flatnonzero(classes == index))
        for part, size in ((VAL, BALANCED_VAL), (TEST, BALANCED_TEST), (TRAIN, number)):
            part_of[drawn[:size]] = part
            drawn = drawn[size:]
    return part_of


def _by_falling_count(counts: Sequence[int]) -> list[int]:
    return sorted(range(len(counts)), key=lambda index: -counts[index])

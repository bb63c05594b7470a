"""Variance components: between stage-1 configurations, and within them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lt_search.samplers.history import Index
from lt_search.samplers.parzen import Array

PRIOR_TRIALS = 4.0
"""Weight, in observations, of the prior, which gives each stage half of the variance."""


@dataclass(frozen=True)
class Variances:
    """The components of variance of a one-way random-effects model."""

    between: float
    within: float


def median_over_groups(values: Array, rows: Index) -> float:
    """The (lower) median of values (n,) in which each stage-1 configuration has the same weight.

    Otherwise a configuration that was reused more often than all others would be compared with itself.
    """
    order = np.argsort(values, kind="stable")
    weight = (1 / np.bincount(rows)[rows[order]]).cumsum()
    return float(values[order][np.searchsorted(weight, weight[-1] / 2 - 1e-9)])


def stage_variances(values: Array, rows: Index) -> Variances:
    """Estimates the components by analysis of variance, unequal group sizes allowed (Searle et al. 1992, ch. 3.6).

    Args:
        values: of the trials (n,), finite; n >= 1.
        rows: number (n,) of each trial's stage-1 configuration.
    """
    count = np.bincount(rows)
    count, total = count[count > 0], np.bincount(rows, values)[count > 0]
    n, groups = len(values), len(count)
    square_between = float((total**2 / count).sum() - total.sum() ** 2 / n)
    square_within = float(np.square(values).sum() - (total**2 / count).sum())
    prior = PRIOR_TRIALS * float(values.var()) / 2
    within = (max(square_within, 0.0) + prior) / (n - groups + PRIOR_TRIALS)
    size = n - float((count**2).sum()) / n  # times 1 / (groups - 1): the mean size of a group
    between = max((square_between - (groups - 1) * within) / size, 0.0) if groups > 1 else 0.0
    return Variances(((groups - 1) * between + prior) / (groups - 1 + PRIOR_TRIALS), within)

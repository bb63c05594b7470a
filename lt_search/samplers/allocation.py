"""Whether a trial is to train a stage 1 of its own, or which earlier one it repeats."""

from __future__ import annotations

import math

import numpy as np

from lt_search.samplers.effects import Variances
from lt_search.samplers.history import History

GENEROSITY = 2.5
"""Stage 2s that a stage 1 gets, over the number that would estimate a mean best.

The best of several stage 2s is what counts, and what is learned from one serves all stage 1s."""

GAIN = 1.0
"""Standard deviations by which one more stage 2 may raise the best of n, times n.

For independent normal values it is 0.6 for all n of interest; proposals that learn gain more."""


def stage2s_per_stage1(variances: Variances, ratio: float) -> float:
    """How many stage 2s a stage 1 deserves: sqrt(cost ratio x variance within / variance between stage 1s).

    The best number of elements per cluster in two-stage sampling (Cochran 1977, Sampling Techniques, section 10.6),
    times `GENEROSITY`; few where stage 2 changes little. At most as many as cost half of a new trial, for noise makes
    stage 2 seem to matter.
    """
    most = (ratio + 1) / 2
    if variances.between > 0:
        most = min(most, GENEROSITY * math.sqrt(ratio * variances.within / variances.between))
    return max(most, 1.0)


def stage1s_to_repeat(history: History, within: float, most_running: float = math.inf) -> list[int]:
    """The stage 1s that are there, the one first that promises the best value from one more stage 2.

    The promise is its best value, and `GAIN` standard deviations over the number of stage 2s it has had, running ones
    included. A stage 1 whose stage 2s were all pruned or failed has no value; it counts as a middling one.

    Args:
        history: the trials, at least one with a value.
        within: variance of the values of one stage 1.
        most_running: a stage 1 of which this many trials are running is left out.
    """
    stage1 = history.stage1
    there = stage1.any(history.repeatable) & (stage1.count(history.running) < most_running)
    best = history.best(stage1)
    best = np.where(np.isfinite(best), best, np.median(history.values[history.known]))
    had = stage1.count(history.tries_stage2)
    promise = best + GAIN * math.sqrt(within) / np.maximum(had, 1)
    order = np.argsort(-promise, kind="stable")
    return [int(stage1) for stage1 in order if there[stage1]]

"""Allocation of trials: how many stage-2 configurations a stage-1 configuration gets, and which one is reused next."""

from __future__ import annotations

import math

import numpy as np

from lt_search.samplers.effects import Variances
from lt_search.samplers.history import History

TRIALS_FACTOR = 2.5
"""Trials per stage-1 configuration, over the number that estimates a mean with the least variance.

The best of several stage-2 configurations counts instead of their mean, and what is learned from one serves all
stage-1 configurations."""

GAIN = 1.0
"""Standard deviations by which one more stage-2 configuration may raise the best of n, times n.

For independent normal values it is 0.6 for all n of interest; proposals that learn gain more."""


def trials_per_stage1(variances: Variances, ratio: float) -> float:
    """Trials per stage-1 configuration: sqrt(cost ratio x variance within / variance between the configurations).

    The best number of elements per cluster in two-stage sampling (Cochran 1977, Sampling Techniques, section 10.6),
    times `TRIALS_FACTOR`; few where stage 2 changes little. At most as many as cost half of a new trial, because noise
    makes stage 2 seem to matter.
    """
    most = (ratio + 1) / 2
    if variances.between > 0:
        most = min(most, TRIALS_FACTOR * math.sqrt(ratio * variances.within / variances.between))
    return max(most, 1.0)


def stage1_to_reuse(history: History, within: float, most_running: float = math.inf) -> list[int]:
    """Stage-1 configurations that can be reused, by the value that another stage 2 on each may reach, best first.

    That value is the best so far plus `GAIN` standard deviations over the number of stage-2 configurations tried,
    running ones included. A configuration whose trials were all pruned or failed counts as the median trial.

    Args:
        history: the trials, at least one with a value.
        within: variance of the values of one stage-1 configuration.
        most_running: a configuration with this many running trials is left out.
    """
    stage1 = history.stage1
    reusable = stage1.any(history.repeatable) & (stage1.count(history.running) < most_running)
    best = history.best(stage1)
    best = np.where(np.isfinite(best), best, np.median(history.values[history.known]))
    tried = stage1.count(history.tries_stage2)
    reachable = best + GAIN * math.sqrt(within) / np.maximum(tried, 1)
    order = np.argsort(-reachable, kind="stable")
    return [int(number) for number in order if reusable[number]]

"""Whether a trial is to train a stage 1 of its own, or to repeat which earlier one."""

from __future__ import annotations

import math

import numpy as np

from lt_search.stage_effects import Effects
from lt_search.stage_history import Bools, History

GENEROSITY = 1.5
"""Stage 2s a stage 1 gets, over the number that estimates a mean best.

The best of several stage 2s is what counts, not their mean, and what is learned from one serves all stage 1s."""

MOST = 4.0
"""Stage 2s a stage 1 gets at most, over the cost ratio: at least a fifth of the cost still explores stage 1s."""

BELOW_MEDIAN = math.sqrt(2 / math.pi)
"""Mean distance of a normal's lower half from its mean, in standard deviations."""


def stage2s_per_stage1(effects: Effects, ratio: float) -> float:
    """How many stage 2s a stage 1 deserves: sqrt(cost ratio x variance within / variance between stage 1s).

    Best number of elements per cluster in two-stage sampling (Cochran 1977, Sampling Techniques, Eq 10.26), times
    `GENEROSITY`. One where stage 2 changes nothing, many where stage 1 changes nothing.
    """
    if effects.row_variance <= 0:
        return 1.0
    number = GENEROSITY * math.sqrt(ratio * effects.within_variance / effects.row_variance)
    return min(max(number, 1.0), max(MOST * ratio, 1.0))


def stage1_to_repeat(history: History, known: Bools, values: np.ndarray, effects: Effects) -> int | None:
    """The stage 1 whose next stage 2 has the best chance to be the best of all; None if none is there.

    The value to come is normal about the stage 1's mean, which is shrunk towards that of all; few stage 2s leave it
    uncertain, and so have a chance. A stage 1 that has only pruned stage 2s is known to be in the lower half.

    Args:
        history: the trials.
        known: the trials with a value (n,).
        values: theirs.
        effects: the fit to these.
    """
    there = history.stage1.any(history.has_stage1)
    if not there.any():
        return None
    count, asked = history.stage1.count(known), history.stage1.count(np.ones(len(known), dtype=bool))
    between, within = effects.row_variance, effects.within_variance
    total = np.bincount(history.stage1.of_trial[known], values, len(history.stage1))
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    middle = float(np.nanmean(mean))
    expected = np.where(
        count > 0,
        middle + count * between / (count * between + within + 1e-300) * (np.nan_to_num(mean) - middle),
        middle - BELOW_MEDIAN * math.sqrt(between),
    )
    spread = np.sqrt(within + between * within / (asked * between + within + 1e-300) + 1e-300)
    return int(np.argmax(np.where(there, (expected - values.max()) / spread, -np.inf)))

"""Draws both stages' values of a trial from the history of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lt_search.samplers.allocation import stage1s_to_repeat, stage2s_per_stage1
from lt_search.samplers.costs import predict_ratio
from lt_search.samplers.effects import median_over_groups, stage_variances
from lt_search.samplers.history import Axes, Bools, History, Index
from lt_search.samplers.parzen import MISSING, Array, ParzenMixture, ramp

CANDIDATES = 24
"""Points drawn from the density of the good ones per proposal, of which the best goes; as Optuna's TPE."""

TPE_ATTEMPTS, RANDOM_ATTEMPTS = 4, 32
"""Draws of a point that was not tried yet; only a small space, of choices and integers, can run out of them."""

RECENT = 20
"""New stage 1s by which the two ways to draw one are judged."""

SEPARATE_PRIOR = 2
"""Wins that the separate way starts with, before any is seen: stages seldom interact strongly."""


class Proposer:
    """One proposal from one history.

    - A new stage 1 is drawn in one of two ways. *Separately*: from a TPE over the distinct stage 1s, each with the best
      of its values, and with the stage 2 that did best on stage 1s near it, so that stage 1s are compared on the
      same stage 2. *Jointly*: from plain TPE over both stages, each stage 1 with its best stage 2. Where the stages
      interact, repeating a stage 2 on another stage 1 gives poor values; which way did better lately decides.
    - A further stage 2 is drawn from a TPE over the distinct stage 2s of all stage 1s, conditioned on the
      stage 1 it goes to: in a mixture of product kernels this weighs each kernel by its density at that stage 1.

    Args:
        history: the other trials.
        axes1: the stage-1 parameters.
        axes2: the stage-2 parameters.
        startup_trials: ended stage 1s, or trials, before TPE begins for a stage; random values before.
        rng: the source of all draws.
    """

    def __init__(
        self, history: History, axes1: Axes, axes2: Axes, startup_trials: int, rng: np.random.Generator
    ) -> None:
        self._history = history
        self._axes1, self._axes2 = axes1, axes2
        self._startup_trials = startup_trials
        self._rng = rng
        self._stage1s = history.x1[history.stage1.first]

    def draw(self, given: Mapping[str, Any], cost_ratio: float | None) -> dict[str, Any]:
        """All parameters' values, beside some that are given; given stage-1 values decide which stage 1 it is.

        `cost_ratio` is a stage 1's cost over a stage 2's; None: predicted.
        """
        values = self._new_joint() if self._is_joint() else self._new_stage1()
        x1 = _place(self._axes1, {**values, **given})
        is_given = bool(given.keys() & self._axes1.space.keys())
        given2 = {name: value for name, value in given.items() if name in self._axes2.space}
        exhausted = self._exhausted(given2)
        for repeated in self._stage1s_at(x1) if is_given else self._stage1s_to_repeat(x1, cost_ratio):
            if exhausted[repeated]:
                continue
            stage2 = self._stage2_for(repeated, given2)
            if stage2 is not None:
                return {**self._values_of(self._axes1, int(self._history.stage1.first[repeated])), **stage2}
        return {**self._first_stage2(x1), **values}

    def _values_of(self, axes: Axes, trial: int) -> dict[str, Any]:
        return {name: value for name, value in self._history.drawn[trial].items() if name in axes.space}

    def _begun(self, ended: int) -> bool:
        return ended >= self._startup_trials and bool(self._history.known.any())

    def _stage1_begun(self) -> bool:
        return self._begun(int(self._history.stage1.any(self._history.ended).sum()))

    def _stage2_begun(self) -> bool:
        return self._begun(int(self._history.ended.sum()))

    def _stage1s_at(self, place: Array) -> list[int]:
        """The stage 1 at a place (d1,), if it is there."""
        return [number for number, known in enumerate(self._stage1s) if _among(place, known[None])]

    # --- new or repeated -------------------------------------------------------------------------------------------

    def _stage1s_to_repeat(self, new: Array, cost_ratio: float | None) -> list[int]:
        """Numbers of distinct stage 1s, best first; none if a new one is due, whose proposed place is given (d1,)."""
        history = self._history
        values = history.values[history.known]
        is_new = not _among(new, self._stage1s)  # a small space may have no new one
        if len(values) < 2:
            return [] if is_new or not len(values) else stage1s_to_repeat(history, 0.0)
        # How much each stage matters is asked among the better half: the worse one says nothing about the best.
        rows = history.stage1.of_trial[history.known]
        variances = stage_variances(np.maximum(values, median_over_groups(values, rows)), rows)
        ratio = cost_ratio or predict_ratio(history.x1, history.costs, self._axes1.sizes, new)
        asked = len(history.values) - int(history.stage1.first[-1])  # for the newest stage 1 and since
        deserved = stage2s_per_stage1(variances, ratio)
        enough = asked >= int(deserved + self._rng.random())
        if enough and is_new:
            return []
        # What is asked for at once cannot learn from each other: no stage 1 gets more than it deserves.
        return stage1s_to_repeat(history, variances.within, int(deserved) if is_new else math.inf)

    def _is_joint(self) -> bool:
        """Whether a new stage 1 is drawn jointly: Thompson sampling between the two ways, by their first values.

        A way wins where a value is above the median of the recent ones. A stage 1 whose first stage 2 an earlier trial
        had was drawn separately.
        """
        history = self._history
        if not self._stage1_begun():
            return False
        first = history.stage1.first[self._startup_trials :]
        first = first[history.known[first]][-RECENT:]
        separate = history.stage2.first[history.stage2.of_trial[first]] < first
        values = history.values[first]
        won = values > (np.median(values) if len(values) else 0)
        wins = [SEPARATE_PRIOR + int(won[separate].sum()), int(won[~separate].sum())]
        losses = [int((~won[separate]).sum()), int((~won[~separate]).sum())]
        chances = [self._rng.beta(1 + win, 1 + loss) for win, loss in zip(wins, losses, strict=True)]
        return chances[1] > chances[0]

    # --- stage 1 ---------------------------------------------------------------------------------------------------

    def _new_stage1(self) -> dict[str, Any]:
        if not self._stage1_begun():
            return self._untried(lambda: _uniform(self._rng, self._axes1.sizes), self._axes1, self._stage1s)
        best = self._history.best(self._history.stage1)
        good = _best(best, np.isfinite(best))
        weights = np.ones(len(best))
        draw = _tpe(self._rng, self._stage1s, self._axes1.sizes, good, weights)
        return self._untried(draw, self._axes1, self._stage1s)

    def _new_joint(self) -> dict[str, Any]:
        """Values of both stages."""
        history = self._history
        one = _one_of_each(history.stage1.of_trial, -history.rank)
        points = np.concatenate([history.x1, history.x2], axis=1)[one]
        good = _best(history.rank[one], history.known[one])
        axes = Axes({**self._axes1.space, **self._axes2.space})
        tried = np.where(np.arange(points.shape[1]) < len(self._axes1.space), points, np.nan)
        return self._untried(_tpe(self._rng, points, axes.sizes, good, np.ones(len(one))), axes, tried)

    # --- stage 2 ---------------------------------------------------------------------------------------------------

    def _first_stage2(self, x1: Array) -> dict[str, Any]:
        """The stage 2 that did best, an advantage counting the less the further away the stage 1 where it was seen."""
        history = self._history
        if not self._stage2_begun():
            return self._axes2.decode(_uniform(self._rng, self._axes2.sizes))
        nearness = self._nearness(x1)
        advantage = history.values - np.nanmedian(history.values)
        worth = np.where(history.known, np.nan_to_num(advantage) * np.exp(nearness - nearness.max()), -np.inf)
        return self._values_of(self._axes2, int(np.argmax(worth)))

    def _exhausted(self, given: Mapping[str, Any]) -> Bools:
        """Which distinct stage 1s have met every stage 2 that has some given values.

        No configuration is proposed twice, whatever became of it. A stage 2 counts for as many as there are values of
        the parameters that are inactive in it.
        """
        history = self._history
        place = _place(self._axes2, given)
        counts = _same(place, history.x2)
        shares = np.where(np.isnan(history.x2) | ~np.isnan(place), 1.0, self._axes2.shares).prod(axis=1) * counts
        pairs = history.stage1.of_trial * len(history.stage2) + history.stage2.of_trial
        once = np.unique(pairs, return_index=True)[1]
        met = np.bincount(history.stage1.of_trial[once], shares[once], minlength=len(history.stage1))
        return np.asarray(met > 1 - 1e-9)

    def _stage2_for(self, stage1: int, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Values that this stage 1 has not met; None if a few draws found none, as where few choices are left."""
        values = self._drawn_for(stage1, given)
        had = self._history.stage1.of_trial == stage1
        return None if _among(_place(self._axes2, values), self._history.x2[had]) else values

    def _drawn_for(self, stage1: int, given: Mapping[str, Any]) -> dict[str, Any]:
        history = self._history
        sizes = self._axes2.sizes
        tried = history.x2[history.stage1.of_trial == stage1]
        if not self._stage2_begun():
            return self._untried(lambda: _uniform(self._rng, sizes), self._axes2, tried, given)
        nearness = self._nearness(self._stage1s[stage1])
        # A distinct stage 2 is one observation: of its trials, the one on the nearest stage 1.
        one = _one_of_each(history.stage2.of_trial, ~history.tries_stage2, ~history.known, -nearness)
        one = one[history.tries_stage2[one]]
        points, weights = history.x2[one], np.exp(nearness[one])
        good = _best(history.rank[one], history.known[one])
        return self._untried(_tpe(self._rng, points, sizes, good, weights), self._axes2, tried, given)

    def _nearness(self, x1: Array) -> Array:
        """Log density (n,) at a stage 1 of the kernel of each trial's stage 1."""
        mixture = ParzenMixture(self._stage1s, self._axes1.sizes, np.ones(len(self._stage1s)))
        nearness: Array = mixture.log_kernels(x1[None])[0][self._history.stage1.of_trial]
        return nearness

    def _untried(
        self, draw: Callable[[], Array], axes: Axes, tried: Array, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Values, beside given ones, that no point (n, d) of `tried` has (NaN: any), if a few draws find some."""
        values: dict[str, Any] = {}
        for attempt in range(TPE_ATTEMPTS + RANDOM_ATTEMPTS):
            drawn = axes.decode(draw() if attempt < TPE_ATTEMPTS else _uniform(self._rng, axes.sizes))
            values = {**drawn, **(given or {})}
            if not _among(_place(axes, values), tried):
                break
        return values


def _among(place: Array, points: Array) -> bool:
    """Whether a place (d,) is one of some points (n, d)."""
    return bool(_same(place, points).any())


def _same(place: Array, points: Array) -> Bools:
    """Which points (n, d) are at a place (d,); in both, NaN stands for any value.

    A point of NaN alone, of a trial that got to no value of the stage, is no place.
    """
    unknown = np.isnan(points)
    same = np.isclose(place, points, rtol=0, atol=1e-12) | unknown | np.isnan(place)
    return np.asarray(same.all(axis=1) & ~unknown.all(axis=1))


def _place(axes: Axes, values: Mapping[str, Any]) -> Array:
    places: Array = axes.encode({name: [values.get(name, MISSING)] for name in axes.space})[0]
    return places


def _one_of_each(numbers: Index, *by: Any) -> Index:
    """For each number, in order, the trial that comes first by some keys, the first of them most important."""
    order = np.lexsort((*by[::-1], numbers))
    return np.asarray(order[np.unique(numbers[order], return_index=True)[1]])


def _best(values: Array, known: Bools) -> Bools:
    """The best tenth of the observations with a value, at most 25; as Optuna's TPE."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[: min(math.ceil(0.1 * int(known.sum())), 25)]] = True
    return chosen


def _uniform(rng: np.random.Generator, sizes: Index) -> Array:
    draws = rng.random(len(sizes))
    return np.where(sizes > 0, np.floor(draws * sizes), draws)


def _tpe(rng: np.random.Generator, points: Array, sizes: Index, good: Bools, weights: Array) -> Callable[[], Array]:
    """Draws: of some points from the good ones' density, the one with the highest ratio to the others' density.

    Parameters that are always active together are drawn together, from the observations that have them.
    """
    known = ~np.isnan(points)
    together: dict[bytes, list[int]] = {}
    for axis in range(points.shape[1]):
        together.setdefault(known[:, axis].tobytes(), []).append(axis)

    def density_of(axes: list[int], some: Bools) -> ParzenMixture:
        chosen = some & known[:, axes[0]]
        return ParzenMixture(points[chosen][:, axes], sizes[axes], weights[chosen] * ramp(int(chosen.sum())))

    densities = [(axes, density_of(axes, good), density_of(axes, ~good)) for axes in together.values()]

    def draw() -> Array:
        place = np.empty(points.shape[1])
        for axes, density, other in densities:
            candidates = density.sample(rng, CANDIDATES)
            place[axes] = candidates[np.argmax(density.log_density(candidates) - other.log_density(candidates))]
        return place

    return draw

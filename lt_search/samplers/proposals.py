"""Proposal of a trial's values in both stages, from the history of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lt_search.samplers.allocation import stage1_to_reuse, trials_per_stage1
from lt_search.samplers.costs import predict_ratio
from lt_search.samplers.effects import median_over_groups, stage_variances
from lt_search.samplers.history import Axes, Bools, History, Index
from lt_search.samplers.parzen import MISSING, Array, ParzenMixture, ramp

CANDIDATES = 24
"""Candidates per proposal, drawn from the density of the best observations; as in Optuna's TPE."""

TPE_ATTEMPTS, RANDOM_ATTEMPTS = 4, 32
"""Attempts to draw a point that was not tried yet; only a small, discrete space can run out of them."""

RECENT = 20
"""New stage-1 configurations on which the separate and the joint proposals are compared."""

SEPARATE_PRIOR = 2
"""Prior wins of separate proposals: stages seldom interact strongly."""


class Proposer:
    """One proposal from one history.

    - A new stage-1 configuration is drawn in one of two ways. *Separately*: from a TPE over the distinct stage-1
      configurations, each with the best of its values, and combined with the stage-2 values that did best nearby, so
      that stage-1 configurations are compared on the same stage 2. *Jointly*: from plain TPE over both stages, each
      stage-1 configuration with its best stage-2 values. Where the stages interact, stage-2 values do not transfer;
      Thompson sampling on recent results chooses between the two.
    - Further stage-2 values for a stage-1 configuration are drawn from a TPE over the distinct stage-2 configurations
      of all trials, conditioned on that stage 1: in a mixture of product kernels this weighs each kernel by its
      density there.

    Args:
        history: the other trials.
        axes1: the stage-1 parameters.
        axes2: the stage-2 parameters.
        startup_trials: ended stage-1 configurations, or trials, before TPE begins for a stage; random values before.
        rng: the source of all draws.
    """

    def __init__(
        self, history: History, axes1: Axes, axes2: Axes, startup_trials: int, rng: np.random.Generator
    ) -> None:
        self._history = history
        self._axes1, self._axes2 = axes1, axes2
        self._startup_trials = startup_trials
        self._rng = rng
        self._stage1 = history.x1[history.stage1.first]

    def draw(self, given: Mapping[str, Any], cost_ratio: float | None) -> dict[str, Any]:
        """Values of all parameters but the `given` ones; given stage-1 values determine the stage-1 configuration.

        `cost_ratio` is the cost of stage 1 over that of stage 2; None: predicted.
        """
        values = self._new_joint() if self._is_joint() else self._new_stage1()
        x1 = _coordinates(self._axes1, {**values, **given})
        is_given = bool(given.keys() & self._axes1.space.keys())
        given2 = {name: value for name, value in given.items() if name in self._axes2.space}
        exhausted = self._exhausted(given2)
        for reused in self._stage1_at(x1) if is_given else self._stage1_to_reuse(x1, cost_ratio):
            if exhausted[reused]:
                continue
            stage2 = self._stage2_for(reused, given2)
            if stage2 is not None:
                return {**self._values_of(self._axes1, int(self._history.stage1.first[reused])), **stage2}
        return {**self._first_stage2(x1), **values}

    def _values_of(self, axes: Axes, trial: int) -> dict[str, Any]:
        return {name: value for name, value in self._history.params[trial].items() if name in axes.space}

    def _begun(self, ended: int) -> bool:
        return ended >= self._startup_trials and bool(self._history.known.any())

    def _stage1_begun(self) -> bool:
        return self._begun(int(self._history.stage1.any(self._history.ended).sum()))

    def _stage2_begun(self) -> bool:
        return self._begun(int(self._history.ended.sum()))

    def _stage1_at(self, x1: Array) -> list[int]:
        """The stage-1 configuration at coordinates (d1,), if any trial has it."""
        return [number for number, known in enumerate(self._stage1) if _among(x1, known[None])]

    # --- new or reused ---------------------------------------------------------------------------------------------

    def _stage1_to_reuse(self, new: Array, cost_ratio: float | None) -> list[int]:
        """Stage-1 configurations to reuse, best first; none if the `new` one, coordinates (d1,), is to be tried."""
        history = self._history
        values = history.values[history.known]
        is_new = not _among(new, self._stage1)  # a small space may be exhausted
        if len(values) < 2:
            return [] if is_new or not len(values) else stage1_to_reuse(history, 0.0)
        # Variances are estimated on the better half: the worse one says nothing about the best.
        rows = history.stage1.of_trial[history.known]
        variances = stage_variances(np.maximum(values, median_over_groups(values, rows)), rows)
        ratio = cost_ratio or predict_ratio(history.x1, history.costs, self._axes1.sizes, new)
        since_newest = len(history.values) - int(history.stage1.first[-1])  # in trials, the newest included
        allotted = trials_per_stage1(variances, ratio)
        enough = since_newest >= int(allotted + self._rng.random())
        if enough and is_new:
            return []
        # Trials that run at once do not learn from each other, so none gets more of them than its allotment.
        return stage1_to_reuse(history, variances.within, int(allotted) if is_new else math.inf)

    def _is_joint(self) -> bool:
        """Whether a new stage-1 configuration is drawn jointly: Thompson sampling on the first values of recent ones.

        A value above the median of the recent ones is a win. A configuration whose first stage-2 values an earlier
        trial had was drawn separately.
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
            return self._untried(lambda: _uniform(self._rng, self._axes1.sizes), self._axes1, self._stage1)
        best = self._history.best(self._history.stage1)
        good = _best(best, np.isfinite(best))
        weights = np.ones(len(best))
        draw = _tpe(self._rng, self._stage1, self._axes1.sizes, good, weights)
        return self._untried(draw, self._axes1, self._stage1)

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
        """The stage-2 values that did best, their advantage over the median weighted by nearness of their stage 1."""
        history = self._history
        if not self._stage2_begun():
            return self._axes2.decode(_uniform(self._rng, self._axes2.sizes))
        nearness = self._nearness(x1)
        advantage = history.values - np.nanmedian(history.values)
        score = np.where(history.known, np.nan_to_num(advantage) * np.exp(nearness - nearness.max()), -np.inf)
        return self._values_of(self._axes2, int(np.argmax(score)))

    def _exhausted(self, given: Mapping[str, Any]) -> Bools:
        """Mask of the stage-1 configurations combined already with every stage-2 configuration of some given values.

        No configuration is proposed twice, whatever its outcome. One with inactive parameters counts for all of their
        values.
        """
        history = self._history
        x2 = _coordinates(self._axes2, given)
        counts = _same(x2, history.x2)
        shares = np.where(np.isnan(history.x2) | ~np.isnan(x2), 1.0, self._axes2.shares).prod(axis=1) * counts
        pairs = history.stage1.of_trial * len(history.stage2) + history.stage2.of_trial
        once = np.unique(pairs, return_index=True)[1]
        tried = np.bincount(history.stage1.of_trial[once], shares[once], minlength=len(history.stage1))
        return np.asarray(tried > 1 - 1e-9)

    def _stage2_for(self, stage1: int, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Values not yet combined with this stage-1 configuration; None if a few draws found none."""
        values = self._drawn_for(stage1, given)
        tried = self._history.x2[self._history.stage1.of_trial == stage1]
        return None if _among(_coordinates(self._axes2, values), tried) else values

    def _drawn_for(self, stage1: int, given: Mapping[str, Any]) -> dict[str, Any]:
        history = self._history
        sizes = self._axes2.sizes
        tried = history.x2[history.stage1.of_trial == stage1]
        if not self._stage2_begun():
            return self._untried(lambda: _uniform(self._rng, sizes), self._axes2, tried, given)
        nearness = self._nearness(self._stage1[stage1])
        # A distinct stage-2 configuration is one observation: of its trials, the one on the nearest stage 1.
        one = _one_of_each(history.stage2.of_trial, ~history.tries_stage2, ~history.known, -nearness)
        one = one[history.tries_stage2[one]]
        points, weights = history.x2[one], np.exp(nearness[one])
        good = _best(history.rank[one], history.known[one])
        return self._untried(_tpe(self._rng, points, sizes, good, weights), self._axes2, tried, given)

    def _nearness(self, x1: Array) -> Array:
        """Log density (n,) of the kernel of each trial's stage-1 configuration at coordinates (d1,)."""
        mixture = ParzenMixture(self._stage1, self._axes1.sizes, np.ones(len(self._stage1)))
        nearness: Array = mixture.log_kernels(x1[None])[0][self._history.stage1.of_trial]
        return nearness

    def _untried(
        self, draw: Callable[[], Array], axes: Axes, tried: Array, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Values, with the `given` ones, that no point (n, d) of `tried` has (NaN: any), if a few draws find some."""
        values: dict[str, Any] = {}
        for attempt in range(TPE_ATTEMPTS + RANDOM_ATTEMPTS):
            drawn = axes.decode(draw() if attempt < TPE_ATTEMPTS else _uniform(self._rng, axes.sizes))
            values = {**drawn, **(given or {})}
            if not _among(_coordinates(axes, values), tried):
                break
        return values


def _among(x: Array, points: Array) -> bool:
    """Whether coordinates (d,) are those of one of some points (n, d)."""
    return bool(_same(x, points).any())


def _same(x: Array, points: Array) -> Bools:
    """Mask (n,) of the points (n, d) at coordinates (d,); in both, NaN stands for any value.

    A point of NaN alone, of a trial without any value of the stage, is at none.
    """
    unknown = np.isnan(points)
    same = np.isclose(x, points, rtol=0, atol=1e-12) | unknown | np.isnan(x)
    return np.asarray(same.all(axis=1) & ~unknown.all(axis=1))


def _coordinates(axes: Axes, values: Mapping[str, Any]) -> Array:
    x: Array = axes.encode({name: [values.get(name, MISSING)] for name in axes.space})[0]
    return x


def _one_of_each(numbers: Index, *by: Any) -> Index:
    """For each distinct number, in order, the trial that sorts first by some keys, the first key most important."""
    order = np.lexsort((*by[::-1], numbers))
    return np.asarray(order[np.unique(numbers[order], return_index=True)[1]])


def _best(values: Array, known: Bools) -> Bools:
    """Mask of the best tenth of the observations with a value, at most 25; as in Optuna's TPE."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[: min(math.ceil(0.1 * int(known.sum())), 25)]] = True
    return chosen


def _uniform(rng: np.random.Generator, sizes: Index) -> Array:
    draws = rng.random(len(sizes))
    return np.where(sizes > 0, np.floor(draws * sizes), draws)


def _tpe(rng: np.random.Generator, points: Array, sizes: Index, good: Bools, weights: Array) -> Callable[[], Array]:
    """A draw: of some candidates from the good observations' density, the one with the highest ratio to the others'.

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
        x = np.empty(points.shape[1])
        for axes, density, other in densities:
            candidates = density.sample(rng, CANDIDATES)
            x[axes] = candidates[np.argmax(density.log_density(candidates) - other.log_density(candidates))]
        return x

    return draw

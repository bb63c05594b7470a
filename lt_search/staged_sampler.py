"""Proposals for trials of two stages, of which the first can be used again by later trials."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lt_search.parzen import Array, ParzenMixture, ramp
from lt_search.plain_sampler import STARTUP_TRIALS, ReseededSampler
from lt_search.stage_costs import predict_ratio
from lt_search.stage_decision import stage1_to_repeat, stage2s_per_stage1
from lt_search.stage_effects import fit_effects
from lt_search.stage_history import PROPOSED, Axes, Bools, History, Index, read_proposal, write_proposal
from trainers.seeding import derive_seed

CANDIDATES = 24
"""Points drawn from the good ones' density per proposal, of which the best goes; as Optuna's TPE."""

ATTEMPTS = 8
"""Draws of a point that was not tried yet, which only a small space of choices and integers can run out of."""


class StagedSampler(BaseSampler):
    """TPE for trials of two stages: it knows what a stage costs, and that a stage 1 can be used again.

    A trial that has exactly the stage-1 values of an earlier one uses its stage 1 again and costs a stage 2 only.
    Several stage 2s are drawn for each stage 1, more for promising ones (`stage_decision`). Stage-1 proposals come
    from a TPE over distinct stage 1s, each with the best of its values. A new stage 1 first gets the best stage 2
    known, so that stage 1s are compared on the same one; further ones come from a TPE over the distinct stage 2s of
    all stage 1s, conditioned on the one they go to. With the share of interaction (`stage_effects`) both go from
    the stage 2s' common effects, which no condition changes, to plain joint TPE's values and full conditioning.

    Reusing prefixes of trials is from Hippo (Shin et al., VLDB 2022), weighing it by cost from EEIPU (Essofi et
    al., arXiv 2411.03731), TPE from Bergstra et al. (2011).

    Where one stage only is searched, it is `ReseededSampler`, plain TPE. Each proposal is a pure function of the seed,
    the trial's number and the study.

    Args:
        stage1: names of the stage-1 parameters; every other one belongs to stage 2.
        cost_ratio: a stage 1's cost over a stage 2's; None: predicted per configuration from the user attributes
            `STAGE1_COST` and `STAGE2_COST` of the trials.
        seed: the run's seed; None: a random one.
        startup_trials: ended stage 1s, or trials, before TPE begins for a stage; random ones before.

    Raises:
        ValueError: if `cost_ratio` is not a positive number, and, when used, if the study has several objectives.
    """

    def __init__(
        self,
        stage1: Sequence[str],
        *,
        cost_ratio: float | None = None,
        seed: int | None = None,
        startup_trials: int = STARTUP_TRIALS,
    ) -> None:
        if isinstance(stage1, str):
            raise ValueError(f"stage1 is the text {stage1!r}, and must be a list of names")  # noqa: TRY004
        if cost_ratio is not None and not (math.isfinite(cost_ratio) and cost_ratio > 0):
            raise ValueError(f"cost_ratio is {cost_ratio}, and must be a positive number")
        self._stage1 = frozenset(stage1)
        self._cost_ratio = cost_ratio
        self._seed = secrets.randbits(32) if seed is None else seed
        self._startup_trials = startup_trials
        self._plain = ReseededSampler(self._seed, startup_trials=startup_trials)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters that were seen, with their latest ranges."""
        if len(study.directions) > 1:
            raise ValueError("the study has several objectives, and a StagedSampler searches for one")
        space: dict[str, BaseDistribution] = {}
        for other in study.get_trials(deepcopy=False):
            space.update(other.distributions)
        space = {name: space[name] for name in sorted(space) if not space[name].single()}
        return space if self._has_both_stages(space) else self._plain.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draws every parameter of `search_space`; those that turn out inactive are not asked for."""
        if not self._has_both_stages(search_space):
            return self._plain.sample_relative(study, trial, search_space)
        if PROPOSED in trial.system_attrs:  # the driver was killed before it had suggested everything
            return read_proposal(trial.system_attrs[PROPOSED], search_space)
        given = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        axes1 = Axes({name: d for name, d in search_space.items() if name in self._stage1})
        axes2 = Axes({name: d for name, d in search_space.items() if name not in self._stage1})
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        trials = [t for t in study.get_trials(deepcopy=False, states=states) if t.number != trial.number]
        sign = -1 if study.direction == StudyDirection.MINIMIZE else 1
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", trial.number, "staged"))
        proposal = _Proposal(History.of(trials, sign, axes1, axes2), axes1, axes2, self._startup_trials, rng)
        values = {**proposal.draw(given, self._cost_ratio), **given}
        drawn = {name: value for name, value in values.items() if name in search_space}
        # Samplers have no public way to write this; Optuna's own write it so.
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSED, write_proposal(drawn, search_space))
        return drawn

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws a parameter that was never seen, or whose range has changed."""
        return self._plain.sample_independent(study, trial, param_name, param_distribution)

    def _has_both_stages(self, space: Mapping[str, BaseDistribution]) -> bool:
        return 0 < sum(name in self._stage1 for name in space) < len(space)


class _Proposal:
    """One proposal: the stages' values, drawn from a history."""

    def __init__(
        self, history: History, axes1: Axes, axes2: Axes, startup_trials: int, rng: np.random.Generator
    ) -> None:
        self._history = history
        self._axes1, self._axes2 = axes1, axes2
        self._startup_trials = startup_trials
        self._rng = rng
        self._known = ~np.isnan(history.values)
        self._values = history.values[self._known]

    def draw(self, given: Mapping[str, Any], cost_ratio: float | None) -> dict[str, Any]:
        """All parameters' values; a trial that is given stage-1 values repeats no other one's."""
        history = self._history
        values = self._new_stage1()
        x1 = self._place(self._axes1, {**values, **given})
        ratio = cost_ratio or predict_ratio(history.x1, history.costs, self._axes1.sizes, x1)
        repeated = None if any(name in given for name in self._axes1.space) else self._repeat(ratio)
        if repeated is not None:
            values = dict(history.stage1_values[repeated])
            x1 = history.x1[history.stage1.first[repeated]]
        return {**values, **self._stage2(x1, repeated)}

    def _place(self, axes: Axes, values: Mapping[str, Any]) -> Array:
        return axes.encode({name: [values.get(name)] for name in axes.space})[0]

    def _new_stage1(self) -> dict[str, Any]:
        stage1, sizes = self._history.stage1, self._axes1.sizes
        points = self._history.x1[stage1.first]
        best = np.full(len(stage1), -np.inf)
        np.maximum.at(best, stage1.of_trial[self._known], self._values)
        ended = int(stage1.any(self._history.ended).sum())
        good = _best(best, _good_count(int(np.isfinite(best).sum())))
        begun = ended >= self._startup_trials

        def draw() -> Array:
            if not begun:
                return _uniform(self._rng, sizes)
            return _tpe(self._rng, points, sizes, good, np.ones(len(points)))

        return self._untried(draw, self._axes1, points)

    def _untried(self, draw: Callable[[], Array], axes: Axes, tried: Array) -> dict[str, Any]:
        """Values that no point (n, d) of `tried` has, if a few draws find any; random ones after half of the draws."""
        values: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            place = draw() if attempt < ATTEMPTS / 2 else _uniform(self._rng, axes.sizes)
            values = axes.decode(place)
            same = np.isclose(self._place(axes, values), tried, rtol=0, atol=1e-12) | np.isnan(tried)
            if not same.all(axis=1).any():
                break
        return values

    def _repeat(self, ratio: float) -> int | None:
        """The stage 1 to repeat, None if a new one is due."""
        history = self._history
        if len(self._values) < 2:
            return None
        # How much each stage matters is asked among the better half: the worse one says nothing about the best.
        values = np.maximum(self._values, np.median(self._values))
        effects = self._effects(values)
        since_new = len(self._known) - int(history.stage1.first[-1])
        if since_new >= int(stage2s_per_stage1(effects, ratio) + self._rng.random()):
            return None
        return stage1_to_repeat(history, self._known, values, effects)

    def _effects(self, values: Array) -> Any:
        history = self._history
        return fit_effects(
            values,
            history.stage1.of_trial[self._known],
            history.stage2.of_trial[self._known],
            len(history.stage1),
            len(history.stage2),
        )

    def _stage2(self, x1: Array, repeated: int | None) -> dict[str, Any]:
        history, sizes = self._history, self._axes2.sizes
        tried = history.x2[history.stage1.of_trial == repeated] if repeated is not None else history.x2[:0]
        if len(self._values) == 0 or int(history.ended.sum()) < self._startup_trials:
            return self._untried(lambda: _uniform(self._rng, sizes), self._axes2, tried)
        interaction = self._effects(np.maximum(self._values, np.median(self._values))).interaction
        effects = self._effects(self._values)
        nearness = interaction * self._nearness(x1)
        advantage = np.full(len(self._known), -np.inf)
        rows = history.stage1.of_trial[self._known]
        advantage[self._known] = self._values - effects.mean - (1 - interaction) * effects.rows[rows]
        # A distinct stage 2 is one observation: the one whose stage 1 is the nearest.
        order = np.lexsort((-nearness, ~self._known, history.stage2.of_trial))
        one = order[np.unique(history.stage2.of_trial[order], return_index=True)[1]]
        if repeated is None:
            # An advantage counts the less the further away the stage 1 where it was seen.
            worth = np.where(self._known[one], advantage[one], 0) * np.exp(nearness[one] - nearness.max())
            worth[~self._known[one]] = -np.inf
            return self._axes2.decode(history.x2[one[np.argmax(worth)]])
        good = _best(advantage[one], _good_count(int(self._known[one].sum())))
        weights = np.exp(nearness[one] )
        return self._untried(
            lambda: _tpe(self._rng, history.x2[one], sizes, good, weights), self._axes2, tried
        )

    def _nearness(self, x1: Array) -> Array:
        """Log density (n,) at a stage 1 of the kernel of each trial's stage 1."""
        stage1 = self._history.stage1
        points = self._history.x1[stage1.first]
        mixture = ParzenMixture(points, self._axes1.sizes, np.ones(len(points)))
        return mixture.log_kernels(x1[None])[0][stage1.of_trial]


def _good_count(n: int) -> int:
    """How many of n observations are good ones; as Optuna's TPE."""
    return min(math.ceil(0.1 * n), 25)


def _best(values: Array, count: int) -> Bools:
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:count]] = True
    return chosen


def _uniform(rng: np.random.Generator, sizes: Index) -> Array:
    draws = rng.random(len(sizes))
    return np.where(sizes > 0, np.floor(draws * sizes), draws)


def _tpe(rng: np.random.Generator, points: Array, sizes: Index, good: Bools, weights: Array) -> Array:
    """The best of some points of the good ones' density, by its ratio to the others' density.

    Parameters that are always active together are drawn together, from the observations that have them.
    """
    known = ~np.isnan(points)
    together: dict[bytes, list[int]] = {}
    for axis in range(points.shape[1]):
        together.setdefault(known[:, axis].tobytes(), []).append(axis)
    place = np.empty(points.shape[1])
    for axes in together.values():
        densities = []
        for chosen in (good & known[:, axes[0]], ~good & known[:, axes[0]]):
            age = ramp(int(chosen.sum()))
            densities.append(ParzenMixture(points[chosen][:, axes], sizes[axes], weights[chosen] * age))
        candidates = densities[0].sample(rng, CANDIDATES)
        scores = densities[0].log_density(candidates) - densities[1].log_density(candidates)
        place[axes] = candidates[np.argmax(scores)]
    return place

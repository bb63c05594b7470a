"""Proposals for trials of two stages, of which the first can be used again by later trials."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lt_search.samplers.history import PROPOSED, Axes, History, read_proposal, write_proposal
from lt_search.samplers.proposals import Proposer
from lt_search.samplers.reseeded import STARTUP_TRIALS, ReseededSampler
from lt_search.samplers.seeds import derive_seed

SEEN_BY = 10
"""Complete trials after which a stage-1 name that none of them has is taken for a misspelt one."""


class NeverSeenWarning(UserWarning):
    """A stage-1 parameter that no trial has had so far. Its name may be misspelt, or its condition seldom holds."""


class StagedSampler(BaseSampler):
    """TPE for trials of two stages: it knows what a stage costs, and that a stage 1 can be used again.

    A trial that has exactly the stage-1 values of an earlier one uses its stage 1 again and costs a stage 2 only.
    Several stage 2s are drawn for each stage 1, more for promising ones (`stage_decision`), and proposed as in
    `stage_proposals`.

    Reusing prefixes of trials is from Hippo (Shin et al., VLDB 2022), weighing it by cost from EEIPU (Essofi et
    al., arXiv 2411.03731), TPE from Bergstra et al. (2011).

    A trial may carry the user attributes `STAGE1_COST` (its stage 1 was trained to the end) and `STOPPED_IN_STAGE1` (it
    was pruned there). Complete trials need neither; a pruned one with the former can have its stage 1 repeated. In a
    study without costs every pruned trial that was suggested stage-2 values is taken to have tried them, unless it
    carries the latter.

    Where one stage only is searched, it is `ReseededSampler`, plain TPE. Each proposal is a pure function of the seed,
    the trial's number and the study.

    Args:
        stage1: names of the stage-1 parameters; every other one belongs to stage 2.
        cost_ratio: a stage 1's cost over a stage 2's; None: predicted per configuration from the user attributes
            `STAGE1_COST` and `STAGE2_COST` of the trials; where they carry `REUSE_COST`, by it instead of the latter.
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
        trials = study.get_trials(deepcopy=False)
        for other in trials:
            space.update(other.distributions)
        self._warn_of_unknown(space, sum(other.state == TrialState.COMPLETE for other in trials))
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
        given = _accepted({**trial.system_attrs.get("fixed_params", {}), **trial.params}, search_space)
        axes1 = Axes({name: d for name, d in search_space.items() if name in self._stage1})
        axes2 = Axes({name: d for name, d in search_space.items() if name not in self._stage1})
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        trials = [t for t in study.get_trials(deepcopy=False, states=states) if t.number != trial.number]
        sign = -1 if study.direction == StudyDirection.MINIMIZE else 1
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", trial.number, "staged"))
        proposer = Proposer(History.of(trials, sign, axes1, axes2), axes1, axes2, self._startup_trials, rng)
        values = {**proposer.draw(given, self._cost_ratio), **given}
        # Samplers have no public way to write this; Optuna's own write it so.
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSED, write_proposal(values, search_space))
        return values

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws a parameter that was never seen, or whose range has changed."""
        return self._plain.sample_independent(study, trial, param_name, param_distribution)

    def _warn_of_unknown(self, space: Mapping[str, BaseDistribution], complete: int) -> None:
        unknown = self._stage1 - space.keys()
        if complete and unknown and unknown == self._stage1:
            names = ", ".join(sorted(unknown))
            warnings.warn(f"no trial has any stage-1 parameter ({names}): this is plain TPE", stacklevel=3)
        elif complete >= SEEN_BY and unknown:
            names = ", ".join(sorted(unknown))
            text = f"no trial has had the stage-1 parameter {names} yet: if a name is misspelt, it counts as stage 2's"
            warnings.warn(text, NeverSeenWarning, stacklevel=3)

    def _has_both_stages(self, space: Mapping[str, BaseDistribution]) -> bool:
        return 0 < sum(name in self._stage1 for name in space) < len(space)


def _accepted(given: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The given values that Optuna would take, those out of their range among them; an inactive one may be None."""
    accepted: dict[str, Any] = {}
    for name, distribution in space.items():
        if name in given:
            with suppress(ValueError):
                distribution.to_internal_repr(given[name])
                accepted[name] = given[name]
    return accepted

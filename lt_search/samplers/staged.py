"""TPE for trials of two stages, of which later trials can reuse the first."""

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

UNSEEN_AFTER = 10
"""Complete trials after which a stage-1 name that none of them has is reported as possibly misspelt."""


class UnseenParameterWarning(UserWarning):
    """No trial so far has a parameter named in `stage1`: the name may be misspelt, or its condition seldom holds."""


class StagedSampler(BaseSampler):
    """TPE for trials of two stages, aware of the stages' costs and of the reuse of stage-1 artefacts.

    A trial with exactly the stage-1 values of an earlier one reuses its stage-1 artefact and costs stage 2 only.
    Several stage-2 configurations are proposed for each stage-1 configuration, more for promising ones, see
    `samplers.allocation` and `samplers.proposals`.

    Reuse of common prefixes of trials is from Hippo (Shin et al., VLDB 2022), its weighting by cost from EEIPU (Essofi
    et al., arXiv 2411.03731), TPE from Bergstra et al. (2011).

    A trial may have the user attributes `STAGE1_COST` (its stage 1 was completed) and `STOPPED_IN_STAGE1` (it was
    pruned there). Complete trials need neither; a pruned trial's stage-1 values are proposed again only with the
    former. In a study without costs, stage-2 values of pruned trials count as tried, unless they have the latter.

    Where parameters of one stage only are searched, it equals `ReseededSampler`, plain TPE. Each proposal is a pure
    function of the seed, the trial's number and the study.

    Args:
        stage1: names of the stage-1 parameters; all others belong to stage 2.
        cost_ratio: cost of stage 1 over that of stage 2; None: predicted per configuration from the trials' user
            attributes `STAGE1_COST` and `REUSE_COST`, or `STAGE2_COST` where no trial has the latter.
        seed: the study's seed; None: a random one.
        startup_trials: ended stage-1 configurations, or trials, before TPE begins for a stage; random values before.
        warn_unseen: whether to warn of names in `stage1` that no trial has; off where the names are known to be right.

    Raises:
        ValueError: if `cost_ratio` is not a positive number, and, on use, if the study has several objectives.
    """

    def __init__(
        self,
        stage1: Sequence[str],
        *,
        cost_ratio: float | None = None,
        seed: int | None = None,
        startup_trials: int = STARTUP_TRIALS,
        warn_unseen: bool = True,
    ) -> None:
        if isinstance(stage1, str):
            raise ValueError(f"stage1 must be a list of names, not the string {stage1!r}")  # noqa: TRY004
        if cost_ratio is not None and not (math.isfinite(cost_ratio) and cost_ratio > 0):
            raise ValueError(f"cost_ratio must be a positive number, not {cost_ratio}")
        self._stage1 = frozenset(stage1)
        self._cost_ratio = cost_ratio
        self._seed = secrets.randbits(32) if seed is None else seed
        self._startup_trials = startup_trials
        self._warn_unseen = warn_unseen
        self._plain = ReseededSampler(self._seed, startup_trials=startup_trials)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the study's trials, with their latest ranges."""
        _require_one_objective(study)
        space: dict[str, BaseDistribution] = {}
        trials = study.get_trials(deepcopy=False)
        for other in trials:
            space.update(other.distributions)
        if self._warn_unseen:
            self._warn_of_unseen(space, sum(other.state == TrialState.COMPLETE for other in trials))
        space = {name: space[name] for name in sorted(space) if not space[name].single()}
        return space if self._has_both_stages(space) else self._plain.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draws every parameter of `search_space`, also those that turn out to be inactive."""
        _require_one_objective(study)
        if not self._has_both_stages(search_space):
            return self._plain.sample_relative(study, trial, search_space)
        if PROPOSED in trial.system_attrs:  # the process was killed between two suggests
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
        # There is no public way for a sampler to write this; Optuna's own samplers use the storage, too.
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSED, write_proposal(values, search_space))
        return values

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws a parameter that no trial has yet, or whose range has changed."""
        _require_one_objective(study)
        return self._plain.sample_independent(study, trial, param_name, param_distribution)

    def _warn_of_unseen(self, space: Mapping[str, BaseDistribution], complete: int) -> None:
        unseen = self._stage1 - space.keys()
        names = ", ".join(sorted(unseen))
        if complete and unseen and unseen == self._stage1:
            text = f"no trial has any of the stage-1 parameters ({names}): proposals are those of plain TPE"
        elif complete >= UNSEEN_AFTER and unseen:
            text = f"no trial has the stage-1 parameter {names} yet: under a misspelt name it counts as stage 2's"
        else:
            return
        warnings.warn(text, UnseenParameterWarning, stacklevel=3)

    def _has_both_stages(self, space: Mapping[str, BaseDistribution]) -> bool:
        return 0 < sum(name in self._stage1 for name in space) < len(space)


def _require_one_objective(study: Study) -> None:
    if len(study.directions) > 1:
        raise ValueError(f"StagedSampler needs a study with one objective; this one has {len(study.directions)}")


def _accepted(given: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The given values that Optuna accepts, also out of range; that of an inactive parameter may be None."""
    accepted: dict[str, Any] = {}
    for name, distribution in space.items():
        if name in given:
            with suppress(ValueError):
                distribution.to_internal_repr(given[name])
                accepted[name] = given[name]
    return accepted

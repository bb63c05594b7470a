"""Proposals that are a pure function of (run seed, trial number, journal)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lt_search.parameters import Parameter, in_sampling_order
from lt_search.plain_sampler import STARTUP_TRIALS, ReseededSampler
from lt_search.stage_history import REUSE_COST, STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1
from lt_search.staged_sampler import NeverSeenWarning, StagedSampler

__all__ = [
    "REUSE_COST",
    "STAGE1_COST",
    "STAGE2_COST",
    "STARTUP_TRIALS",
    "STOPPED_IN_STAGE1",
    "NeverSeenWarning",
    "ReseededSampler",
    "StagedSampler",
    "propose",
]


def propose(trial: optuna.Trial, parameters: Mapping[str, Parameter], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Draws every active parameter of a trial, conditions respected.

    Args:
        trial: an Optuna trial; parameters that it already has keep their values.
        parameters: what is searched.
        fixed: the flat base config, read by conditions.

    Returns:
        The drawn values by flat name; inactive parameters are absent.
    """
    known = {name: value for name, value in fixed.items() if name not in parameters}
    drawn: dict[str, Any] = {}
    for parameter in in_sampling_order(parameters):
        if parameter.when is None or parameter.when.holds(known):
            value = _suggest(trial, parameter.name, parameter.distribution)
            drawn[parameter.name] = known[parameter.name] = value
    return drawn


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

"""A study's trials as arrays, grouped by their stage-1 configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from lt_search.samplers.parzen import MISSING, Array, choices, count, decode, encode, key, out_of_range

Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]

STAGE1_COST, STAGE2_COST = "stage1_cost", "stage2_cost"
"""User attributes of a trial: the cost of a whole stage, in any unit; set only if the stage was completed."""

REUSE_COST = "reuse_cost"
"""User attribute of a trial that reused a stage-1 artefact: its whole cost, overhead included, in the same unit.

Where stage 2 takes a tenth of a second, most of the cost is scheduling the trial and writing its files."""

STOPPED_IN_STAGE1 = "stopped_in_stage1"
"""User attribute of a trial pruned before stage 2, whether or not its stage 1 was completed. True, or absent.

In a study without any `STAGE1_COST`, a pruned trial with stage-2 values counts as pruned in stage 2."""

PROPOSED = "staged:proposed"
"""System attribute of a trial: all values proposed for it, as JSON in Optuna's internal representation."""


@dataclass(frozen=True)
class Axes:
    """The parameters of one stage, in order."""

    space: Mapping[str, BaseDistribution]

    @property
    def sizes(self) -> Index:
        """Number of choices per axis (d,), 0 for numerical ones."""
        return np.array([choices(distribution) for distribution in self.space.values()], dtype=np.int64)

    @property
    def shares(self) -> Array:
        """One over the number of values per axis (d,), 0 for continuous ones."""
        return np.array([1 / count(distribution) for distribution in self.space.values()], dtype=np.float64)

    def encode(self, columns: Mapping[str, Sequence[Any]]) -> Array:
        """Coordinates (n, d) of n configurations, given as a list of values per parameter; NaN for `MISSING`."""
        return np.stack([encode(distribution, columns[name]) for name, distribution in self.space.items()], axis=1)

    def out_of_range(self, columns: Mapping[str, Sequence[Any]]) -> Bools:
        """Mask (n,) of the configurations that have a value outside its range."""
        outside = [out_of_range(distribution, columns[name]) for name, distribution in self.space.items()]
        return np.asarray(np.any(outside, axis=0), dtype=bool)

    def decode(self, coordinates: Array) -> dict[str, Any]:
        """The values at coordinates (d,), without those of NaN."""
        return {
            name: decode(distribution, coordinate)
            for (name, distribution), coordinate in zip(self.space.items(), coordinates, strict=True)
            if not np.isnan(coordinate)
        }


@dataclass(frozen=True)
class Distinct:
    """The distinct configurations of one stage, numbered in the order of their first trials."""

    of_trial: Index
    """(n,) number of each trial's configuration."""
    first: Index
    """(k,) first trial of each configuration."""

    @classmethod
    def of(cls, columns: Iterable[Sequence[Any]]) -> Distinct:
        """Groups trials by equality of their values, given as a list per parameter."""
        seen: dict[tuple[Any, ...], int] = {}
        index: list[int] = []
        first: list[int] = []
        for trial, values in enumerate(zip(*columns, strict=True)):
            number = seen.setdefault(tuple(map(key, values)), len(first))
            if number == len(first):
                first.append(trial)
            index.append(number)
        return cls(np.array(index, dtype=np.int64), np.array(first, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.first)

    def count(self, of: Bools) -> Index:
        """Number of the chosen trials (n,) per configuration (k,)."""
        return np.bincount(self.of_trial[of], minlength=len(self))

    def any(self, of: Bools) -> Bools:
        """Mask (k,) of the configurations with at least one of the chosen trials (n,)."""
        return self.count(of) > 0


@dataclass(frozen=True)
class History:
    """Trials as arrays of length n, in the order of their numbers, without trials that have no stage-1 value."""

    values: Array
    """Objective values, to be maximised; NaN unless the trial is complete."""
    ended: Bools
    """Complete or pruned."""
    running: Bools
    has_stage1: Bools
    """Whether stage 1 was completed and not stopped: the trial is complete, or has that stage's cost."""
    repeatable: Bools
    """Whether the stage-1 values can be proposed again: stage 1 was completed, and they are within current ranges."""
    tries_stage2: Bools
    """Whether its stage-2 values count as tried: it reached stage 2, or is still running."""
    costs: Array
    """(n, 2), NaN where unknown: of stage 1, and of a further stage-2 run."""
    x1: Array
    """Coordinates (n, d1) of the stage-1 values."""
    x2: Array
    """Coordinates (n, d2) of the stage-2 values."""
    stage1: Distinct
    stage2: Distinct
    params: tuple[Mapping[str, Any], ...]
    """The values of each trial, of both stages."""

    def best(self, which: Distinct) -> Array:
        """The best value (k,) per configuration, -inf where there is none."""
        best = np.full(len(which), -np.inf)
        np.maximum.at(best, which.of_trial, self.rank)
        return best

    @property
    def known(self) -> Bools:
        """Mask (n,) of the trials with a value."""
        return ~np.isnan(self.values)

    @property
    def rank(self) -> Array:
        """The values (n,), -inf where there is none."""
        return np.where(self.known, self.values, -np.inf)

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], sign: int, axes1: Axes, axes2: Axes) -> History:
        """The history of some trials; `sign` is -1 in a study that minimises."""
        trials, params = _with_stage1(trials, axes1, axes2)
        space = {**axes1.space, **axes2.space}
        columns = {name: [values.get(name, MISSING) for values in params] for name in space}
        states = [trial.state for trial in trials]
        complete, pruned, running = (
            np.array([state == which for state in states], dtype=bool)
            for which in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        )
        values = [sign * (trial.value or 0.0) if trial.state == TrialState.COMPLETE else np.nan for trial in trials]
        further = REUSE_COST if any(REUSE_COST in trial.user_attrs for trial in trials) else STAGE2_COST
        costs = np.array(
            [[_number(t.user_attrs.get(STAGE1_COST)), _number(t.user_attrs.get(further))] for t in trials],
            dtype=np.float64,
        ).reshape(len(trials), 2)
        x2 = axes2.encode(columns)
        stopped = np.array([bool(trial.user_attrs.get(STOPPED_IN_STAGE1)) for trial in trials], dtype=bool)
        has_stage1 = complete | (~np.isnan(costs[:, 0]) & ~stopped)
        # Without costs, only a pruned trial's values can show whether it reached stage 2.
        without_costs = bool(np.isnan(costs[:, 0]).all())
        in_stage2 = pruned & ~stopped & ~np.isnan(x2).all(axis=1) & without_costs
        return cls(
            _finite(np.array(values, dtype=np.float64)),
            complete | pruned,
            running,
            has_stage1,
            has_stage1 & ~axes1.out_of_range(columns),
            has_stage1 | running | in_stage2,
            np.where((costs >= 0) & np.isfinite(costs), costs, np.nan),
            axes1.encode(columns),
            x2,
            Distinct.of(columns[name] for name in axes1.space),
            Distinct.of(columns[name] for name in axes2.space),
            params,
        )


def write_proposal(values: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> str:
    """Proposed values as the text of the attribute `PROPOSED`."""
    return json.dumps({name: space[name].to_internal_repr(value) for name, value in values.items()})


def read_proposal(text: str, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The inverse of `write_proposal`."""
    return {name: space[name].to_external_repr(x) for name, x in json.loads(text).items() if name in space}


def _with_stage1(
    trials: Sequence[FrozenTrial], axes1: Axes, axes2: Axes
) -> tuple[list[FrozenTrial], tuple[Mapping[str, Any], ...]]:
    """The trials whose stage-1 configuration is known, with their values.

    A running or failed trial may lack some of its values. Which ones is not recorded, because a missing parameter may
    also be inactive; it has all of them if a complete trial has the same parameters.
    """
    space = {**axes1.space, **axes2.space}
    complete = {frozenset(trial.params) for trial in trials if trial.state == TrialState.COMPLETE}
    complete = {names for names in complete if names & axes1.space.keys() and names & axes2.space.keys()}
    kept: list[FrozenTrial] = []
    params: list[Mapping[str, Any]] = []
    for trial in trials:
        values: Mapping[str, Any] = trial.params
        names = frozenset(values)
        if trial.state in {TrialState.RUNNING, TrialState.FAIL} and names not in complete:
            if PROPOSED in trial.system_attrs:
                if trial.state == TrialState.RUNNING or values:  # one that failed before its first value was not tried
                    values = {**read_proposal(trial.system_attrs[PROPOSED], space), **values}
            elif any(names < others for others in complete):
                continue
        if values.keys() & axes1.space.keys():
            kept.append(trial)
            params.append(values)
    return kept, tuple(params)


def _number(value: Any) -> float:
    """A user attribute as a number, NaN if it is not one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _finite(values: Array) -> Array:
    """Infinite values replaced by the finite extremes."""
    finite = values[np.isfinite(values)]
    return np.clip(values, finite.min(), finite.max()) if len(finite) else np.where(np.isinf(values), 0.0, values)

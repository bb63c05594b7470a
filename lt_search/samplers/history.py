"""A study's trials as arrays, with the stage 1 that each belongs to."""

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
"""User attributes of a trial: what a stage costs when trained to its end, in any unit; only if it was completed."""

REUSE_COST = "reuse_cost"
"""User attribute of a trial that used another one's stage 1: what it took in all, harness included, in the same unit.

Where stage 2 takes a tenth of a second, handing a trial out and writing its files is most of what it costs."""

STOPPED_IN_STAGE1 = "stopped_in_stage1"
"""User attribute of a pruned trial: it never got to stage 2, though its stage 1 may be there. True, or absent.

In a study whose trials carry no `STAGE1_COST`, a pruned trial with stage-2 values is taken to have got there."""

PROPOSED = "staged:proposed"
"""System attribute of a trial: all that was drawn for it, as JSON in Optuna's internal representation."""


@dataclass(frozen=True)
class Axes:
    """The parameters of one stage, in order."""

    space: Mapping[str, BaseDistribution]

    @property
    def sizes(self) -> Index:
        """Number of choices per axis (d,), 0 for a number."""
        return np.array([choices(distribution) for distribution in self.space.values()], dtype=np.int64)

    @property
    def shares(self) -> Array:
        """The share (d,) of an axis that one of its values is, 0 where they are continuous."""
        return np.array([1 / count(distribution) for distribution in self.space.values()], dtype=np.float64)

    def encode(self, columns: Mapping[str, Sequence[Any]]) -> Array:
        """Places (n, d) of n configurations, given as a list of values per parameter; NaN for `MISSING`."""
        return np.stack([encode(distribution, columns[name]) for name, distribution in self.space.items()], axis=1)

    def out_of_range(self, columns: Mapping[str, Sequence[Any]]) -> Bools:
        """Which configurations (n,) have a value that is out of its range."""
        outside = [out_of_range(distribution, columns[name]) for name, distribution in self.space.items()]
        return np.asarray(np.any(outside, axis=0), dtype=bool)

    def decode(self, places: Array) -> dict[str, Any]:
        """The values at places (d,); a NaN place has none."""
        return {
            name: decode(distribution, place)
            for (name, distribution), place in zip(self.space.items(), places, strict=True)
            if not np.isnan(place)
        }


@dataclass(frozen=True)
class Distinct:
    """The distinct values of one stage, numbered in the order of their first trials."""

    of_trial: Index
    """(n,) which of them each trial has."""
    first: Index
    """(k,) the first trial that has them."""

    @classmethod
    def of(cls, columns: Iterable[Sequence[Any]]) -> Distinct:
        """Compares values exactly, given as a list per parameter."""
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
        """How many of the chosen trials (n,) have each (k,)."""
        return np.bincount(self.of_trial[of], minlength=len(self))

    def any(self, of: Bools) -> Bools:
        """Which (k,) have at least one of the chosen trials (n,)."""
        return self.count(of) > 0


@dataclass(frozen=True)
class History:
    """Trials as arrays of length n, in the order of their numbers; a trial without a stage-1 value is left out."""

    values: Array
    """The more the better; NaN unless the trial is complete."""
    ended: Bools
    """Complete or pruned."""
    running: Bools
    has_stage1: Bools
    """Whether the trial got through stage 1: it is complete, or carries that stage's cost and was not stopped in it."""
    repeatable: Bools
    """Whether its stage-1 values can be repeated: it got through stage 1, and the values are within today's ranges."""
    tries_stage2: Bools
    """Whether it says something of its stage 2: it got there, or is still running."""
    costs: Array
    """(n, 2), NaN where unknown: of stage 1, and of one more stage 2."""
    x1: Array
    """Places (n, d1) of the stage-1 values."""
    x2: Array
    """Places (n, d2)."""
    stage1: Distinct
    stage2: Distinct
    drawn: tuple[Mapping[str, Any], ...]
    """The values of each trial, of both stages."""

    def best(self, which: Distinct) -> Array:
        """The best value (k,) of the trials with each distinct stage, -inf where there is none."""
        best = np.full(len(which), -np.inf)
        np.maximum.at(best, which.of_trial, self.rank)
        return best

    @property
    def known(self) -> Bools:
        """Which trials have a value."""
        return ~np.isnan(self.values)

    @property
    def rank(self) -> Array:
        """The values, -inf where there is none."""
        return np.where(self.known, self.values, -np.inf)

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], sign: int, axes1: Axes, axes2: Axes) -> History:
        """Reads trials; `sign` is -1 in a study that minimises."""
        trials, drawn = _with_stage1(trials, axes1, axes2)
        space = {**axes1.space, **axes2.space}
        columns = {name: [values.get(name, MISSING) for values in drawn] for name in space}
        states = [trial.state for trial in trials]
        complete, pruned, running = (
            np.array([state == which for state in states], dtype=bool)
            for which in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        )
        values = [sign * (trial.value or 0.0) if trial.state == TrialState.COMPLETE else np.nan for trial in trials]
        again = REUSE_COST if any(REUSE_COST in trial.user_attrs for trial in trials) else STAGE2_COST
        costs = np.array(
            [[_number(t.user_attrs.get(STAGE1_COST)), _number(t.user_attrs.get(again))] for t in trials],
            dtype=np.float64,
        ).reshape(len(trials), 2)
        x2 = axes2.encode(columns)
        stopped = np.array([bool(trial.user_attrs.get(STOPPED_IN_STAGE1)) for trial in trials], dtype=bool)
        has_stage1 = complete | (~np.isnan(costs[:, 0]) & ~stopped)
        # Where nobody measures costs, they cannot show which pruned trials got to stage 2.
        tells_nothing = bool(np.isnan(costs[:, 0]).all())
        in_stage2 = pruned & ~stopped & ~np.isnan(x2).all(axis=1) & tells_nothing
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
            drawn,
        )


def write_proposal(values: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> str:
    """Drawn values as the text of the attribute `PROPOSED`."""
    return json.dumps({name: space[name].to_internal_repr(value) for name, value in values.items()})


def read_proposal(text: str, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The inverse of `write_proposal`."""
    return {name: space[name].to_external_repr(x) for name, x in json.loads(text).items() if name in space}


def _with_stage1(
    trials: Sequence[FrozenTrial], axes1: Axes, axes2: Axes
) -> tuple[list[FrozenTrial], tuple[Mapping[str, Any], ...]]:
    """The trials whose stage 1 is known, with their values.

    A trial that still runs or failed may lack some of its suggests. Which ones it lacks is not written anywhere, for
    a missing one may be inactive as well; it has all of them if a complete trial has the same ones.
    """
    space = {**axes1.space, **axes2.space}
    whole = {frozenset(trial.params) for trial in trials if trial.state == TrialState.COMPLETE}
    whole = {names for names in whole if names & axes1.space.keys() and names & axes2.space.keys()}
    kept: list[FrozenTrial] = []
    drawn: list[Mapping[str, Any]] = []
    for trial in trials:
        values: Mapping[str, Any] = trial.params
        names = frozenset(values)
        if trial.state in {TrialState.RUNNING, TrialState.FAIL} and names not in whole:
            if PROPOSED in trial.system_attrs:
                if trial.state == TrialState.RUNNING or values:  # failed before its first suggest, it was never tried
                    values = {**read_proposal(trial.system_attrs[PROPOSED], space), **values}
            elif any(names < others for others in whole):
                continue
        if values.keys() & axes1.space.keys():
            kept.append(trial)
            drawn.append(values)
    return kept, tuple(drawn)


def _number(value: Any) -> float:
    """A user attribute as a number, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _finite(values: Array) -> Array:
    """Puts infinite values at the finite extremes."""
    finite = values[np.isfinite(values)]
    return np.clip(values, finite.min(), finite.max()) if len(finite) else np.where(np.isinf(values), 0.0, values)

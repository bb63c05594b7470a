from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from lt_search.samplers.history import PROPOSED, STAGE1_COST, Axes, History, write_proposal

UNIT = FloatDistribution(0, 1)
SPACE: dict[str, BaseDistribution] = {"a": UNIT, "b": UNIT, "kind": CategoricalDistribution(["x", "y"])}
AXES1, AXES2 = Axes({"a": UNIT, "kind": SPACE["kind"]}), Axes({"b": UNIT})
WHOLE = {"a": 0.5, "kind": "x", "b": 0.5}
PROPOSAL = {"a": 0.25, "kind": "y", "b": 0.75}


def _trial(state: TrialState, values: Mapping[str, Any], proposal: Mapping[str, Any] | None = None) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=state,
        value=1.0 if state == TrialState.COMPLETE else None,
        params=dict(values),
        distributions={name: SPACE[name] for name in values},
        system_attrs={} if proposal is None else {PROPOSED: write_proposal(proposal, SPACE)},
    )


def _params(*trials: FrozenTrial) -> list[Mapping[str, Any]]:
    return list(History.of([_trial(TrialState.COMPLETE, WHOLE), *trials], 1, AXES1, AXES2).params[1:])


def test_a_running_trial_has_all_proposed_values() -> None:
    for suggested in ({}, {"b": 0.75}, {"kind": "y"}, PROPOSAL):
        assert _params(_trial(TrialState.RUNNING, suggested, PROPOSAL)) == [PROPOSAL]


def test_a_parameter_that_a_complete_trial_lacks_is_inactive() -> None:
    kind = {"kind": "y", "b": 0.75}
    assert _params(_trial(TrialState.COMPLETE, kind), _trial(TrialState.RUNNING, kind, PROPOSAL)) == [kind, kind]


def test_a_trial_that_failed_before_its_first_suggest_is_left_out() -> None:
    assert _params(_trial(TrialState.FAIL, {}, PROPOSAL)) == []
    assert _params(_trial(TrialState.FAIL, {"kind": "y"}, PROPOSAL)) == [PROPOSAL]


def test_trials_whose_stage1_is_unknown_are_left_out() -> None:
    unknown = [_trial(state, {}) for state in (TrialState.RUNNING, TrialState.FAIL, TrialState.PRUNED)]
    assert _params(*unknown, _trial(TrialState.COMPLETE, {"b": 0.5}), _trial(TrialState.FAIL, {"kind": "x"})) == []


def test_a_cost_may_be_zero_and_is_unknown_if_it_is_not_a_number() -> None:
    trials = [_trial(TrialState.COMPLETE, WHOLE) for _ in range(5)]
    for trial, cost in zip(trials, (20.0, 0, "n/a", None, -1.0), strict=True):
        trial.set_user_attr(STAGE1_COST, cost)
    costs = History.of(trials, 1, AXES1, AXES2).costs
    np.testing.assert_array_equal(costs[:, 0], [20.0, 0.0, np.nan, np.nan, np.nan])


def test_a_history_may_be_empty() -> None:
    history = History.of([_trial(TrialState.RUNNING, {})], 1, AXES1, AXES2)
    assert len(history.stage1) == 0
    assert history.x1.shape == (0, 2)
    assert not np.any(history.known)

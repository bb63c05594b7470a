from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from lt_search.samplers.allocation import stage1_to_reuse, trials_per_stage1
from lt_search.samplers.effects import Variances
from lt_search.samplers.history import STAGE1_COST, Axes, History


def test_a_stage1_gets_more_trials_the_more_it_costs_and_the_more_stage_2_matters() -> None:
    for variances in (Variances(1, 1), Variances(4, 1)):
        numbers = [trials_per_stage1(variances, ratio) for ratio in (2, 5, 10, 20, 50)]
        assert numbers == sorted(numbers)
    assert trials_per_stage1(Variances(1, 1e-9), 20) == 1
    assert trials_per_stage1(Variances(1, 0.2), 20) == pytest.approx(2.5 * 2)
    assert trials_per_stage1(Variances(1, 4), 20) == trials_per_stage1(Variances(0, 1), 20) == pytest.approx(10.5)


def test_a_stage1_can_be_reused_if_it_was_completed_and_is_in_range() -> None:
    """Of the four only two are; the one with fewer stage-2 trials has more to gain, though its only one was pruned."""
    study = optuna.create_study()
    stages: dict[str, dict[str, Any]] = {
        "complete, twice": {"a": 0.1, "state": TrialState.COMPLETE, "value": 1.0},
        "again": {"a": 0.1, "state": TrialState.COMPLETE, "value": 2.0},
        "pruned in stage 1": {"a": 0.2, "state": TrialState.PRUNED},
        "out of range": {"a": 0.9, "state": TrialState.COMPLETE, "value": 3.0},
        "pruned in stage 2": {"a": 0.3, "state": TrialState.PRUNED, "user_attrs": {STAGE1_COST: 9.0}},
        "runs": {"a": 0.4, "state": TrialState.RUNNING},
    }
    for number, trial in enumerate(stages.values()):
        params = {"a": trial.pop("a"), "b": number / 10}
        ranges = dict.fromkeys(params, FloatDistribution(0, 1))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, **trial))
    axes1, axes2 = Axes({"a": FloatDistribution(0, 0.5)}), Axes({"b": FloatDistribution(0, 1)})
    history = History.of(study.get_trials(), 1, axes1, axes2)
    for within, order in ((100.0, [0.3, 0.1]), (0.0, [0.1, 0.3])):
        chosen = stage1_to_reuse(history, within)
        assert [history.params[history.stage1.first[stage1]]["a"] for stage1 in chosen] == order


def test_a_stage1_with_many_running_trials_is_left_out() -> None:
    study = optuna.create_study()
    ranges = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
    states = {0.1: [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING], 0.2: [TrialState.COMPLETE] * 3}
    for a, of_a in states.items():
        for number, state in enumerate(of_a):
            value = 1.0 if state == TrialState.COMPLETE else None
            params = {"a": a, "b": number / 10}
            study.add_trial(optuna.trial.create_trial(state=state, value=value, params=params, distributions=ranges))
    history = History.of(study.get_trials(), 1, *(Axes({name: ranges[name]}) for name in ranges))
    assert stage1_to_reuse(history, 0.0) == stage1_to_reuse(history, 0.0, 3) == [0, 1]
    assert stage1_to_reuse(history, 0.0, 2) == [1]

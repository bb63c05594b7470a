from __future__ import annotations

import numpy as np
import pytest

from lt_search.samplers.costs import UNKNOWN_RATIO, predict_ratio


def test_the_cost_ratio_is_predicted_per_configuration() -> None:
    """Stage-1 costs are a factor of the backbone times one of the epochs; stage 2 costs 2."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.random(30), rng.integers(0, 2, 30).astype(float)])
    costs = np.column_stack([10 * np.exp(1.5 * x[:, 0]) * np.where(x[:, 1] == 1, 4.0, 1.0), np.full(30, 2.0)])
    costs[::3, 1] = np.nan
    sizes = np.array([0, 2])
    assert predict_ratio(x, costs, sizes, np.array([0.0, 0.0])) == pytest.approx(5, rel=0.1)
    assert predict_ratio(x, costs, sizes, np.array([1.0, 1.0])) == pytest.approx(5 * np.exp(1.5) * 4, rel=0.1)


def test_the_stage_2_cost_is_the_mean_of_the_recent_ones() -> None:
    x, sizes = np.zeros((60, 1)), np.array([0])
    costs = np.column_stack([np.full(60, 100.0), np.tile([1.0, 999.0], 30)])
    assert predict_ratio(x, costs, sizes, np.zeros(1)) == pytest.approx(0.2)
    costs[40:, 1] = 2.0
    assert predict_ratio(x, costs, sizes, np.zeros(1)) == pytest.approx(50)


def test_stage_2_costs_may_be_zero() -> None:
    x, sizes = np.zeros((4, 1)), np.array([0])
    some, none = (np.column_stack([np.full(4, 100.0), cost2]) for cost2 in ([0.0, 0.0, 0.0, 4.0], np.zeros(4)))
    assert predict_ratio(x, some, sizes, np.zeros(1)) == pytest.approx(100)
    assert predict_ratio(x, none, sizes, np.zeros(1)) == pytest.approx(1000)
    none[:, 0] = 0.0
    assert predict_ratio(x, none, sizes, np.zeros(1)) == UNKNOWN_RATIO


def test_without_costs_the_stages_cost_the_same() -> None:
    nothing = np.full((3, 2), np.nan)
    assert predict_ratio(np.zeros((3, 1)), nothing, np.array([0]), np.zeros(1)) == UNKNOWN_RATIO

from __future__ import annotations

import numpy as np
import pytest

from lt_search.stage_costs import UNKNOWN_RATIO, predict_ratio
from lt_search.stage_decision import stage2s_per_stage1
from lt_search.stage_effects import Variances, stage_variances


def test_the_components_of_variance_are_found() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 60, 1200)
    values = rng.normal(0, 2, 60)[rows] + rng.normal(0, 0.5, 1200)
    variances = stage_variances(values, rows)
    assert variances.between == pytest.approx(4, rel=0.25)
    assert variances.within == pytest.approx(0.25, rel=0.1)


def test_few_values_say_that_both_stages_matter_alike() -> None:
    variances = stage_variances(np.array([1.0, 3.0]), np.array([0, 1]))
    assert variances.within == pytest.approx(0.5)
    assert variances.between > 0
    assert stage_variances(np.ones(5), np.arange(5)) == Variances(0, 0)


def test_a_stage1_deserves_more_stage2s_the_more_it_costs_and_the_more_they_matter() -> None:
    for variances in (Variances(1, 1), Variances(4, 1)):
        numbers = [stage2s_per_stage1(variances, ratio) for ratio in (2, 5, 10, 20, 50)]
        assert numbers == sorted(numbers)
    assert stage2s_per_stage1(Variances(1, 1e-9), 20) == 1
    assert stage2s_per_stage1(Variances(1, 0.2), 20) == pytest.approx(2.5 * 2)
    assert stage2s_per_stage1(Variances(1, 4), 20) == stage2s_per_stage1(Variances(0, 1), 20) == pytest.approx(10.5)


def test_the_cost_ratio_is_predicted_per_configuration() -> None:
    """Costs are epochs times what the backbone takes; a stage 2 costs 2."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.random(30), rng.integers(0, 2, 30).astype(float)])
    costs = np.column_stack([10 * np.exp(1.5 * x[:, 0]) * np.where(x[:, 1] == 1, 4.0, 1.0), np.full(30, 2.0)])
    costs[::3, 1] = np.nan
    sizes = np.array([0, 2])
    assert predict_ratio(x, costs, sizes, np.array([0.0, 0.0])) == pytest.approx(5, rel=0.1)
    assert predict_ratio(x, costs, sizes, np.array([1.0, 1.0])) == pytest.approx(5 * np.exp(1.5) * 4, rel=0.1)


def test_without_costs_the_stages_cost_the_same() -> None:
    nothing = np.full((3, 2), np.nan)
    assert predict_ratio(np.zeros((3, 1)), nothing, np.array([0]), np.zeros(1)) == UNKNOWN_RATIO

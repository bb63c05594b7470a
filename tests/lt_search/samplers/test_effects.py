from __future__ import annotations

import numpy as np
import pytest

from lt_search.samplers.effects import Variances, median_over_groups, stage_variances


def test_the_components_of_variance_are_found() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 60, 1200)
    values = rng.normal(0, 2, 60)[rows] + rng.normal(0, 0.5, 1200)
    variances = stage_variances(values, rows)
    assert variances.between == pytest.approx(4, rel=0.25)
    assert variances.within == pytest.approx(0.25, rel=0.1)


def test_with_few_values_both_stages_have_half_of_the_variance() -> None:
    variances = stage_variances(np.array([1.0, 3.0]), np.array([0, 1]))
    assert variances.within == pytest.approx(0.5)
    assert variances.between > 0
    assert stage_variances(np.ones(5), np.arange(5)) == Variances(0, 0)


def test_a_stage_1_with_many_trials_counts_once_in_the_median() -> None:
    values = np.array([*np.linspace(10, 11, 50), 1.0, 2.0, 3.0])
    rows = np.array([*np.zeros(50, int), 1, 2, 3])
    assert median_over_groups(values, rows) == 2.0
    assert median_over_groups(values, np.arange(53)) == np.median(values)

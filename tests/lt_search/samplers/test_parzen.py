from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import truncnorm

from lt_search.samplers.parzen import MISSING, ParzenMixture, count, decode, encode, out_of_range, ramp

NUMBER, CHOICE = np.array([0]), np.array([3])


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (FloatDistribution(-2, 3), [-2.0, 0.25, 3.0]),
        (FloatDistribution(1e-5, 1e-1, log=True), [1e-5, 3e-3, 1e-1]),
        (FloatDistribution(0, 1, step=0.25), [0.0, 0.25, 1.0]),
        (IntDistribution(2, 7), [2, 5, 7]),
        (IntDistribution(10, 1000, log=True), [10, 123, 1000]),
        (CategoricalDistribution([True, 1, "a", None]), [True, 1, "a"]),
    ],
)
def test_a_decoded_place_is_the_value(distribution: BaseDistribution, values: list[object]) -> None:
    places = encode(distribution, values)
    for value, place in zip(values, places, strict=True):
        decoded = decode(distribution, place)
        assert type(decoded) is type(value)
        assert decoded == pytest.approx(value, rel=1e-12) if isinstance(value, float) else decoded == value


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (CategoricalDistribution(["a", "b", "c"]), 3),
        (IntDistribution(3, 9), 7),
        (IntDistribution(1, 9, step=4), 3),
        (IntDistribution(5, 50, log=True), 46),
        (FloatDistribution(0.0, 0.3, step=0.1), 4),
        (FloatDistribution(0.0, 1.0), math.inf),
    ],
)
def test_different_values_are_counted(distribution: BaseDistribution, values: float) -> None:
    assert count(distribution) == values


def test_what_is_missing_or_unknown_has_no_place_and_what_is_out_of_range_is_at_the_end() -> None:
    assert np.isnan(encode(FloatDistribution(0, 1), [MISSING])).all()
    assert np.isnan(encode(CategoricalDistribution(["a", None]), [MISSING, "b"])).all()
    np.testing.assert_array_equal(encode(FloatDistribution(1, 2, log=True), [-1.0, 0.5, 5.0]), [0, 0, 1])


def test_what_is_missing_is_not_out_of_range_though_none_may_be() -> None:
    for distribution, none in ((CategoricalDistribution(["a"]), True), (CategoricalDistribution(["a", None]), False)):
        assert out_of_range(distribution, ["a", None, MISSING]).tolist() == [False, none, False]
    assert not out_of_range(FloatDistribution(0, 1), [MISSING]).any()


def test_the_density_is_that_of_truncated_normals() -> None:
    points, weights = np.array([[0.2, 0.9], [0.6, 0.4]]), np.array([1.0, 3.0])
    mixture = ParzenMixture(points, np.array([0, 0]), weights)
    x = np.array([[0.3, 0.5], [0.95, 0.01]])
    # Two points: each bandwidth is the gap between the two, 0.4 and 0.5.
    expected = np.full(2, 1 / 5)
    for point, weight in zip(points, weights, strict=True):
        kernel = np.ones(2)
        for axis, sigma in enumerate((0.4, 0.5)):
            low, high = -point[axis] / sigma, (1 - point[axis]) / sigma
            kernel *= truncnorm.pdf(x[:, axis], low, high, loc=point[axis], scale=sigma)
        expected += weight / 5 * kernel
    np.testing.assert_allclose(mixture.log_density(x), np.log(expected))


def test_the_density_of_choices_sums_to_their_number() -> None:
    mixture = ParzenMixture(np.array([[0.0], [2.0], [2.0]]), CHOICE, np.ones(3))
    density = np.exp(mixture.log_density(np.array([[0.0], [1.0], [2.0]])))
    assert density.sum() == pytest.approx(3)
    assert density[2] > density[0] > density[1]


def test_weights_by_density_at_one_axis_condition_the_mixture_on_it() -> None:
    """p(b | a) = p(a, b) / p(a), and p(a) by integration over b."""
    points = np.array([[0.1, 0.8], [0.5, 0.3], [0.9, 0.6]])
    joint = ParzenMixture(points, np.array([0, 0]), np.ones(3))
    a, grid = 0.35, (np.arange(4000) + 0.5) / 4000
    along = np.exp(joint.log_density(np.column_stack([np.full(4000, a), grid])))
    nearness = ParzenMixture(points[:, :1], NUMBER, np.ones(3)).log_kernels(np.array([[a]]))[0]
    conditional = ParzenMixture(points[:, 1:], NUMBER, np.exp(nearness))
    np.testing.assert_allclose(np.exp(conditional.log_density(grid[:, None])), along / along.mean(), rtol=1e-5)


def test_an_axis_that_an_observation_or_a_point_lacks_is_uniform() -> None:
    mixture = ParzenMixture(np.array([[0.2, np.nan], [0.7, 0.1]]), np.array([0, 0]), np.ones(2))
    alone = ParzenMixture(np.array([[0.2], [0.7]]), NUMBER, np.ones(2))
    np.testing.assert_allclose(
        mixture.log_kernels(np.array([[0.4, 0.9]]))[0, 0], alone.log_kernels(np.array([[0.4]]))[0, 0]
    )
    np.testing.assert_allclose(mixture.log_kernels(np.array([[0.4, np.nan]])), alone.log_kernels(np.array([[0.4]])))


def test_samples_follow_the_density() -> None:
    sizes = np.array([0, 3])
    mixture = ParzenMixture(np.array([[0.1, 2.0], [0.15, 2.0], [0.2, 0.0]]), sizes, np.array([1.0, 1.0, 2.0]))
    drawn = mixture.sample(np.random.default_rng(0), 40_000)
    grid = (np.arange(200) + 0.5) / 200
    for choice in range(3):
        density = np.exp(mixture.log_density(np.column_stack([grid, np.full(200, float(choice))]))) / 3
        chosen = drawn[drawn[:, 1] == choice, 0]
        assert len(chosen) / len(drawn) == pytest.approx(density.mean(), abs=0.01)
        assert chosen.mean() == pytest.approx((grid * density).mean() / density.mean(), abs=0.01)


def test_without_observations_all_is_uniform() -> None:
    mixture = ParzenMixture(np.empty((0, 2)), np.array([0, 3]), np.empty(0))
    drawn = mixture.sample(np.random.default_rng(0), 3000)
    np.testing.assert_allclose(mixture.log_density(drawn), 0)
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(np.bincount(drawn[:, 1].astype(int)) / 3000, 1 / 3, atol=0.04)


def test_old_observations_weigh_less() -> None:
    np.testing.assert_array_equal(ramp(25), np.ones(25))
    weights = ramp(60)
    assert weights[0] == pytest.approx(1 / 60)
    assert (np.diff(weights) >= 0).all()
    assert weights[34:].tolist() == [1.0] * 26
    assert math.isclose(weights[17], np.linspace(1 / 60, 1, 35)[17])

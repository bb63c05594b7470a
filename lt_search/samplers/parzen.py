"""Parzen mixtures over a unit cube with categorical axes: the densities of a tree-structured Parzen estimator (TPE)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.special import ndtr, ndtri

Array = npt.NDArray[np.float64]

PRIOR_WEIGHT = 1.0
"""Weight of the prior kernel, that of one observation (Bergstra et al. 2011)."""


class _Missing:
    """The type of `MISSING`; NaN as a number."""

    def __float__(self) -> float:
        return math.nan


MISSING = _Missing()
"""The value of a parameter that a configuration lacks (None may be a choice)."""

RAMP_FROM = 25
"""The weight of observations older than this many falls linearly with age (Bergstra et al. 2013)."""


def encode(distribution: BaseDistribution, values: Sequence[Any]) -> Array:
    """Coordinates (n,) of values on their axis: in [0, 1] for numbers, the index for choices, NaN for `MISSING`.

    Numbers outside the range are clipped, so that trials of an earlier, wider range still count.
    """
    if isinstance(distribution, CategoricalDistribution):
        index = {key(choice): float(i) for i, choice in enumerate(distribution.choices)}
        return np.array([index.get(key(value), np.nan) for value in values], dtype=np.float64)
    numbers = np.array(values, dtype=np.float64)
    low, high, log = _bounds(distribution)
    if log:
        numbers = np.log(np.maximum(numbers, np.finfo(np.float64).tiny))
    return np.asarray(np.clip((numbers - low) / (high - low), 0.0, 1.0))


def out_of_range(distribution: BaseDistribution, values: Sequence[Any]) -> npt.NDArray[np.bool_]:
    """Mask (n,) of the values outside a distribution's range; `MISSING` is not outside."""
    if isinstance(distribution, CategoricalDistribution):
        x = encode(distribution, values)
        return np.array([np.isnan(i) and v is not MISSING for i, v in zip(x, values, strict=True)], dtype=bool)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    numbers = np.array(values, dtype=np.float64)
    return np.asarray((numbers < distribution.low) | (numbers > distribution.high))


def key(value: Any) -> tuple[type, str]:
    """A hashable key that distinguishes values: a choice may be a list, and True and 1 are two choices."""
    return type(value), repr(value)


def decode(distribution: BaseDistribution, coordinate: float) -> Any:
    """The value at a coordinate, rounded to the distribution's grid: the inverse of `encode`."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(coordinate)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, log = _bounds(distribution)
    number = low + coordinate * (high - low)
    if log:
        number = math.exp(number)
    if distribution.step is not None:
        number = distribution.low + round((number - distribution.low) / distribution.step) * distribution.step
    number = min(max(number, distribution.low), distribution.high)
    return int(number) if isinstance(distribution, IntDistribution) else float(number)


def _bounds(distribution: BaseDistribution) -> tuple[float, float, bool]:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    half = (distribution.step or 0) / 2
    low, high = distribution.low - half, distribution.high + half
    return (math.log(low), math.log(high), True) if distribution.log else (low, high, False)


def choices(distribution: BaseDistribution) -> int:
    """Number of choices of a categorical axis, 0 for a numerical one."""
    return len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 0


def count(distribution: BaseDistribution) -> float:
    """Number of different values; infinite for a continuous parameter."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step is None:
        return math.inf
    return round((distribution.high - distribution.low) / distribution.step) + 1


def ramp(n: int) -> Array:
    """Weights (n,) of observations from the oldest to the newest."""
    old = max(n - RAMP_FROM, 0)
    return np.concatenate([np.linspace(1 / n, 1, old), np.ones(n - old)]) if old else np.ones(n)


class ParzenMixture:
    """A weighted mixture of product kernels, one per observation, and a prior kernel.

    The kernel of a number is a normal truncated to [0, 1], that of a choice the choice itself, smoothed. All densities
    are relative to the uniform one.

    Args:
        points: observations (n, d), one per row; NaN where an observation lacks an axis: its kernel is uniform there.
        sizes: number of choices per axis (d,), 0 for a number.
        weights: weight of each observation (n,).
    """

    def __init__(self, points: Array, sizes: npt.NDArray[np.int64], weights: Array) -> None:
        self._points = points
        self._sizes = sizes
        self._sigmas = np.stack([_bandwidths(points[:, j]) for j in range(points.shape[1])], axis=1)
        total = np.append(weights, PRIOR_WEIGHT)
        self.weights = total / total.sum()

    def log_kernels(self, x: Array) -> Array:
        """Log density (m, n) of each observation's kernel at m points (m, d); uniform on axes that a point lacks."""
        total = np.zeros((len(x), len(self._points)))
        for j, size in enumerate(self._sizes):
            total += self._log_kernel(x[:, j, None], j, int(size))
        return total

    def _log_kernel(self, x: Array, axis: int, size: int) -> Array:
        mu, sigma = self._points[:, axis], self._sigmas[:, axis]
        if size:
            same, other = _smoothing(len(mu), size)
            density = np.where(x == mu, np.log(same * size), np.log(other * size))
        else:
            mass = ndtr((1 - mu) / sigma) - ndtr(-mu / sigma)
            density = -0.5 * ((x - mu) / sigma) ** 2 - np.log(np.sqrt(2 * np.pi) * sigma * mass)
        return np.where(np.isnan(x) | np.isnan(mu), 0.0, density)

    def log_density(self, x: Array) -> Array:
        """Log density (m,) of the mixture at m points (m, d)."""
        kernels = np.concatenate([self.log_kernels(x), np.zeros((len(x), 1))], axis=1)
        top = kernels.max(axis=1, keepdims=True)
        return np.asarray(np.log(np.exp(kernels - top) @ self.weights) + top[:, 0])

    def sample(self, rng: np.random.Generator, count: int) -> Array:
        """Draws points (count, d)."""
        n = len(self._points)
        kernel = rng.choice(n + 1, size=count, p=self.weights)
        drawn = np.empty((count, len(self._sizes)))
        for j, size in enumerate(self._sizes):
            centre = np.append(self._points[:, j], np.nan)[kernel]
            u = rng.random(count)
            if size:
                uniform = np.floor(u * size)
                same, other = _smoothing(n, int(size))
                keep = rng.random(count) < same - other
                drawn[:, j] = np.where(keep & ~np.isnan(centre), centre, uniform)
            else:
                sigma = np.append(self._sigmas[:, j], 1.0)[kernel]
                low, high = ndtr(-centre / sigma), ndtr((1 - centre) / sigma)
                normal = centre + sigma * ndtri(low + u * (high - low))
                drawn[:, j] = np.where(np.isnan(centre), u, np.clip(normal, 0, 1))
        return drawn


def _smoothing(n: int, size: int) -> tuple[float, float]:
    """Probability of the observed choice and of each other one."""
    other = PRIOR_WEIGHT / (n + 1)
    total = 1 + size * other
    return (1 + other) / total, other / total


def _bandwidths(coordinates: Array) -> Array:
    """The larger distance to a neighbour, as Optuna's TPE: at least 1 / min(100, n + 2), at most 1."""
    sigmas = np.ones(len(coordinates))
    known = np.flatnonzero(~np.isnan(coordinates))
    if len(known) == 0:
        return sigmas
    order = known[np.argsort(coordinates[known], kind="stable")]
    gaps = np.diff(np.concatenate([[0.0], coordinates[order], [1.0]]))
    wide = np.maximum(gaps[:-1], gaps[1:])
    if len(order) > 1:
        wide[0], wide[-1] = gaps[1], gaps[-2]
    sigmas[order] = np.clip(wide, 1 / min(100, len(known) + 2), 1)
    return sigmas

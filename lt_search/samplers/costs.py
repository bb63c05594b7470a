"""Prediction of the cost of a stage-1 run relative to a stage-2 run, from the costs of earlier trials."""

from __future__ import annotations

import math

import numpy as np

from lt_search.samplers.history import Index
from lt_search.samplers.parzen import Array

UNKNOWN_RATIO = 1.0
"""The ratio where no trial has a cost: both stages cost the same."""

RECENT = 20
"""Stage-2 runs whose costs are averaged. A search moves to better regions; costs in those it left are out of date."""

FREE = 1e-3
"""Cost of a stage-2 run relative to a stage-1 run where every recent one took no measurable time."""

RIDGE = 0.1
"""Penalty on the slopes of the log cost over a unit of an axis: small against one trial, enough for axes not varied."""


def predict_ratio(x: Array, costs: Array, sizes: Index, new: Array) -> float:
    """Stage-1 cost over stage-2 cost of a new stage-1 configuration.

    The log of a stage-1 cost is modelled as linear in the axes, one effect per choice: factors such as epochs or a
    backbone multiply. The stage-2 cost is the mean of the recent ones, because their sum is what is paid.

    Args:
        x: coordinates (n, d) of the trials' stage-1 values.
        costs: their stage costs (n, 2), at least 0, NaN where unknown.
        sizes: number of choices per axis (d,), 0 for a number.
        new: coordinates (d,) of the new stage-1 configuration.
    """
    known1, known2 = costs[:, 0] > 0, ~np.isnan(costs[:, 1])
    if not known1.any() or not known2.any():
        return UNKNOWN_RATIO
    features = _features(np.concatenate([x[known1], new[None]]), sizes)
    logs = np.log(costs[known1, 0])
    centre, level = features[:-1].mean(axis=0), logs.mean()
    slopes = features[:-1] - centre
    weights = np.linalg.solve(slopes.T @ slopes + RIDGE * np.eye(slopes.shape[1]), slopes.T @ (logs - level))
    stage2 = float(costs[known2, 1][-RECENT:].mean())
    log2 = math.log(stage2) if stage2 > 0 else math.log(FREE) + float(level)
    return math.exp(level + float((features[-1] - centre) @ weights) - log2)


def _features(x: Array, sizes: Index) -> Array:
    """Numbers unchanged, choices one-hot, 0 for axes that a configuration lacks."""
    columns = [
        (x[:, j, None] == np.arange(size)).astype(np.float64) if size else np.nan_to_num(x[:, j, None])
        for j, size in enumerate(sizes)
    ]
    return np.concatenate(columns, axis=1)

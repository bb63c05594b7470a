"""What a stage 1 would cost beside a stage 2, predicted from the trials that have shown it."""

from __future__ import annotations

import math

import numpy as np

from lt_search.samplers.history import Index
from lt_search.samplers.parzen import Array

UNKNOWN_RATIO = 1.0
"""Where no trial has shown a cost, the stages are taken to cost the same."""

RECENT = 20
"""Stage 2s whose costs are averaged: a search moves to where it is good, and what it left says nothing of the next."""

FREE = 1e-3
"""What a stage 2 costs beside a stage 1 where every recent one took no time that could be measured."""

RIDGE = 0.1
"""Penalty on the slopes of the log cost over a unit of an axis: small against one trial, enough for axes not varied."""


def predict_ratio(x: Array, costs: Array, sizes: Index, new: Array) -> float:
    """Stage-1 cost over stage-2 cost of a new stage 1.

    The log of a stage-1 cost is taken to be linear in the axes, a choice having an effect of its own: factors such as
    epochs or a backbone multiply. A stage 2's cost is the mean of the recent ones, for it is their sum that is paid.

    Args:
        x: places (n, d) of the trials' stage-1 values.
        costs: their stage costs (n, 2), at least 0, NaN where unknown.
        sizes: number of choices per axis (d,), 0 for a number.
        new: place (d,) of the new stage 1.
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
    """Numbers as they are, choices one-hot, axes that a configuration lacks 0."""
    columns = [
        (x[:, j, None] == np.arange(size)).astype(np.float64) if size else np.nan_to_num(x[:, j, None])
        for j, size in enumerate(sizes)
    ]
    return np.concatenate(columns, axis=1)

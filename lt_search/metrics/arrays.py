"""Array types and helpers shared by all metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainers.task import Task

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]

WeightedMetric = Callable[[FloatArray], FloatArray]
"""Takes sample weights (B, N), all >= 0; gives per-class values (B, C), or (B,) for a pooled metric.

A value is NaN where the weights leave a class without what the metric needs.
"""


def truth_matrix(labels: npt.ArrayLike, n_classes: int) -> BoolArray:
    """Labels of either task as (N, C) booleans.

    Raises:
        ValueError: the labels are neither (N, C) nor class indices (N,) below C.
    """
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == n_classes:
        return array > 0.5
    if array.ndim != 1:
        raise ValueError(f"labels of shape {array.shape} for {n_classes} classes")
    if len(array) and (array.min() < 0 or array.max() >= n_classes):
        raise ValueError(f"class indices {array.min()} to {array.max()} for {n_classes} classes")
    one_hot: BoolArray = array[:, None] == np.arange(n_classes)
    return one_hot


def predictions(logits: FloatArray, task: Task) -> BoolArray:
    """(N, C) yes / no decisions: each label's own, or one class per image."""
    if task is Task.MULTI_LABEL:
        return logits > 0
    return truth_matrix(logits.argmax(axis=1), logits.shape[1])


def ratio(numerator: FloatArray, denominator: FloatArray, where_empty: float = np.nan) -> FloatArray:
    """Elementwise quotient, `where_empty` where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    quotient = np.full(shape, where_empty)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient

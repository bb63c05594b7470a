"""Metrics of class decisions: accuracy, F1, recall, Cohen's kappa, Matthews' correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lt_search.metrics.arrays import BoolArray, FloatArray, WeightedMetric, predictions, ratio
from trainers.task import Task


def prepare_binary_accuracy(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Accuracy per class, that of the yes / no decision for this class."""
    correct = (predictions(logits, task) == truth).astype(np.float64)
    return lambda weights: ratio(weights @ correct, weights.sum(axis=1, keepdims=True))


def prepare_f1(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """F1 per class: 2 TP / (positives + predicted positives)."""
    predicted = predictions(logits, task)
    hits = (predicted & truth).astype(np.float64)
    positives = truth.astype(np.float64)
    either = positives + predicted

    def f1(weights: FloatArray) -> FloatArray:
        values = ratio(2 * (weights @ hits), weights @ either)
        # Without positives F1 is 0 or undefined, depending on the model: it must be undefined for every model.
        return np.where(weights @ positives > 0, values, np.nan)

    return f1


def prepare_recall(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Recall per class."""
    hits = (predictions(logits, task) & truth).astype(np.float64)
    positives = truth.astype(np.float64)
    return lambda weights: ratio(weights @ hits, weights @ positives)


def prepare_accuracy(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """The share of images whose class is right; pooled over classes."""
    correct = (predictions(logits, task) & truth).any(axis=1).astype(np.float64)
    return lambda weights: ratio(weights @ correct, weights.sum(axis=1))


def prepare_macro_kappa(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Cohen's kappa per class, of the yes / no decisions for this class."""
    return _per_class_agreement(truth, predictions(logits, task), binary_kappa)


def binary_kappa(hits: FloatArray, rejections: FloatArray, alarms: FloatArray, misses: FloatArray) -> FloatArray:
    """Cohen's kappa of two-by-two tables, all arguments of one shape; NaN where truth and decisions never vary."""
    chance = (hits + misses) * (misses + rejections) + (hits + alarms) * (alarms + rejections)
    return ratio(2 * (hits * rejections - alarms * misses), chance)


def prepare_macro_mcc(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Matthews' correlation per class, of the yes / no decisions for this class; 0 where all of them are the same."""

    def mcc(hits: FloatArray, rejections: FloatArray, alarms: FloatArray, misses: FloatArray) -> FloatArray:
        spread = (hits + misses) * (hits + alarms) * (alarms + rejections) * (misses + rejections)
        return ratio(hits * rejections - alarms * misses, np.sqrt(spread), where_empty=0.0)

    return _per_class_agreement(truth, predictions(logits, task), mcc)


def prepare_kappa(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Cohen's kappa of the predicted with the true classes; pooled over classes."""

    def kappa(margins: _Margins) -> FloatArray:
        chance = (margins.true * margins.predicted).sum(axis=1)
        return ratio(margins.right * margins.total - chance, margins.total**2 - chance)

    return _agreement(truth, predictions(logits, task), kappa)


def prepare_mcc(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Matthews' correlation of several classes (R_K of Gorodkin 2004); 0 where all predictions are the same."""

    def mcc(margins: _Margins) -> FloatArray:
        total = margins.total
        covariance = margins.right * total - (margins.true * margins.predicted).sum(axis=1)
        spreads = (total**2 - (side**2).sum(axis=1) for side in (margins.true, margins.predicted))
        varied = (margins.predicted > 0).sum(axis=1) > 1
        values = ratio(covariance, np.sqrt(np.maximum(np.prod(list(spreads), axis=0), 0)), where_empty=0.0)
        return np.where(varied, values, 0.0)

    return _agreement(truth, predictions(logits, task), mcc)


def prepare_quadratic_kappa(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Cohen's kappa with quadratic weights: classes count as numbers, so that their order matters; pooled.

    One minus the mean squared difference of true and predicted class, over the one that chance would give.
    """
    predicted = predictions(logits, task)
    numbers = np.arange(truth.shape[1], dtype=np.float64)
    true_number, predicted_number = truth @ numbers, predicted @ numbers
    squared = (true_number - predicted_number) ** 2

    def kappa(margins: _Margins) -> FloatArray:
        products = (margins.true @ numbers) * (margins.predicted @ numbers)
        squares = (margins.true + margins.predicted) @ numbers**2
        return 1 - ratio(margins.weights @ squared, squares - 2 * products / margins.total)

    return _agreement(truth, predicted, kappa)


@dataclass(frozen=True)
class _Margins:
    """Weight by true class, by predicted class, and where both are the same."""

    weights: FloatArray
    """(B, N)."""
    true: FloatArray
    """(B, C)."""
    predicted: FloatArray
    """(B, C)."""
    right: FloatArray
    """(B,)."""
    total: FloatArray
    """(B,)."""


def _agreement(truth: BoolArray, predicted: BoolArray, value: Callable[[_Margins], FloatArray]) -> WeightedMetric:
    """A pooled metric of the agreement of predicted and true classes, NaN where there is only one true class.

    Args:
        truth: (N, C), one class an image.
        predicted: (N, C), one class an image.
        value: gives (B,).
    """
    true, right = truth.astype(np.float64), (predicted & truth).any(axis=1).astype(np.float64)

    def metric(weights: FloatArray) -> FloatArray:
        of_class = weights @ true
        defined = (of_class > 0).sum(axis=1) > 1
        values = np.full(len(weights), np.nan)
        own = weights[defined]
        margins = _Margins(own, of_class[defined], own @ predicted.astype(np.float64), own @ right, own.sum(axis=1))
        values[defined] = value(margins)
        return values

    return metric


def _per_class_agreement(
    truth: BoolArray,
    predicted: BoolArray,
    value: Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray],
) -> WeightedMetric:
    """A metric of each class's two-by-two table, NaN where all images or none are of the class.

    Args:
        truth: (N, C).
        predicted: (N, C).
        value: takes the weight of true positives, true negatives, false positives and false negatives, all
            (B, C), gives (B, C).
    """
    cells = (truth & predicted, ~truth & ~predicted, ~truth & predicted, truth & ~predicted)
    tables = [cell.astype(np.float64) for cell in cells]

    def metric(weights: FloatArray) -> FloatArray:
        hits, rejections, alarms, misses = (weights @ table for table in tables)
        defined = (hits + misses > 0) & (rejections + alarms > 0)
        return np.where(defined, value(hits, rejections, alarms, misses), np.nan)

    return metric

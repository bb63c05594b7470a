"""Multi-label metrics pooled over labels, as in the ODIR-5K challenge.

Its script flattens truth and probabilities of all patients and the 8 labels, decides at probability 0.5, and gives
Cohen's kappa, micro F1, AUC and, as the final score, their mean (LDRNet specification, section 6). Micro F1 of two
exclusive outcomes is plain accuracy, which is also `mACC`: every label has as many images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_search.metrics.arrays import BoolArray, FloatArray, WeightedMetric, predictions, ratio
from lt_search.metrics.decisions import binary_kappa
from lt_search.metrics.ranking import prepare_auc
from trainers.task import Task


def prepare_pooled_kappa(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Cohen's kappa of all decisions; NaN where all labels of all images are the same."""
    table = _Decisions(truth, predictions(logits, task))

    def kappa(weights: FloatArray) -> FloatArray:
        hits, rejections, alarms, misses = table.weigh(weights)
        defined = (hits + misses > 0) & (rejections + alarms > 0)
        return np.where(defined, binary_kappa(hits, rejections, alarms, misses), np.nan)

    return kappa


def prepare_pooled_f1(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Micro F1 over both outcomes of all decisions, which is the share of right ones."""
    table = _Decisions(truth, predictions(logits, task))

    def f1(weights: FloatArray) -> FloatArray:
        hits, rejections, alarms, misses = table.weigh(weights)
        return ratio(hits + rejections, hits + rejections + alarms + misses)

    return f1


def prepare_pooled_auc(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """AUC of one ranking of all labels of all images; NaN where all of them are the same."""
    n_labels = truth.shape[1]
    auc = prepare_auc(truth.reshape(-1, 1), logits.reshape(-1, 1), task)

    def metric(weights: FloatArray) -> FloatArray:
        # One row at a time: all flattened weights together would take C times the memory of any other metric.
        return np.array([auc(row.repeat(n_labels)[None])[0, 0] for row in weights])

    return metric


def prepare_odir_score(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """The final score of the ODIR-5K challenge: the mean of flattened kappa, F1 and AUC."""
    prepared = [part(truth, logits, task) for part in (prepare_pooled_kappa, prepare_pooled_f1, prepare_pooled_auc)]
    return lambda weights: _mean([metric(weights) for metric in prepared])


class _Decisions:
    """How many decisions of each image are right and wrong."""

    def __init__(self, truth: BoolArray, predicted: BoolArray) -> None:
        cells = (truth & predicted, ~truth & ~predicted, ~truth & predicted, truth & ~predicted)
        self._counts = [cell.sum(axis=1).astype(np.float64) for cell in cells]

    def weigh(self, weights: FloatArray) -> tuple[FloatArray, ...]:
        """Weight (B,) of true positives, true negatives, false positives and false negatives."""
        return tuple(weights @ count for count in self._counts)


def _mean(values: Sequence[FloatArray]) -> FloatArray:
    mean: FloatArray = np.mean(values, axis=0)
    return mean

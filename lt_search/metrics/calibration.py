"""Expected calibration error.

Probabilities fall into 15 bins of equal width, closed above, as in Guo et al. (ICML 2017). The error is the sum over
bins of the bin's share of the weight times |mean outcome - mean probability|. It is better when smaller.
"""

from __future__ import annotations

import numpy as np

from lt_search.metrics.arrays import BoolArray, FloatArray, IntArray, WeightedMetric, ratio
from trainers.task import Task

BINS = 15

_INNER_EDGES = np.linspace(0, 1, BINS + 1)[1:-1]


def prepare_ece(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Multi-class: of the largest softmax probability of each image, which is right if its class is; pooled."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = exponentials.max(axis=1) / exponentials.sum(axis=1)
    right = truth[np.arange(len(truth)), logits.argmax(axis=1)]
    bins = _bins(confidence)
    gaps: FloatArray = right - confidence
    return lambda weights: _error(weights, bins, gaps)


def prepare_macro_ece(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Multi-label, per class: of the sigmoid probability that the class is present, which is right if it is.

    Per class, since pooled over classes an overestimated class would cancel an underestimated one.
    """
    probabilities = np.exp(-np.logaddexp(0, -logits))
    bins = _bins(probabilities)
    gaps: FloatArray = truth - probabilities

    def errors(weights: FloatArray) -> FloatArray:
        return np.column_stack([_error(weights, bins[:, index], gaps[:, index]) for index in range(truth.shape[1])])

    return errors


def _bins(probabilities: FloatArray) -> IntArray:
    """The bin of each probability."""
    return np.searchsorted(_INNER_EDGES, probabilities, side="left")


def _error(weights: FloatArray, bins: IntArray, gaps: FloatArray) -> FloatArray:
    """(B,) errors under weights (B, N), from bins (N,) and outcome minus probability (N,)."""
    by_bin = np.zeros((len(gaps), BINS))
    by_bin[np.arange(len(gaps)), bins] = gaps
    return ratio(np.abs(weights @ by_bin).sum(axis=1), weights.sum(axis=1))

"""Metrics of the ranking of images within a class, exact with ties: average precision and AUC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lt_search.metrics.arrays import BoolArray, FloatArray, IntArray, WeightedMetric, ratio
from trainers.task import Task


def prepare_average_precision(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """AP per class: the sum over thresholds of (gain in recall) x (precision), as in scikit-learn."""

    def value(positive: FloatArray, total: FloatArray) -> FloatArray:
        precision = ratio(positive.cumsum(axis=0), total.cumsum(axis=0), where_empty=0.0)
        return ratio((positive * precision).sum(axis=0), positive.sum(axis=0))

    return _per_class_ranking(truth, _ranking_scores(logits, task), value)


def prepare_auc(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """AUC per class: the weighted share of (positive, negative) pairs in the right order, ties half."""

    def value(positive: FloatArray, total: FloatArray) -> FloatArray:
        negative = total - positive
        n_negative = negative.sum(axis=0)
        below = n_negative - negative.cumsum(axis=0) + negative / 2
        return ratio((positive * below).sum(axis=0), positive.sum(axis=0) * n_negative)

    return _per_class_ranking(truth, _ranking_scores(logits, task), value)


def _per_class_ranking(
    truth: BoolArray, scores: FloatArray, value: Callable[[FloatArray, FloatArray], FloatArray]
) -> WeightedMetric:
    """A metric of each class's ranking of the images.

    Args:
        truth: (N, C).
        scores: (N, C).
        value: takes the weights of positives and of all images in each of G segments of the ranking, both
            (G, B) and from the highest scores to the lowest, gives (B,).
    """
    rankings = [_Ranking.of(truth[:, index], scores[:, index]) for index in range(truth.shape[1])]

    def metric(weights: FloatArray) -> FloatArray:
        values = np.full((len(weights), len(rankings)), np.nan)
        by_image = np.ascontiguousarray(weights.T)  # a row per image: gathering rows is the fast direction
        for index, ranking in enumerate(rankings):
            if ranking is not None:
                values[:, index] = value(*ranking.segment_weights(by_image))
        return values

    return metric


@dataclass(frozen=True)
class _Ranking:
    """Images of one class by falling score, cut into segments.

    A segment is either all images that share one score, with a positive among them, or the negatives between two
    such scores. A ranking metric changes at no finer scale, so ties are exact, and a rare class, which has few
    segments, costs little.
    """

    order: IntArray
    """(N,) images by falling score."""
    starts: IntArray
    """(G,) where in `order` each segment starts."""
    positives: IntArray
    """(P,) positive images by falling score."""
    positive_starts: IntArray
    """Where in `positives` each segment that has positives starts."""
    positive_segments: IntArray
    """The numbers of those segments."""

    @classmethod
    def of(cls, truth: BoolArray, scores: FloatArray) -> _Ranking | None:
        """The ranking of N images, or None where none is positive."""
        if not truth.any():
            return None
        order = np.argsort(-scores, kind="stable")
        ranked_scores, ranked_truth = scores[order], truth[order]
        tie = np.concatenate([[0], np.cumsum(ranked_scores[1:] != ranked_scores[:-1])])
        has_positive = np.bincount(tie, weights=ranked_truth)[tie] > 0
        new_segment = (has_positive[1:] & (tie[1:] != tie[:-1])) | (has_positive[1:] != has_positive[:-1])
        segment = np.concatenate([[0], np.cumsum(new_segment)])
        segments, positive_starts = np.unique(segment[ranked_truth], return_index=True)
        return cls(
            order=order,
            starts=np.unique(segment, return_index=True)[1],
            positives=order[ranked_truth],
            positive_starts=positive_starts,
            positive_segments=segments,
        )

    def segment_weights(self, by_image: FloatArray) -> tuple[FloatArray, FloatArray]:
        """From weights (N, B), those of positives and of all images per segment, both (G, B)."""
        total = np.add.reduceat(by_image[self.order], self.starts, axis=0)
        positive = np.zeros_like(total)
        positive[self.positive_segments] = np.add.reduceat(by_image[self.positives], self.positive_starts, axis=0)
        return positive, total


def _ranking_scores(logits: FloatArray, task: Task) -> FloatArray:
    """(N, C) scores that order the images of a class as its probabilities do."""
    if task is Task.MULTI_LABEL:
        return logits  # the sigmoid keeps the order, and its rounding would add ties
    # Log-softmax as z - z_max - log(1 + rest): neither large nor small probabilities round to ties. Summing in
    # order of size keeps real ties, those of logits that differ by a permutation or a shift.
    shifted = logits - logits.max(axis=1, keepdims=True)
    rest = np.exp(np.sort(shifted, axis=1)[:, :-1]).sum(axis=1, keepdims=True)
    log_probabilities: FloatArray = shifted - np.log1p(rest)
    return log_probabilities

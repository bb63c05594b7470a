"""Bootstrap standard errors and confidence intervals of metrics, resampling patients or groups.

A replicate draws as many groups (patients, groups, or images where there is neither) as there are, with replacement,
and takes all images of a drawn group, as often as it was drawn. Images of one patient are not independent, so that
resampling single images would understate the error.

A replicate without a positive of a class cannot score it; its macro mean is taken over the other counted classes. A
replicate that can score no class is NaN, and excluded from standard errors and intervals.

The same groups, number of replicates and seed give the same resamples, whatever the metric and model, so two models
can be compared replicate by replicate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lt_search.metrics.arrays import FloatArray, IntArray
from lt_search.metrics.class_groups import ClassGroups
from lt_search.metrics.evaluate import METRICS, checked_arrays, counted_classes, mean_over, score
from trainers.task import Task

_CHUNK_BYTES = 8 * 2**20
"""Size of one chunk of weights. A metric holds a handful of arrays of that size, which fit into cache."""


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """The difference between two models on the same images, model A minus model B."""

    difference: float
    """Value of A minus value of B on the images themselves."""
    standard_error: float
    """Standard deviation of the difference over resamples that A and B share."""
    interval: Interval
    """Percentile interval of that difference."""


@dataclass(frozen=True)
class ScoreErrors:
    """Bootstrap standard errors of one metric: of the macro value, the class groups and the classes."""

    overall: float
    groups: Mapping[str, float]
    """By `head`, `medium`, `tail`; only those that have a counted class. Empty for a pooled metric."""
    per_class: tuple[float, ...]
    """C values in class order, NaN for a class that is not counted. Empty for a pooled metric."""


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """The bootstrap of one metric on one split; every method takes a model's logits (N, C).

    Every method raises ValueError where the shapes of labels, logits and groups do not agree or the metric does not
    apply to the task. Values are NaN where they are undefined: a logit is NaN or infinite, the split has no class to
    count, or, for standard errors and intervals, there are fewer than two groups.
    """

    metric: str
    """A key of `METRICS` that applies to `task`."""
    task: Task
    labels: npt.ArrayLike
    """(N,) class indices for multi-class, (N, C) 0 / 1 for multi-label."""
    groups: Sequence[str]
    """(N,) the patient or group of each image."""
    seed: int = 0
    """Of the resamples."""

    def replicates(self, logits: npt.ArrayLike, n_replicates: int = 200) -> FloatArray:
        """The metric's value in each replicate, (B,)."""
        counted = self._counted(logits)
        pooled = METRICS[self.metric].pooled
        return self._resample(logits, n_replicates, lambda values: values if pooled else mean_over(values, counted))

    def class_replicates(self, logits: npt.ArrayLike, n_replicates: int = 200) -> FloatArray:
        """The per-class values in each replicate, (B, C); NaN where a replicate cannot score a class.

        Raises:
            ValueError: the metric is pooled over classes.
        """
        if METRICS[self.metric].pooled:
            raise ValueError(f"{self.metric} has no per-class values")
        return self._resample(logits, n_replicates, lambda values: values)

    def standard_error(self, logits: npt.ArrayLike, n_replicates: int = 200) -> float:
        """The standard deviation of `replicates`."""
        return self._deviation(self.replicates(logits, n_replicates))

    def interval(self, logits: npt.ArrayLike, n_replicates: int = 1000, confidence: float = 0.95) -> Interval:
        """Percentile interval of `replicates` with their bias removed; it holds the share `confidence` of them.

        A resample repeats images and may lose a rare class's positives, which moves mAP up on average: that bias, the
        mean of the replicates minus the value on the images themselves, is subtracted from both ends.
        """
        values = self.replicates(logits, n_replicates)
        found = self._percentiles(values, score(self.metric, self.task, self.labels, logits), confidence)
        # The shift may move an end beyond what the metric can be.
        low, high = np.clip(found, METRICS[self.metric].lowest, 1.0)
        return Interval(float(low), float(high))

    def score_errors(self, logits: npt.ArrayLike, class_groups: ClassGroups, n_replicates: int = 200) -> ScoreErrors:
        """Standard errors of the macro value, of head, medium and tail, and of every class.

        For a class with positives in one group only, the standard error is that over the replicates that drew this
        group, which is too small.
        """
        if METRICS[self.metric].pooled:
            return ScoreErrors(self.standard_error(logits, n_replicates), {}, ())
        counted = self._counted(logits)
        values = self.class_replicates(logits, n_replicates)
        of_groups = {}
        for name, members in class_groups.items():
            counted_members = [index for index in members if index in counted]
            if counted_members:
                of_groups[name] = self._deviation(mean_over(values, counted_members))
        return ScoreErrors(
            overall=self._deviation(mean_over(values, counted)),
            groups=of_groups,
            per_class=tuple(
                self._deviation(column) if index in counted else math.nan for index, column in enumerate(values.T)
            ),
        )

    def paired_difference(
        self, logits_a: npt.ArrayLike, logits_b: npt.ArrayLike, n_replicates: int = 1000, confidence: float = 0.95
    ) -> PairedDifference:
        """Compares two models on the same images and resamples, so that what is hard for both cancels out."""
        drawn = self.replicates(logits_a, n_replicates) - self.replicates(logits_b, n_replicates)
        a, b = (score(self.metric, self.task, self.labels, logits) for logits in (logits_a, logits_b))
        return PairedDifference(a - b, self._deviation(drawn), self._percentiles(drawn, a - b, confidence))

    def _resample(
        self, logits: npt.ArrayLike, n_replicates: int, reduce: Callable[[FloatArray], FloatArray]
    ) -> FloatArray:
        """`reduce` of the metric's weighted values, over all replicates, chunk by chunk."""
        metric = METRICS[self.metric]
        truth, scores = checked_arrays(self.labels, logits)
        if len(self.groups) != len(truth):
            raise ValueError(f"{len(self.groups)} groups for {len(truth)} images")
        if self.task not in metric.tasks:
            raise ValueError(f"{self.metric} does not apply to {self.task} data")
        if not np.isfinite(scores).all():
            return reduce(np.full((n_replicates, *(() if metric.pooled else (scores.shape[1],))), np.nan))
        values = metric.prepare(truth, scores, self.task)
        return np.concatenate(
            [reduce(values(weights)) for weights in resample_weights(self.groups, n_replicates, self.seed)]
        )

    def _counted(self, logits: npt.ArrayLike) -> tuple[int, ...]:
        truth, _ = checked_arrays(self.labels, logits)
        return counted_classes(self.metric, truth, truth.shape[1])

    def _deviation(self, values: FloatArray) -> float:
        """Standard deviation of those replicates that could be scored."""
        scored = values[~np.isnan(values)]
        if len(scored) < 2 or len(set(self.groups)) < 2:
            return math.nan
        return float(scored.std(ddof=1))

    def _percentiles(self, values: FloatArray, estimate: float, confidence: float) -> Interval:
        """The central share `confidence` of those replicates that could be scored, minus their bias."""
        scored = values[~np.isnan(values)]
        if len(scored) < 2 or len(set(self.groups)) < 2:
            return Interval(math.nan, math.nan)
        bias = scored.mean() - estimate
        low, high = np.quantile(scored - bias, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(float(low), float(high))


def resample_weights(groups: Sequence[str], n_replicates: int, seed: int) -> Iterator[FloatArray]:
    """How often each image is in each replicate, some replicates at a time.

    Args:
        groups: (N,) the patient or group of each image.
        n_replicates: B.
        seed: the same seed gives the same resamples; the first B of a longer run are the same, too.

    Yields:
        (b, N) integers, as floats; B rows in all.
    """
    group_of_image = _group_numbers(groups)
    n_groups = int(group_of_image.max(initial=-1)) + 1
    chunk = max(1, _CHUNK_BYTES // (8 * max(1, len(groups))))
    rng = np.random.default_rng(seed)
    for start in range(0, n_replicates, chunk):
        size = min(chunk, n_replicates - start)
        # n_groups draws a replicate, counted: a multinomial, faster than drawing from one.
        drawn = rng.integers(n_groups, size=(size, n_groups)) if n_groups else np.empty((size, 0), np.intp)
        drawn += np.arange(size)[:, None] * n_groups
        counts = np.bincount(drawn.ravel(), minlength=size * n_groups).reshape(size, n_groups)
        # A row per image in memory, which is how ranking metrics read it.
        yield counts.T.astype(np.float64)[group_of_image].T


def _group_numbers(groups: Sequence[str]) -> IntArray:
    """Groups numbered in order of first appearance, so that no resample depends on how groups are called."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(group, len(numbers)) for group in groups), np.intp, len(groups))

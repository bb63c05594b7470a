"""How sure a metric is: bootstrap over patients or groups.

A replicate draws as many units (patients, groups, or images where there is neither) as there are, with
replacement, and takes all images of a drawn unit, as often as it was drawn. Images of one patient are not
independent, so that resampling images would claim too much.

A replicate that drew no positive of a class cannot score it; its macro mean is the one over the other counted
classes. A replicate that can score no class at all is NaN and left out of what is computed from replicates.

The same units, number of replicates and seed give the same resamples, whatever the metric and model, so two
models can be compared draw by draw.
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
"""Size of one chunk of weights. A metric holds a handful of arrays of that size, and they fit near the core."""


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """By how much model A is better than model B on the same images."""

    difference: float
    """Value of A minus value of B on the images themselves."""
    standard_error: float
    """Standard deviation of the difference over resamples that A and B share."""
    interval: Interval
    """Percentile interval of that difference."""


@dataclass(frozen=True)
class ScoreErrors:
    """Bootstrap standard errors of one metric: of the macro value, the groups and the classes."""

    overall: float
    groups: Mapping[str, float]
    """By `head`, `medium`, `tail`; only groups that have a counted class. Empty for a pooled metric."""
    per_class: tuple[float, ...]
    """C values in class order, NaN for a class that is not counted. Empty for a pooled metric."""


def unit_weights(units: Sequence[str], n_replicates: int, seed: int) -> FloatArray:
    """How often each image is in each replicate.

    Args:
        units: (N,) the patient or group of each image.
        n_replicates: B.
        seed: the same seed gives the same resamples; the first B of a longer run are the same, too.

    Returns:
        (B, N) whole numbers.
    """
    chunks = [np.empty((0, len(units))), *_weight_chunks(units, n_replicates, seed)]
    return np.concatenate(chunks)


def replicates(
    metric: str,
    task: Task,
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    units: Sequence[str],
    *,
    n_replicates: int = 200,
    seed: int = 0,
) -> FloatArray:
    """The metric's value in each replicate.

    Args:
        metric: a key of `METRICS` that applies to `task`.
        task: the task.
        labels: (N,) class indices for multi-class, (N, C) 0 / 1 for multi-label.
        logits: (N, C).
        units: (N,) the patient or group of each image.
        n_replicates: B.
        seed: seed of the resamples.

    Returns:
        (B,) values; all NaN where a logit is NaN or infinite or where the split has no class to count.

    Raises:
        ValueError: the shapes of labels, logits and units do not agree.
    """
    counted = _counted(metric, labels, logits)

    def overall(values: FloatArray) -> FloatArray:
        return values if METRICS[metric].pooled else mean_over(values, counted)

    return _resample(metric, task, labels, logits, units, n_replicates=n_replicates, seed=seed, reduce=overall)


def class_replicates(
    metric: str,
    task: Task,
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    units: Sequence[str],
    *,
    n_replicates: int = 200,
    seed: int = 0,
) -> FloatArray:
    """The per-class values in each replicate, (B, C); NaN where a replicate cannot score a class.

    Arguments and errors as for `replicates`; not for pooled metrics (ValueError).
    """
    if METRICS[metric].pooled:
        raise ValueError(f"{metric} has no per-class values")
    return _resample(
        metric, task, labels, logits, units, n_replicates=n_replicates, seed=seed, reduce=lambda values: values
    )


def standard_error(
    metric: str,
    task: Task,
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    units: Sequence[str],
    *,
    n_replicates: int = 200,
    seed: int = 0,
) -> float:
    """Bootstrap standard error: the standard deviation of `replicates`, which see for the arguments.

    Returns:
        NaN where it cannot be known: a logit is not finite, the split has no class to count, or there are
        fewer than two units.
    """
    values = replicates(metric, task, labels, logits, units, n_replicates=n_replicates, seed=seed)
    return _deviation(values, units)


def interval(
    metric: str,
    task: Task,
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    units: Sequence[str],
    *,
    n_replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of `replicates` (which see for the arguments), shifted so that it has no bias.

    A resample repeats images and may lose a rare class's positives, which moves mAP up on average: that shift, the mean
    of the replicates minus the value on the images themselves, is taken off both ends.

    Args:
        confidence: share of replicates inside the interval.

    Returns:
        (NaN, NaN) where `standard_error` would be NaN.
    """
    values = replicates(metric, task, labels, logits, units, n_replicates=n_replicates, seed=seed)
    found = _percentiles(values, score(metric, task, labels, logits), units, confidence)
    # The shift may move an end beyond what the metric can be.
    low, high = np.clip(found, METRICS[metric].lowest, 1.0)
    return Interval(float(low), float(high))


def score_errors(
    metric: str,
    task: Task,
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    units: Sequence[str],
    *,
    groups: ClassGroups,
    n_replicates: int = 200,
    seed: int = 0,
) -> ScoreErrors:
    """Standard errors of the macro value, of head, medium and tail, and of every class.

    Arguments as for `replicates`. A class with positives in one unit only has the error of the replicates that
    drew this unit, which is too small.
    """
    if METRICS[metric].pooled:
        error = standard_error(metric, task, labels, logits, units, n_replicates=n_replicates, seed=seed)
        return ScoreErrors(error, {}, ())
    counted = _counted(metric, labels, logits)
    values = class_replicates(metric, task, labels, logits, units, n_replicates=n_replicates, seed=seed)
    of_groups = {}
    for group, members in groups.items():
        counted_members = [index for index in members if index in counted]
        if counted_members:
            of_groups[group] = _deviation(mean_over(values, counted_members), units)
    return ScoreErrors(
        overall=_deviation(mean_over(values, counted), units),
        groups=of_groups,
        per_class=tuple(
            _deviation(column, units) if index in counted else math.nan for index, column in enumerate(values.T)
        ),
    )


def paired_difference(
    metric: str,
    task: Task,
    labels: npt.ArrayLike,
    logits_a: npt.ArrayLike,
    logits_b: npt.ArrayLike,
    *,
    units: Sequence[str],
    n_replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedDifference:
    """Compares two models on the same images and resamples, so that what both find hard cancels out.

    Arguments and errors as for `replicates` and `interval`; both logits are (N, C).
    """
    a = replicates(metric, task, labels, logits_a, units, n_replicates=n_replicates, seed=seed)
    b = replicates(metric, task, labels, logits_b, units, n_replicates=n_replicates, seed=seed)
    difference = score(metric, task, labels, logits_a) - score(metric, task, labels, logits_b)
    return PairedDifference(
        difference=difference,
        standard_error=_deviation(a - b, units),
        interval=_percentiles(a - b, difference, units, confidence),
    )


def _resample(
    metric: str,
    task: Task,
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    units: Sequence[str],
    *,
    n_replicates: int,
    seed: int,
    reduce: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """`reduce` of the metric's weighted values, over all replicates, chunk by chunk."""
    truth, scores = checked_arrays(labels, logits)
    if len(units) != len(truth):
        raise ValueError(f"{len(units)} units for {len(truth)} images")
    if task not in METRICS[metric].tasks:
        raise ValueError(f"{metric} does not apply to {task} data")
    if not np.isfinite(scores).all():
        per_class = () if METRICS[metric].pooled else (scores.shape[1],)
        return reduce(np.full((n_replicates, *per_class), np.nan))
    values = METRICS[metric].prepare(truth, scores, task)
    return np.concatenate([reduce(values(weights)) for weights in _weight_chunks(units, n_replicates, seed)])


def _weight_chunks(units: Sequence[str], n_replicates: int, seed: int) -> Iterator[FloatArray]:
    """The rows of `unit_weights`, some at a time."""
    unit_of_image = _unit_numbers(units)
    n_units = int(unit_of_image.max(initial=-1)) + 1
    chunk = max(1, _CHUNK_BYTES // (8 * max(1, len(units))))
    rng = np.random.default_rng(seed)
    for start in range(0, n_replicates, chunk):
        size = min(chunk, n_replicates - start)
        # n_units draws a replicate, counted: a multinomial, faster than drawing from one.
        drawn = rng.integers(n_units, size=(size, n_units)) if n_units else np.empty((size, 0), np.intp)
        drawn += np.arange(size)[:, None] * n_units
        counts = np.bincount(drawn.ravel(), minlength=size * n_units).reshape(size, n_units)
        # A row per image in memory, which is how ranking metrics read it.
        yield counts.T.astype(np.float64)[unit_of_image].T


def _unit_numbers(units: Sequence[str]) -> IntArray:
    """Units numbered in order of first appearance, so that no resample depends on how units are called."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(unit, len(numbers)) for unit in units), np.intp, len(units))


def _counted(metric: str, labels: npt.ArrayLike, logits: npt.ArrayLike) -> tuple[int, ...]:
    truth, _ = checked_arrays(labels, logits)
    return counted_classes(metric, truth, truth.shape[1])


def _deviation(values: FloatArray, units: Sequence[str]) -> float:
    """Standard deviation of those replicates that could be scored."""
    scored = values[~np.isnan(values)]
    if len(scored) < 2 or len(set(units)) < 2:
        return math.nan
    return float(scored.std(ddof=1))


def _percentiles(values: FloatArray, estimate: float, units: Sequence[str], confidence: float) -> Interval:
    """The central share `confidence` of those replicates that could be scored, less their bias."""
    scored = values[~np.isnan(values)]
    if len(scored) < 2 or len(set(units)) < 2:
        return Interval(math.nan, math.nan)
    bias = scored.mean() - estimate
    low, high = np.quantile(scored - bias, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))

"""Metrics of long-tailed classification, exact with ties and vectorised over sets of sample weights.

Every metric is a function of sample weights: the plain metric is the one with all weights 1, and a bootstrap
replicate is the one whose weights count how often each image was drawn (see `lt_search.bootstrap`). NumPy only.

A macro metric averages over the classes that have what the metric needs in the split, `counted_classes`. That
is a fact of the split and never of the model. Beyond it nothing is skipped: a NaN or infinite logit makes
every value NaN, since a number computed from the rest would hide a model that has diverged.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lt_search.class_groups import ClassGroups
from lt_search.errors import Problem, UserError
from trainers.task import Task

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]

WeightedMetric = Callable[[FloatArray], FloatArray]
"""Takes sample weights (B, N), all >= 0; gives per-class values (B, C), or (B,) for a pooled metric.

A value is NaN where the weights leave a class without what the metric needs.
"""


class Needs(Enum):
    """What a class must have in a split to be counted in a macro metric."""

    IMAGES = "images"
    """Nothing of its own: any image, positive or negative, says something."""
    POSITIVES = "positives"
    """At least one image of the class."""
    BOTH = "positives and negatives"
    """At least one image of the class and one of another class or without it."""


@dataclass(frozen=True)
class Metric:
    """A metric a search can maximise."""

    name: str
    """What users type."""
    title: str
    """What reports print: the macro metric, in words."""
    class_title: str
    """The per-class value, in words; for a pooled metric the metric itself."""
    tasks: frozenset[Task]
    """The tasks it applies to."""
    needs: Needs
    prepare: Callable[[BoolArray, FloatArray, Task], WeightedMetric]
    """Takes truth (N, C), finite logits (N, C) and the task; what does not depend on weights happens here."""
    pooled: bool = False
    """True where the metric counts images whatever their class, so that it has no per-class values."""
    direction: Literal["maximize"] = "maximize"
    """Every metric here is better when larger; Optuna's word for it."""


@dataclass(frozen=True)
class Evaluation:
    """All metrics of one set of logits."""

    scalars: Mapping[str, float]
    """By name: every macro or pooled metric of the task, and `{metric}_head`, `_medium` and `_tail` means for
    those groups that have a counted class. NaN only where a logit is not finite or no class is counted."""
    per_class: Mapping[str, tuple[float, ...]]
    """By metric name, C values in class order; NaN for a class that is not counted."""

    def to_json(self) -> dict[str, Any]:
        """A dict for `json.dump`, in which NaN, which JSON does not know, is None."""
        return {
            "scalars": {name: _none_if_nan(value) for name, value in self.scalars.items()},
            "per_class": {name: [_none_if_nan(v) for v in values] for name, values in self.per_class.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_json` gave."""
        return cls(
            scalars={name: _nan_if_none(value) for name, value in data["scalars"].items()},
            per_class={name: tuple(_nan_if_none(v) for v in vs) for name, vs in data["per_class"].items()},
        )


def metrics_for(task: Task) -> tuple[Metric, ...]:
    """The metrics that apply to `task`; the first one is the task's main metric."""
    return tuple(sorted((m for m in METRICS.values() if task in m.tasks), key=lambda m: m.name != _MAIN[task]))


def check_metric(name: str, task: Task, place: str = "--metric") -> Metric:
    """The metric called `name`.

    Args:
        name: what the user typed.
        task: the task of the data.
        place: where the user typed it.

    Raises:
        UserError: there is no such metric, or it does not apply to `task`.
    """
    valid = [metric.name for metric in metrics_for(task)]
    if name in valid:
        return METRICS[name]
    by_lower_case = {known.lower(): known for known in valid}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    what = f"{name!r} does not apply to {task} data" if name in METRICS else f"there is no metric {name!r}"
    hint = f"did you mean {by_lower_case[close[0]]}? " if close else ""
    raise UserError(Problem(place, what, f"{hint}metrics for {task} data: {', '.join(valid)}"))


def counted_classes(metric: str, labels: npt.ArrayLike, n_classes: int) -> tuple[int, ...]:
    """The classes that have in this split what `metric` needs; its macro average runs over them.

    Args:
        metric: a key of `METRICS`.
        labels: (N,) class indices or (N, C) 0 / 1.
        n_classes: C.

    Returns:
        Class indices in class order; empty where the split cannot be scored by this metric at all.
    """
    truth = truth_matrix(labels, n_classes)
    needs = METRICS[metric].needs
    counted = np.full(n_classes, len(truth) > 0)
    if needs in {Needs.POSITIVES, Needs.BOTH}:
        counted &= truth.any(axis=0)
    if needs is Needs.BOTH:
        counted &= ~truth.all(axis=0)
    return tuple(int(index) for index in np.flatnonzero(counted))


def evaluate(task: Task, labels: npt.ArrayLike, logits: npt.ArrayLike, groups: ClassGroups) -> Evaluation:
    """Scores logits by every metric of `task`.

    A multi-label class is predicted where its logit is above 0 (probability above 0.5), a multi-class image as
    its largest logit. Multi-class AUC and AP rank by the softmax probability, one class against the rest.

    Args:
        task: the task.
        labels: (N,) class indices for multi-class, (N, C) 0 / 1 for multi-label.
        logits: (N, C).
        groups: which classes are head, medium and tail.

    Raises:
        ValueError: the shapes of labels, logits and groups do not agree.
    """
    truth, scores = checked_arrays(labels, logits)
    n_classes = truth.shape[1]
    if groups.n_classes != n_classes:
        raise ValueError(f"groups of {groups.n_classes} classes for logits of {n_classes}")
    finite = bool(np.isfinite(scores).all())
    weights = np.ones((1, len(truth)))
    scalars: dict[str, float] = {}
    per_class: dict[str, tuple[float, ...]] = {}
    for metric in metrics_for(task):
        counted = counted_classes(metric.name, truth, n_classes)
        if metric.pooled:
            scalars[metric.name] = (
                float(metric.prepare(truth, scores, task)(weights)[0]) if finite and counted else math.nan
            )
            continue
        values = np.full((1, n_classes), np.nan)
        if finite and counted:
            values[:, counted] = metric.prepare(truth, scores, task)(weights)[:, counted]
        per_class[metric.name] = tuple(values[0].tolist())
        scalars[metric.name] = float(mean_over(values, counted)[0])
        for group, members in groups.items():
            counted_members = tuple(index for index in members if index in counted)
            if counted_members:
                scalars[f"{metric.name}_{group}"] = float(mean_over(values, counted_members)[0])
    return Evaluation(scalars, per_class)


def mean_over(values: FloatArray, classes: Sequence[int]) -> FloatArray:
    """The macro average (B,) of per-class values (B, C) over `classes`, without those that are NaN.

    NaN where nothing is left. With all weights 1 nothing that is counted is NaN, so this is the plain mean.
    """
    chosen = values[:, list(classes)]
    defined = ~np.isnan(chosen)
    return _ratio(np.where(defined, chosen, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


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


def checked_arrays(labels: npt.ArrayLike, logits: npt.ArrayLike) -> tuple[BoolArray, FloatArray]:
    """Truth (N, C) and float64 logits (N, C).

    Raises:
        ValueError: the shapes do not agree.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"logits of shape {scores.shape}, expected (N, C)")
    truth = truth_matrix(labels, scores.shape[1])
    if len(truth) != len(scores):
        raise ValueError(f"{len(truth)} labels for {len(scores)} rows of logits")
    return truth, scores


def _prepare_average_precision(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """AP per class: the sum over thresholds of (gain in recall) x (precision), as in scikit-learn."""

    def value(positive: FloatArray, total: FloatArray) -> FloatArray:
        precision = _ratio(positive.cumsum(axis=0), total.cumsum(axis=0), where_empty=0.0)
        return _ratio((positive * precision).sum(axis=0), positive.sum(axis=0))

    return _per_class_ranking(truth, _ranking_scores(logits, task), value)


def _prepare_auc(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """AUC per class: the weighted share of (positive, negative) pairs in the right order, ties half."""

    def value(positive: FloatArray, total: FloatArray) -> FloatArray:
        negative = total - positive
        n_negative = negative.sum(axis=0)
        below = n_negative - negative.cumsum(axis=0) + negative / 2
        return _ratio((positive * below).sum(axis=0), positive.sum(axis=0) * n_negative)

    return _per_class_ranking(truth, _ranking_scores(logits, task), value)


def _prepare_binary_accuracy(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Accuracy per class, that of the yes / no decision for this class."""
    correct = (_predictions(logits, task) == truth).astype(np.float64)
    return lambda weights: _ratio(weights @ correct, weights.sum(axis=1, keepdims=True))


def _prepare_f1(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """F1 per class: 2 TP / (positives + predicted positives)."""
    predicted = _predictions(logits, task)
    hits = (predicted & truth).astype(np.float64)
    positives = truth.astype(np.float64)
    either = positives + predicted

    def f1(weights: FloatArray) -> FloatArray:
        values = _ratio(2 * (weights @ hits), weights @ either)
        # Without positives F1 is 0 or undefined, depending on the model: it must be undefined for every model.
        return np.where(weights @ positives > 0, values, np.nan)

    return f1


def _prepare_recall(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """Recall per class."""
    hits = (_predictions(logits, task) & truth).astype(np.float64)
    positives = truth.astype(np.float64)
    return lambda weights: _ratio(weights @ hits, weights @ positives)


def _prepare_accuracy(truth: BoolArray, logits: FloatArray, task: Task) -> WeightedMetric:
    """The share of images whose class is right; pooled over classes."""
    correct = (_predictions(logits, task) & truth).any(axis=1).astype(np.float64)
    return lambda weights: _ratio(weights @ correct, weights.sum(axis=1))


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


def _predictions(logits: FloatArray, task: Task) -> BoolArray:
    """(N, C) yes / no decisions: each label's own, or one class per image."""
    if task is Task.MULTI_LABEL:
        return logits > 0
    return truth_matrix(logits.argmax(axis=1), logits.shape[1])


def _ratio(numerator: FloatArray, denominator: FloatArray, where_empty: float = np.nan) -> FloatArray:
    """Elementwise quotient, `where_empty` where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    quotient = np.full(shape, where_empty)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


_BOTH_TASKS = frozenset(Task)
_MULTI_CLASS = frozenset({Task.MULTI_CLASS})
_MULTI_LABEL = frozenset({Task.MULTI_LABEL})

_MAIN = {Task.MULTI_LABEL: "mAP", Task.MULTI_CLASS: "BACC"}

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "mAP",
            "mean average precision",
            "average precision",
            _BOTH_TASKS,
            Needs.POSITIVES,
            _prepare_average_precision,
        ),
        Metric("macro_auc", "macro area under the ROC curve", "AUC", _BOTH_TASKS, Needs.BOTH, _prepare_auc),
        Metric(
            "mACC",
            "mean accuracy at probability 0.5",
            "accuracy",
            _MULTI_LABEL,
            Needs.IMAGES,
            _prepare_binary_accuracy,
        ),
        Metric("macro_f1", "macro F1", "F1", _BOTH_TASKS, Needs.POSITIVES, _prepare_f1),
        Metric("BACC", "balanced accuracy", "recall", _MULTI_CLASS, Needs.POSITIVES, _prepare_recall),
        Metric("accuracy", "accuracy", "accuracy", _MULTI_CLASS, Needs.IMAGES, _prepare_accuracy, pooled=True),
    )
}
"""Every metric by name."""

"""Registry and evaluation of metrics, exact with ties and vectorised over sets of sample weights.

Every metric is a function of sample weights: the plain metric is the one with all weights 1, and a bootstrap
replicate is the one whose weights count how often each image was drawn (see `lt_search.metrics.bootstrap`). NumPy only.

A macro metric averages over the classes that have what the metric needs in the split, `counted_classes`, which depends
on the split and never on the model. Nothing else is skipped: a NaN or infinite logit makes every value NaN, since a
number computed from the others would hide a diverged model.
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

from lt_search.errors import Problem, UserError
from lt_search.metrics.arrays import BoolArray, FloatArray, WeightedMetric, ratio, truth_matrix
from lt_search.metrics.calibration import prepare_ece, prepare_macro_ece
from lt_search.metrics.class_groups import ClassGroups
from lt_search.metrics.decisions import (
    prepare_accuracy,
    prepare_binary_accuracy,
    prepare_f1,
    prepare_kappa,
    prepare_macro_kappa,
    prepare_macro_mcc,
    prepare_mcc,
    prepare_quadratic_kappa,
    prepare_recall,
)
from lt_search.metrics.pooled import prepare_odir_score, prepare_pooled_auc, prepare_pooled_kappa
from lt_search.metrics.ranking import prepare_auc, prepare_average_precision
from trainers.task import Task


class Needs(Enum):
    """What a class must have in a split to be counted in a macro metric."""

    IMAGES = "images"
    """Any image, positive or negative."""
    POSITIVES = "positives"
    """At least one image of the class."""
    BOTH = "positives and negatives"
    """At least one image of the class and one of another class or without it."""


@dataclass(frozen=True)
class Metric:
    """A metric that every model is scored by."""

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
    lowest: float = 0.0
    """The smallest value it can have; the largest is 1."""
    ranking: bool = False
    """True where only the order of the images within each class counts, so that no threshold changes it."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """As in Optuna. A search maximises: a metric to minimise is logged, but cannot be its objective."""


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
    """The metric called `name`, to be searched for.

    Args:
        name: what the user typed.
        task: the task of the data.
        place: where the user typed it.

    Raises:
        UserError: the metric does not exist, does not apply to `task`, or it is better when smaller.
    """
    valid = [metric.name for metric in metrics_for(task) if metric.direction == "maximize"]
    if name in valid:
        return METRICS[name]
    by_lower_case = {known.lower(): known for known in valid}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    if name not in METRICS:
        what = f"unknown metric {name!r}"
    elif task not in METRICS[name].tasks:
        what = f"{name!r} does not apply to {task} data"
    else:
        what = f"{name!r} is better when smaller, and a search maximises: it is logged for every trial, no more"
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


def score(metric: str, task: Task, labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """One metric alone, with the value and the arguments of `evaluate`. NaN where a logit is not finite."""
    truth, scores = checked_arrays(labels, logits)
    if not np.isfinite(scores).all():
        return math.nan
    values = METRICS[metric].prepare(truth, scores, task)(np.ones((1, len(truth))))
    if METRICS[metric].pooled:
        return float(values[0])
    return float(mean_over(values, counted_classes(metric, truth, truth.shape[1]))[0])


def mean_over(values: FloatArray, classes: Sequence[int]) -> FloatArray:
    """The macro average (B,) of per-class values (B, C) over `classes`, without those that are NaN.

    NaN where nothing is left. With all weights 1 nothing that is counted is NaN, so this is the plain mean.
    """
    chosen = values[:, list(classes)]
    defined = ~np.isnan(chosen)
    return ratio(np.where(defined, chosen, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


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
            prepare_average_precision,
            ranking=True,
        ),
        Metric(
            "macro_auc",
            "macro area under the ROC curve",
            "AUC",
            _BOTH_TASKS,
            Needs.BOTH,
            prepare_auc,
            ranking=True,
        ),
        Metric(
            "mACC",
            "mean accuracy at probability 0.5",
            "accuracy",
            _MULTI_LABEL,
            Needs.IMAGES,
            prepare_binary_accuracy,
        ),
        Metric("macro_f1", "macro F1", "F1", _BOTH_TASKS, Needs.POSITIVES, prepare_f1),
        Metric("BACC", "balanced accuracy", "recall", _MULTI_CLASS, Needs.POSITIVES, prepare_recall),
        Metric("accuracy", "accuracy", "accuracy", _MULTI_CLASS, Needs.IMAGES, prepare_accuracy, pooled=True),
        Metric("kappa", "Cohen's kappa", "kappa", _MULTI_CLASS, Needs.BOTH, prepare_kappa, pooled=True, lowest=-1.0),
        Metric(
            "quadratic_kappa",
            "Cohen's kappa, quadratic weights",
            "quadratic kappa",
            _MULTI_CLASS,
            Needs.BOTH,
            prepare_quadratic_kappa,
            pooled=True,
            lowest=-1.0,
        ),
        Metric("MCC", "Matthews' correlation", "MCC", _MULTI_CLASS, Needs.BOTH, prepare_mcc, pooled=True, lowest=-1.0),
        Metric(
            "macro_kappa", "macro Cohen's kappa", "kappa", _MULTI_LABEL, Needs.BOTH, prepare_macro_kappa, lowest=-1.0
        ),
        Metric(
            "macro_mcc", "macro Matthews' correlation", "MCC", _MULTI_LABEL, Needs.BOTH, prepare_macro_mcc, lowest=-1.0
        ),
        Metric(
            "pooled_kappa",
            "Cohen's kappa of all labels together",
            "kappa",
            _MULTI_LABEL,
            Needs.BOTH,
            prepare_pooled_kappa,
            pooled=True,
            lowest=-1.0,
        ),
        Metric(
            "pooled_auc", "AUC of all labels together", "AUC", _MULTI_LABEL, Needs.BOTH, prepare_pooled_auc, pooled=True
        ),
        Metric(
            "odir_score",
            "mean of pooled_kappa, pooled_auc and mACC, the final score of ODIR-5K",
            "score",
            _MULTI_LABEL,
            Needs.BOTH,
            prepare_odir_score,
            pooled=True,
            lowest=-1 / 3,
        ),
        Metric(
            "ECE",
            "expected calibration error",
            "ECE",
            _MULTI_CLASS,
            Needs.IMAGES,
            prepare_ece,
            pooled=True,
            direction="minimize",
        ),
        Metric(
            "macro_ece",
            "macro expected calibration error",
            "ECE",
            _MULTI_LABEL,
            Needs.IMAGES,
            prepare_macro_ece,
            direction="minimize",
        ),
    )
}
"""Every metric by name."""

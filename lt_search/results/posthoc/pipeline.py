"""Combination of several models' stored predictions into final logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lt_search.metrics.arrays import FloatArray, truth_matrix
from lt_search.metrics.ranking import prepare_average_precision
from lt_search.results.posthoc.ensemble import choose_members, combine
from lt_search.results.posthoc.thresholds import f1_thresholds
from trainers.images.tta import merge_class_views, merge_views
from trainers.networks.heads import LinearHead
from trainers.task import Task

if TYPE_CHECKING:
    from lt_search.results.posthoc.settings import Settings


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model on a split."""

    own: Tensor
    """(N, C) float32 logits as the model itself predicts."""
    views: Tensor
    """(V, N, C) float32 logits of the first V views of `trainers.images.tta.VIEWS`; V may be 0."""
    head: LinearHead | None
    """Of a linear head."""


@dataclass(frozen=True)
class Learned:
    """Quantities that settings learn from labels."""

    members: Tensor
    """bool (M, C): which models are averaged for which class."""
    thresholds: Tensor
    """float64 (C,): logits above which a label is predicted."""


def model_logits(predictions: Predictions, settings: Settings, task: Task, log_prior: Tensor) -> Tensor:
    """One model's logits (N, C), float64: tau and prior on every view, then the views merged.

    Args:
        predictions: of the model.
        settings: of which ensemble and thresholds are not used here.
        task: the task; tau and prior are for one label an image.
        log_prior: (C,) logarithms of the classes' shares of the training images.
    """
    views = predictions.views[: settings.views] if settings.views > 0 else predictions.own[None]
    if task == Task.MULTI_CLASS:
        if settings.head_tau > 0 and predictions.head is not None:
            views = predictions.head.tau_normalised(views, settings.head_tau)
        views = views - settings.prior_tau * log_prior
    if len(views) == 1:
        return views[0].double()
    merge = merge_views if task == Task.MULTI_LABEL else merge_class_views
    return merge(views, settings.merge).double()


def learn(
    settings: Settings,
    logits: Tensor,
    labels: Tensor,
    task: Task,
    *,
    quality: Tensor | None = None,
    positives: Tensor | None = None,
) -> Learned:
    """Members for each class and thresholds, learned from labels.

    Args:
        settings: of which ensemble, members and thresholds are used.
        logits: (M, N, C) of the models, best first.
        labels: (N, C) of 0 / 1, or (N,).
        task: the task.
        quality: (M, C) average precisions of the models on these images; None: computed.
        positives: (C,) by which a class has enough for members or a threshold of its own; None: those of `labels`.
    """
    n_models, _, n_classes = logits.shape
    if settings.ensemble == "class_wise":
        if quality is None:
            quality = average_precisions(logits, labels, task, np.ones((1, len(labels))))[:, 0]
        members = choose_members(quality, labels.sum(0) if positives is None else positives, settings.members)
    else:
        count = settings.members if settings.ensemble == "mean" else 1
        members = (torch.arange(n_models) < count)[:, None].expand(n_models, n_classes)
    learned = Learned(members, torch.zeros(n_classes, dtype=torch.float64))
    if not settings.thresholds:
        return learned
    return Learned(members, f1_thresholds(combined(logits, learned, task), labels, positives=positives))


def combined(logits: Tensor, learned: Learned, task: Task) -> Tensor:
    """The final logits (N, C), float64, of the models' logits (M, N, C), thresholds subtracted.

    The logit of the members' mean probability; for one label an image its logarithm.
    """
    used = learned.members.any(1)
    if int(used.sum()) == 1:
        merged = logits[used][0]
    elif task == Task.MULTI_LABEL:
        tiny, eps = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).eps
        merged = combine(logits.sigmoid(), learned.members).clamp(tiny, 1 - eps).logit()
    else:
        merged = combine(logits.softmax(-1), learned.members).clamp(min=torch.finfo(torch.float64).tiny).log()
    return merged - learned.thresholds


def stack(models: Sequence[Predictions], settings: Settings, task: Task, log_prior: Tensor) -> Tensor:
    """`model_logits` of all models, (M, N, C)."""
    return torch.stack([model_logits(model, settings, task, log_prior) for model in models])


def average_precisions(logits: Tensor, labels: Tensor, task: Task, weights: FloatArray) -> Tensor:
    """Those of M models' logits (M, N, C) under B sets of image weights (B, N): (M, B, C), NaN without positives."""
    truth = truth_matrix(labels.numpy(), logits.shape[-1])
    prepared = (prepare_average_precision(truth, model.numpy(), task) for model in logits)
    return torch.stack([torch.from_numpy(values(weights)) for values in prepared])

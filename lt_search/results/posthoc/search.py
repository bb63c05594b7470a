"""Cross-fitted search over post-hoc settings, with an estimate of its gain that is free of selection bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import optuna
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor

from lt_search.metrics.arrays import truth_matrix
from lt_search.metrics.bootstrap import Bootstrap, PairedDifference
from lt_search.metrics.evaluate import METRICS, counted_classes, mean_over, score
from lt_search.results.posthoc.pipeline import Learned, Predictions, average_precisions, combined, learn, stack
from lt_search.results.posthoc.settings import VIEWS, Choices, Settings, propose, sampler
from trainers.task import Task

FOLDS = 5
"""Folds of the validation patients; settings learn on all folds but the one that they are scored on."""

CACHED = 16
"""Combinations of views, merge and taus whose logits are kept."""

Rows = npt.NDArray[np.intp]


class CannotHoldOutError(ValueError):
    """The validation split is too small to hold out patients."""


@dataclass(frozen=True)
class Evidence:
    """Validation labels and the predictions that the search combines."""

    task: Task
    metric: str
    """The objective."""
    labels: npt.NDArray[np.generic]
    """(N, C) of 0 / 1, or (N,) class indices."""
    groups: Sequence[str]
    """(N,) the patient or group of each image."""
    log_prior: Tensor
    """(C,) logarithms of the classes' shares of the training images."""
    models: Sequence[Predictions]
    """Of the run's best trials, best first; all finite."""

    def score(self, metric: str, logits: Tensor) -> float:
        """A metric of logits (N, C)."""
        return score(metric, self.task, self.labels, logits.numpy())

    def difference(self, metric: str, logits: Tensor, other: Tensor) -> PairedDifference:
        """Paired difference of a metric between logits (N, C) and others, on the same resamples of patients."""
        return Bootstrap(metric, self.task, self.labels, self.groups).paired_difference(logits.numpy(), other.numpy())


@dataclass(frozen=True)
class Found:
    """Result of a search over settings."""

    settings: Settings
    """Those adopted: the best that were tried, if the search's gain is above its standard error, and thresholds, where
    they are not searched, if their gain is; otherwise the best model's own predictions."""
    learned: Learned
    """Learned by the settings on the full validation split."""
    logits: Tensor
    """(N, C) float64, of the settings with what they learned."""
    best: Settings
    """The best of all that were tried."""
    tried: int
    own: float
    """The objective of the best model's own predictions."""
    gain: PairedDifference
    """Objective of the search minus `own`, on the same resamples of patients: each fold is scored by the settings that
    are best on the other folds."""
    crossed: float
    """The objective of what is adopted, each part of the patients scored by what was chosen and learned on others."""
    macro_f1: tuple[float, float]
    """Macro F1 of the best model's own predictions, and of what is adopted, scored likewise."""

    @property
    def adopted(self) -> bool:
        """Whether anything differs from the best model's own predictions."""
        return self.settings != Settings()


def folds(groups: Sequence[str], seed: int) -> list[Rows]:
    """Image indices of each fold of the patients: `FOLDS` folds, or one per patient if there are fewer.

    Raises:
        CannotHoldOutError: if there are fewer than two patients.
    """
    parts = min(FOLDS, len(set(groups)))
    if parts < 2:
        raise CannotHoldOutError("has fewer than two validation patients or groups")
    splitter = GroupKFold(parts, shuffle=True, random_state=seed)
    return [held_out for _, held_out in splitter.split(np.zeros(len(groups)), groups=np.asarray(groups))]


def tune(evidence: Evidence, trials: int, seed: int, show: Callable[[int], None] = lambda tried: None) -> Found:
    """Tries at most `trials` settings and estimates the gain of the best.

    Every setting is scored with members and thresholds learned on other patients than it is scored on. Selection bias
    is removed as well: `Found.gain` scores each fold by the settings that are best on the other folds. (These settings'
    members and thresholds for other folds have seen that fold's labels, an influence of second order.)

    Raises:
        CannotHoldOutError: if there are fewer than two patients, or without a part of them no class can be scored.
    """
    return _Search(evidence, seed).run(trials, seed, show)


class _Search:
    """One search: what it computes once, and its best settings so far, in all and without each part."""

    def __init__(self, evidence: Evidence, seed: int) -> None:
        self._evidence = evidence
        self._task = evidence.task
        self._labels = torch.from_numpy(np.asarray(evidence.labels)).long()
        self._own = evidence.models[0].own.double()
        self._truth = truth_matrix(evidence.labels, self._own.shape[1])
        self._parts = folds(evidence.groups, seed)
        self._others = [np.setdiff1d(np.arange(len(self._labels)), held_out) for held_out in self._parts]
        # All images, then all but each part: a metric sorts once for all of them.
        self._weights = np.ones((1 + len(self._parts), len(self._labels)))
        for weights, held_out in zip(self._weights[1:], self._parts, strict=True):
            weights[held_out] = 0.0
        # A class has enough positives where it has in whatever part is left out: so it is treated in what is adopted,
        # which learns from all images, as in what was scored.
        self._positives = torch.from_numpy((self._weights[1:] @ self._truth).min(axis=0))
        self._best = [(-math.inf, Settings()) for _ in self._weights]
        self._models = lru_cache(CACHED)(self._stack)
        self._quality = lru_cache(CACHED)(self._average_precisions)

    def run(self, trials: int, seed: int, show: Callable[[int], None]) -> Found:
        choices = choices_of(self._evidence)

        def objective(trial: optuna.Trial) -> float:
            settings = propose(trial, choices)
            show(trial.number + 1)
            return self._try(settings)

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(direction="maximize", sampler=sampler(choices, seed))
            if not choices.finite:
                study.enqueue_trial({"views": 0, "normalise": False, "prior_tau": 0.0, "ensemble": "none"})
            study.optimize(objective, n_trials=trials)
        finally:
            optuna.logging.set_verbosity(verbosity)
        return self._judge(choices, len(study.trials))

    def _try(self, settings: Settings) -> float:
        """Scores settings on all images, and without each part; returns the former."""
        final = self.cross_fitted([settings] * len(self._parts))
        scores = self._scores(final)
        for place, value in enumerate(scores):
            if value > self._best[place][0]:
                self._best[place] = (value, settings)
        return scores[0] if math.isfinite(scores[0]) else -math.inf

    def _judge(self, choices: Choices, tried: int) -> Found:
        """Decides which of the best settings are adopted."""
        evidence, own = self._evidence, self._own
        (_, best), *without = self._best
        if any(value == -math.inf for value, _ in without):
            raise CannotHoldOutError("has validation patients without whom no class can be scored")
        chosen = [settings for _, settings in without]
        crossed = self.cross_fitted(chosen)
        gain = evidence.difference(evidence.metric, crossed, own)
        settings = best
        if not gain.difference > gain.standard_error:
            settings, chosen, crossed = Settings(), [Settings()] * len(self._parts), own
        decisions = crossed
        if choices.finite and choices.ranking:
            shifted = self.cross_fitted([replace(each, thresholds=True) for each in chosen])
            f1 = evidence.difference("macro_f1", shifted, crossed)
            if f1.difference > f1.standard_error:
                settings, decisions = replace(settings, thresholds=True), shifted
        models = self._of_models(settings)
        learned = learn(settings, models, self._labels, self._task, positives=self._positives)
        return Found(
            settings=settings,
            learned=learned,
            logits=combined(models, learned, self._task),
            best=best,
            tried=tried,
            own=evidence.score(evidence.metric, own),
            gain=gain,
            crossed=evidence.score(evidence.metric, crossed),
            macro_f1=(evidence.score("macro_f1", own), evidence.score("macro_f1", decisions)),
        )

    def cross_fitted(self, settings: Sequence[Settings]) -> Tensor:
        """The final logits (N, C): each part's by its settings, with what these learned on the other parts."""
        final = torch.empty_like(self._own)
        for part, (each, held_out, others) in enumerate(zip(settings, self._parts, self._others, strict=True)):
            models = self._of_models(each)
            quality = self._quality(_of_one_model(each))[:, 1 + part] if each.ensemble == "class_wise" else None
            needed = models[:, others] if each.thresholds else models[:, :0]
            labels = self._labels[others]
            learned = learn(each, needed, labels, self._task, quality=quality, positives=self._positives)
            final[held_out] = combined(models[:, held_out], learned, self._task)
        return final

    def _scores(self, logits: Tensor) -> list[float]:
        """The objective on all images, and without each part."""
        evidence, metric = self._evidence, METRICS[self._evidence.metric]
        if not bool(logits.isfinite().all()):
            return [math.nan] * len(self._weights)
        values = metric.prepare(self._truth, logits.numpy(), self._task)(self._weights)
        if metric.pooled:
            return [float(value) for value in values]
        counted = counted_classes(evidence.metric, self._truth, self._truth.shape[1])
        return [float(value) for value in mean_over(values, counted)]

    def _of_models(self, settings: Settings) -> Tensor:
        return self._models(_of_one_model(settings))

    def _stack(self, settings: Settings) -> Tensor:
        """The logits (M, N, C) of the models."""
        return stack(self._evidence.models, settings, self._task, self._evidence.log_prior)

    def _average_precisions(self, settings: Settings) -> Tensor:
        """Those of the models, (M, 1 + parts, C), on all images, and without each part."""
        return average_precisions(self._models(settings), self._labels, self._task, self._weights)


def _of_one_model(settings: Settings) -> Settings:
    """The settings that apply to each model alone."""
    return replace(settings, ensemble="none", members=1, thresholds=False)


def choices_of(evidence: Evidence) -> Choices:
    """The choices that the stored predictions allow."""
    models = evidence.models
    stored = min(len(model.views) for model in models)
    # Where a model's own prediction is the first view, one view is not a separate choice.
    plain = all(torch.allclose(model.own, model.views[0]) for model in models)
    views = tuple(count for count in (0, *VIEWS) if count <= stored and not (count == 1 and plain))
    linear = any(model.head is not None for model in models)
    return Choices(evidence.task, views, len(models), linear, METRICS[evidence.metric].ranking)

"""The search over settings, scored on images that nothing was learned from, and how much of its gain is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import optuna
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor

from lt_search.bootstrap import PairedDifference, paired_difference
from lt_search.metrics import METRICS, score
from lt_search.posthoc.pipeline import Learned, Predictions, combined, learn, stack
from lt_search.posthoc.settings import Choices, Settings, propose, sampler
from trainers.task import Task

FOLDS = 5
"""Parts of the validation patients; settings learn on all parts but the one they are scored on."""

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Evidence:
    """The validation split as the search sees it."""

    task: Task
    metric: str
    """The objective."""
    labels: npt.NDArray[np.generic]
    """(N, C) of 0 / 1, or (N,) class indices."""
    units: Sequence[str]
    """(N,) the patient or group of each image."""
    log_prior: Tensor
    """(C,) logarithms of the classes' shares of the training images."""
    models: Sequence[Predictions]
    """Of the run's best trials, best first."""

    def scores(self, logits: Tensor, rows: Rows | slice = slice(None)) -> tuple[float, float]:
        """The objective on some images, and the macro F1, which decides between settings that it cannot tell apart."""
        found = [
            score(metric, self.task, self.labels[rows], logits[rows].numpy()) for metric in (self.metric, "macro_f1")
        ]
        return found[0], found[1]


@dataclass(frozen=True)
class Found:
    """What a search over settings came to."""

    settings: Settings
    """The best of all that were tried; the plain ones where their gain is not above its standard error."""
    learned: Learned
    """What they take from the whole validation split."""
    logits: Tensor
    """(N, C) float64, of the settings with what they learned."""
    tried: int
    own: float
    """The objective of the best model's own predictions."""
    crossed: float
    """The objective of the search itself: for each part of the patients, that of the settings which are best on the
    others."""
    gain: PairedDifference
    """`crossed` over `own`, on the same resamples of patients."""
    macro_f1: tuple[float, float]
    """Macro F1 of the best model's own predictions, and of the settings, on patients that nothing was learned from."""

    @property
    def adopted(self) -> bool:
        """Whether anything is better where the settings were not chosen: the objective, or decisions at no cost."""
        return self.settings != Settings()


@dataclass
class _Best:
    """The best settings on some of the images, by objective, then by macro F1; of equals the first."""

    scores: tuple[float, float] = (-np.inf, -np.inf)
    settings: Settings = field(default_factory=Settings)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def offer(self, scores: tuple[float, float], settings: Settings, logits: Tensor) -> None:
        if scores > self.scores:
            self.scores, self.settings, self.logits = scores, settings, logits


def folds(units: Sequence[str], seed: int) -> list[Rows]:
    """The images of each part of the patients, by index: `FOLDS` parts, or one per patient where there are fewer.

    Raises:
        ValueError: if there are fewer than two patients.
    """
    parts = min(FOLDS, len(set(units)))
    if parts < 2:
        raise ValueError("fewer than two patients or groups: nothing can be held out")
    splitter = GroupKFold(parts, shuffle=True, random_state=seed)
    return [held_out for _, held_out in splitter.split(np.zeros(len(units)), groups=np.asarray(units))]


def cross_fitted(settings: Settings, logits: Tensor, labels: Tensor, parts: Sequence[Rows], task: Task) -> Tensor:
    """The final logits (N, C) of models' logits (M, N, C), each part's with what was learned on the other parts."""
    if settings.ensemble != "class_wise" and not settings.thresholds:
        return combined(logits, learn(settings, logits, labels, task), task)
    final = torch.empty(logits.shape[1:], dtype=torch.float64)
    for held_out in parts:
        others = np.setdiff1d(np.arange(len(labels)), held_out)
        learned = learn(settings, logits[:, others], labels[others], task)
        final[held_out] = combined(logits[:, held_out], learned, task)
    return final


def tune(evidence: Evidence, trials: int, seed: int, show: Callable[[int], None] = lambda tried: None) -> Found:
    """Tries settings, at most `trials`, and says what the best are worth.

    Every setting is scored with members and thresholds learned on other patients than it is scored on. What choosing
    among many settings adds by luck is taken out as well: `Found.crossed` scores each part of the patients by the
    settings that are best on the other parts. (These settings' members and thresholds for other parts have seen that
    part's labels, an influence of second order.)

    Raises:
        ValueError: if there are fewer than two patients or groups.
    """
    task, labels = evidence.task, torch.from_numpy(np.asarray(evidence.labels)).long()
    own = evidence.models[0].own.double()
    parts = folds(evidence.units, seed)
    others = [np.setdiff1d(np.arange(len(labels)), held_out) for held_out in parts]
    best, best_without = _Best(), [_Best() for _ in parts]

    @lru_cache(maxsize=32)
    def logits_of(settings: Settings) -> Tensor:
        return stack(evidence.models, settings, task, evidence.log_prior)

    def models_logits(settings: Settings) -> Tensor:
        return logits_of(replace(settings, ensemble="none", members=1, thresholds=False))

    def offer(settings: Settings, final: Tensor) -> float:
        scores = evidence.scores(final)
        best.offer(scores, settings, final)
        for without, rows, held_out in zip(best_without, others, parts, strict=True):
            without.offer(evidence.scores(final, rows), settings, final[held_out])
        return scores[0]

    def objective(trial: optuna.Trial) -> float:
        settings = propose(trial, choices)
        show(trial.number + 1)
        return offer(settings, cross_fitted(settings, models_logits(settings), labels, parts, task))

    choices = choices_of(evidence)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler(choices, seed))
        if not choices.finite:
            study.enqueue_trial({"views": 1, "normalise": False, "prior_tau": 0.0, "ensemble": "none"})
        study.optimize(objective, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    crossed = torch.empty_like(own)
    for without, held_out in zip(best_without, parts, strict=True):
        crossed[held_out] = without.logits
    gain = _gain(evidence, crossed)
    settings = best.settings
    if not gain.difference > gain.standard_error:
        settings = Settings()
    macro_f1 = evidence.scores(crossed if settings != Settings() else own)[1]
    if choices.finite and choices.ranking:
        plain, shifted = (
            evidence.scores(cross_fitted(each, models_logits(each), labels, parts, task))[1]
            for each in (settings, replace(settings, thresholds=True))
        )
        if shifted > plain:
            settings, macro_f1 = replace(settings, thresholds=True), shifted
    learned = learn(settings, models_logits(settings), labels, task)
    return Found(
        settings=settings,
        learned=learned,
        logits=combined(models_logits(settings), learned, task),
        tried=len(study.trials),
        own=evidence.scores(own)[0],
        crossed=evidence.scores(crossed)[0],
        gain=gain,
        macro_f1=(evidence.scores(own)[1], macro_f1),
    )


def _gain(evidence: Evidence, logits: Tensor) -> PairedDifference:
    own = evidence.models[0].own.double().numpy()
    return paired_difference(evidence.metric, evidence.task, evidence.labels, logits.numpy(), own, units=evidence.units)


def choices_of(evidence: Evidence) -> Choices:
    """What the stored predictions leave to choose from."""
    models = evidence.models
    linear = all(model.head is not None for model in models)
    views = min(len(model.views) for model in models)
    return Choices(evidence.task, views, len(models), linear, METRICS[evidence.metric].ranking)

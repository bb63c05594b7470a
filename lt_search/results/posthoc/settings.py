"""Post-hoc settings, which need no training, and their search space.

Merging the images of one study (none, mean or maximum) is not among them: tables have a column for the patient of an
image, but none for the study.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, BruteForceSampler, TPESampler

from trainers.images.tta import Merge
from trainers.task import Task

if TYPE_CHECKING:
    import optuna


VIEWS = (1, 2, 5, 8)
"""Numbers of views that are tried beside the model's own way to predict (arXiv 2308.08853 does not give its number)."""

Ensemble = Literal["none", "mean", "class_wise"]


@dataclass(frozen=True)
class Settings:
    """How stored predictions become the final ones; the defaults leave them unchanged."""

    views: int = 0
    """Views of an image that predictions are merged from, see `trainers.images.tta`; 0: as the model predicts."""
    merge: Merge = "geometric"
    """How the views' probabilities are merged."""
    head_tau: float = 0.0
    """tau of tau-normalisation: logits (z_k - b_k) / |w_k|^tau (Kang et al., arXiv 1910.09217); 0 = off."""
    prior_tau: float = 0.0
    """tau of logit adjustment: logits z_k - tau log prior_k (Menon et al., arXiv 2007.07314); 0 = off."""
    ensemble: Ensemble = "none"
    """`none`: the best model. `mean`: mean probability of the best `members` models. `class_wise`: for each class the
    mean over the `members` models with its highest average precision (arXiv 2308.08853)."""
    members: int = 1
    """Models that are averaged."""
    thresholds: bool = False
    """Whether labels are predicted above the threshold of their best F1, instead of above probability 0.5."""

    def __str__(self) -> str:
        """What differs from the plain settings."""
        plain = Settings()
        changed = [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in vars(self).items()
            if value != getattr(plain, name)
        ]
        return ", ".join(changed) or "as the best trial predicts"


@dataclass(frozen=True)
class Choices:
    """The search space of a run."""

    task: Task
    views: tuple[int, ...]
    """Numbers of views to choose from, see `Settings.views`."""
    models: int
    """Models whose predictions are stored."""
    linear: bool
    """Whether any model's head is linear, so that tau-normalisation applies to it."""
    ranking: bool
    """Whether the objective depends on rankings alone, so that thresholds are not searched but decided at the end."""

    @property
    def finite(self) -> bool:
        """Whether all settings can be tried: multi-label data have no continuous setting."""
        return self.task == Task.MULTI_LABEL


def propose(trial: optuna.Trial, choices: Choices) -> Settings:
    """Suggests settings. For multi-label data without tau, which changes no ranking within a label."""
    views = trial.suggest_categorical("views", choices.views)
    # The geometric mean and the mean of logits are one and the same for one label an image.
    merges = ["geometric", "arithmetic", "logit_mean"] if choices.finite else ["geometric", "arithmetic"]
    merge = cast("Merge", trial.suggest_categorical("merge", merges) if views > 1 else "geometric")
    head_tau = prior_tau = 0.0
    if choices.task == Task.MULTI_CLASS:
        if choices.linear and trial.suggest_categorical("normalise", [False, True]):
            head_tau = trial.suggest_float("head_tau", 0.0, 2.0)
        prior_tau = trial.suggest_float("prior_tau", 0.0, 3.0)
    ensemble: Ensemble = "none"
    members = 1
    if choices.models > 1:
        kinds = ["none", "mean", "class_wise"] if choices.finite else ["none", "mean"]
        ensemble = cast("Ensemble", trial.suggest_categorical("ensemble", kinds))
        if ensemble != "none":
            lowest = 2 if ensemble == "mean" else 1
            members = trial.suggest_int(f"{ensemble}_members", lowest, choices.models)
    decided = not choices.finite or choices.ranking
    thresholds = False if decided else trial.suggest_categorical("thresholds", [False, True])
    return Settings(views, merge, head_tau, prior_tau, ensemble, members, thresholds)


def sampler(choices: Choices, seed: int) -> BaseSampler:
    """Exhaustive search where the choices are finite, otherwise TPE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if choices.finite:
            return BruteForceSampler(seed=seed)
        return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=30)

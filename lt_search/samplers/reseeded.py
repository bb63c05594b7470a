"""TPE and random search whose proposals are a pure function of the seed, the trial's number and the study."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from lt_search.samplers.seeds import derive_seed

STARTUP_TRIALS = 6
"""Finished or pruned trials before TPE begins; proposals before are random."""

_FILTERS = threading.Lock()
"""Held while warnings are filtered, which is not thread-safe: `Study.optimize` may ask from several threads."""


class ReseededSampler(BaseSampler):
    """Optuna's multivariate TPE (or random search), re-seeded for every draw and without any other state.

    A sampler with a random stream restarts it in a resumed process and so repeats its first proposals; this one derives
    every draw from the trial's number.

    Args:
        seed: the study's seed.
        kind: `tpe` or `random`.
        startup_trials: finished or pruned trials before TPE begins.

    Raises:
        ValueError: if `kind` is neither.
    """

    def __init__(self, seed: int, kind: str = "tpe", startup_trials: int = STARTUP_TRIALS) -> None:
        if kind not in {"tpe", "random"}:
            raise ValueError(f"kind must be 'tpe' or 'random', not {kind!r}")
        self._seed = seed
        self._kind = kind
        self._startup_trials = startup_trials

    def _seeded(self, trial: FrozenTrial, purpose: str) -> BaseSampler:
        seed = derive_seed(self._seed, "proposal", trial.number, purpose) % 2**32
        if self._kind == "random":
            return RandomSampler(seed=seed)
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # `group`, which conditions need, may change
            return TPESampler(
                n_startup_trials=self._startup_trials, multivariate=True, group=True, constant_liar=True, seed=seed
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters drawn jointly."""
        sampler = self._seeded(trial, "relative")
        return sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draws the joint parameters."""
        sampler = self._seeded(trial, "relative")
        sampler.infer_relative_search_space(study, trial)  # a grouped TPE reads its groups from this call
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws one parameter that is not in the joint space."""
        return self._seeded(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

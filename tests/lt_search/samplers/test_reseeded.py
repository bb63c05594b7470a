from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from lt_search.config.parameters import Condition, Parameter, propose
from lt_search.samplers import ReseededSampler

PARAMETERS = {
    p.name: p
    for p in (
        Parameter("stage1.lr", "loguniform(1e-4, 1)"),
        Parameter("stage1.loss", "choice(ce, triplet)"),
        Parameter("stage1.margin", "uniform(0, 1)", Condition.parse("stage1.loss == triplet")),
        Parameter("stage2.q", "uniform(0.1, 1)", Condition.parse("stage2.form == valid")),
        Parameter("stage2.n", "logint(10, 1000)"),
    )
}
FIXED = {"stage2.form": "valid"}


def _objective(values: dict[str, Any]) -> float:
    return -((values["stage1.lr"] - 0.1) ** 2) + values.get("stage1.margin", 0.0) - values["stage2.q"]


def _search(
    storage: optuna.storages.BaseStorage,
    trials: int,
    make: Callable[[], optuna.samplers.BaseSampler],
) -> list[dict[str, Any]]:
    """Asks one trial at a time, with a sampler made anew for each, as if the driver was killed in between."""
    drawn = []
    for _ in range(trials):
        study = optuna.create_study(storage=storage, study_name="s", direction="maximize", load_if_exists=True)
        study.sampler = make()
        trial = study.ask()
        values = propose(trial, PARAMETERS, FIXED)
        drawn.append(values)
        study.tell(trial, _objective(values))
    return drawn


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_sampler_made_anew_for_each_trial_proposes_as_one_that_lives_on(kind: str) -> None:
    lives_on = ReseededSampler(3, kind)
    a = _search(optuna.storages.InMemoryStorage(), 14, lambda: lives_on)
    b = _search(optuna.storages.InMemoryStorage(), 14, lambda: ReseededSampler(3, kind))
    assert a == b


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_no_proposal_is_repeated(kind: str) -> None:
    drawn = _search(optuna.storages.InMemoryStorage(), 14, lambda: ReseededSampler(0, kind))
    assert len({tuple(sorted(values.items())) for values in drawn}) == 14


def test_another_seed_proposes_otherwise() -> None:
    a = _search(optuna.storages.InMemoryStorage(), 3, lambda: ReseededSampler(0))
    b = _search(optuna.storages.InMemoryStorage(), 3, lambda: ReseededSampler(1))
    assert all(x != y for x, y in zip(a, b, strict=True))


def test_conditions_are_respected() -> None:
    for values in _search(optuna.storages.InMemoryStorage(), 14, lambda: ReseededSampler(0)):
        assert ("stage1.margin" in values) == (values["stage1.loss"] == "triplet")
        assert "stage2.q" in values
    study = optuna.create_study(sampler=ReseededSampler(0))
    assert "stage2.q" not in propose(study.ask(), PARAMETERS, {"stage2.form": "bce"})


def test_a_trial_begun_by_another_process_keeps_its_values() -> None:
    study = optuna.create_study(sampler=ReseededSampler(0))
    trial = study.ask()
    first = trial.suggest_float("stage1.lr", 1e-4, 1, log=True)
    again = optuna.Trial(study, trial._trial_id)
    assert propose(again, PARAMETERS, FIXED)["stage1.lr"] == first


def test_tpe_beats_random_on_a_smooth_objective() -> None:
    """Over ten seeds at 40 trials, the mean best value of TPE is the better one."""

    def best(kind: str, seed: int) -> float:
        drawn = _search(optuna.storages.InMemoryStorage(), 40, lambda: ReseededSampler(seed, kind))
        return max(_objective(values) for values in drawn)

    assert sum(best("tpe", s) for s in range(10)) > sum(best("random", s) for s in range(10))


def test_the_filters_of_warnings_are_as_before_where_threads_ask_at_once() -> None:
    study = optuna.create_study(sampler=ReseededSampler(0))
    before = list(warnings.filters)
    study.optimize(lambda trial: trial.suggest_float("a", 0, 1), n_trials=120, n_jobs=8)
    assert warnings.filters == before


def test_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'grid'"):
        ReseededSampler(0, "grid")

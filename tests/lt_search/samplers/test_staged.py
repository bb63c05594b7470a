from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lt_search.samplers import (
    REUSE_COST,
    STAGE1_COST,
    STAGE2_COST,
    STOPPED_IN_STAGE1,
    ReseededSampler,
    StagedSampler,
    UnseenParameterWarning,
)
from lt_search.samplers.history import PROPOSED, Axes, History

STAGE1 = ("lr", "loss", "margin", "epochs")


def _draw(trial: optuna.Trial) -> dict[str, Any]:
    """All kinds of parameters; the stages' conditions depend on stage 1 and on stage 2."""
    values: dict[str, Any] = {
        "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        "loss": trial.suggest_categorical("loss", ["ce", "triplet"]),
        "epochs": trial.suggest_int("epochs", 1, 50, log=True),
        "alpha": trial.suggest_float("alpha", 0, 1),
        "head": trial.suggest_categorical("head", ["linear", "cosine"]),
    }
    if values["loss"] == "triplet":
        values["margin"] = trial.suggest_float("margin", 0, 1)
        values["power"] = trial.suggest_float("power", 0, 1)
    if values["head"] == "cosine":
        values["scale"] = trial.suggest_float("scale", 1, 64, log=True)
    return values


def _value(values: Mapping[str, Any]) -> float:
    return float(
        -((np.log10(values["lr"]) + 3) ** 2)
        - (values["alpha"] - 0.7) ** 2
        - (values["head"] == "linear")
        - (values["loss"] == "ce")
    )


def _stage1(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, values[name]) for name in STAGE1 if name in values)


def _search(
    trials: int,
    make: Callable[[], optuna.samplers.BaseSampler],
    storage: BaseStorage | None = None,
    direction: str = "maximize",
) -> list[dict[str, Any]]:
    """A sampler is made for each ask."""
    storage = storage or InMemoryStorage()
    sign = 1 if direction == "maximize" else -1
    drawn = []
    for _ in range(trials):
        study = optuna.create_study(
            storage=storage, study_name="s", direction=direction, load_if_exists=True, sampler=make()
        )
        trial = study.ask()
        drawn.append(_draw(trial))
        study.tell(trial, sign * _value(drawn[-1]))
    return drawn


def _distinct(drawn: list[dict[str, Any]]) -> int:
    return len({_stage1(values) for values in drawn})


def _plain(trial: optuna.Trial) -> tuple[float, float]:
    return trial.suggest_float("a", 0, 1), trial.suggest_float("b", 0, 1)


def _study(sampler: StagedSampler, **options: Any) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=sampler, **options)


def test_stage1_values_are_reused_exactly_and_more_often_the_more_they_cost() -> None:
    cheap, costly = (_search(50, lambda r=r: StagedSampler(STAGE1, cost_ratio=r, seed=0)) for r in (2, 30))
    assert _distinct(costly) < _distinct(cheap) < 50
    assert len({tuple(sorted(values.items())) for values in costly}) == 50


def test_conditions_are_respected() -> None:
    for values in _search(40, lambda: StagedSampler(STAGE1, cost_ratio=10, seed=0)):
        assert ("margin" in values) == ("power" in values) == (values["loss"] == "triplet")
        assert ("scale" in values) == (values["head"] == "cosine")


def test_the_order_of_the_suggests_does_not_matter() -> None:
    def search(backwards: bool) -> list[dict[str, Any]]:
        study = _study(StagedSampler(["a"], cost_ratio=10, seed=0))
        for _ in range(30):
            trial = study.ask()
            for name in ("b", "a") if backwards else ("a", "b"):
                trial.suggest_float(name, 0, 1)
            study.tell(trial, trial.params["b"] - trial.params["a"])
        return [trial.params for trial in study.trials]

    assert search(True) == search(False)


def test_a_sampler_made_anew_for_each_ask_proposes_as_one_that_lives_on(tmp_path: Path) -> None:
    lives_on = StagedSampler(STAGE1, seed=3, cost_ratio=10)
    a = _search(25, lambda: lives_on)
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    b = _search(25, lambda: StagedSampler(STAGE1, seed=3, cost_ratio=10), journal)
    assert a == b
    assert _search(3, lambda: StagedSampler(STAGE1, seed=4, cost_ratio=10)) != a[:3]


def test_minimising_is_maximising_the_negative() -> None:
    a, b = (
        _search(30, lambda: StagedSampler(STAGE1, seed=0, cost_ratio=10), direction=direction)
        for direction in ("maximize", "minimize")
    )
    assert a == b


@pytest.mark.filterwarnings("ignore:no trial has any of the stage-1 parameters")
@pytest.mark.parametrize("stage1", [(), ("lr", "loss", "margin", "power", "epochs", "alpha", "head", "scale"), ("x",)])
def test_with_one_stage_it_is_plain_tpe(stage1: tuple[str, ...]) -> None:
    assert _search(20, lambda: StagedSampler(stage1, seed=5)) == _search(20, lambda: ReseededSampler(5))


def test_a_half_proposed_trial_is_completed_as_it_was_begun() -> None:
    study = _study(StagedSampler(["a", "c"], cost_ratio=20, seed=0))
    for _ in range(30):
        trial = study.ask()
        a, b = _plain(trial)
        c = trial.suggest_float("c", 0, 1)
        study.tell(trial, a + b + c)
    seen = {(trial.params["a"], trial.params["c"]) for trial in study.trials}
    repeats = 0
    for _ in range(10):
        half = study.ask()
        a = half.suggest_float("a", 0, 1)
        other = study.ask()
        study.tell(other, sum(_plain(other)) + other.suggest_float("c", 0, 1))
        resumed = optuna.Trial(study, half._trial_id)
        pair = a, resumed.suggest_float("c", 0, 1)
        assert (pair in seen) == (a in {known for known, _ in seen})
        repeats += pair in seen
        study.tell(half, sum(pair) + resumed.suggest_float("b", 0, 1))
        seen |= {pair, (other.params["a"], other.params["c"])}
    assert repeats > 0


def test_trials_that_run_beside_each_other_differ_and_wait_for_no_stage1() -> None:
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    ended: set[float] = set()
    running: list[optuna.Trial] = []
    for _ in range(15):
        for _ in range(4):
            trial = study.ask()
            a, _b = _plain(trial)
            assert a in ended or a not in {other.params["a"] for other in running}
            running.append(trial)
        while running:
            trial = running.pop()
            ended.add(trial.params["a"])
            study.tell(trial, trial.params["b"] - trial.params["a"])
    points = {(trial.params["a"], trial.params["b"]) for trial in study.trials}
    assert len(points) == 60
    assert len({a for a, _ in points}) < 60


def test_asks_that_come_before_any_suggest_differ() -> None:
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    for _ in range(20):
        trial = study.ask()
        study.tell(trial, sum(_plain(trial)))
    asked = [study.ask() for _ in range(5)]
    assert len({_plain(trial) for trial in asked}) == 5


def _asked_only(study: optuna.Study) -> None:
    study.ask()


def _failed_before_its_first_suggest(study: optuna.Study) -> None:
    study.tell(study.ask(), state=TrialState.FAIL)


def _failed_in_stage1(study: optuna.Study) -> None:
    """Before the second of its stage-1 parameters."""
    trial = study.ask()
    trial.suggest_categorical("kind", ["x", "y"])
    study.tell(trial, state=TrialState.FAIL)


def _runs_with_stage2_only(study: optuna.Study) -> None:
    study.ask().suggest_float("b", 0, 1)


def _failed_with_stage2_only(study: optuna.Study) -> None:
    trial = study.ask()
    trial.suggest_float("b", 0, 1)
    study.tell(trial, state=TrialState.FAIL)


def _pruned_before_its_first_suggest(study: optuna.Study) -> None:
    study.tell(study.ask(), state=TrialState.PRUNED)


def _asked_three_times(study: optuna.Study) -> None:
    for _ in range(3):
        study.ask()


def _kinds(trial: optuna.Trial) -> float:
    """Both kinds are alike."""
    trial.suggest_categorical("kind", ["x", "y"])
    a, b = _plain(trial)
    return -((a - 0.3) ** 2) - (b - 0.2) ** 2


@pytest.mark.parametrize("before", [0, 10])
@pytest.mark.parametrize(
    "incomplete",
    [
        _asked_only,
        _asked_three_times,
        _failed_before_its_first_suggest,
        _failed_in_stage1,
        _failed_with_stage2_only,
        _pruned_before_its_first_suggest,
        _runs_with_stage2_only,
    ],
)
def test_new_stage1_values_are_proposed_beside_a_trial_without_all_values(
    incomplete: Callable[[optuna.Study], None], before: int
) -> None:
    study = _study(StagedSampler(["a", "kind"], cost_ratio=2, seed=0))
    for number in range(before + 30):
        if number == before:
            incomplete(study)
        trial = study.ask()
        study.tell(trial, _kinds(trial))
    done = [trial.params for trial in study.get_trials(states=[TrialState.COMPLETE])]
    new = {(values["a"], values["kind"]) for values in done[before:]}
    assert len(new) > 12
    assert all(sum(kind == which for _, kind in new) > 2 for which in "xy")


def test_new_stage1_values_are_proposed_in_threads() -> None:
    study = _study(StagedSampler(["a", "kind"], cost_ratio=2, seed=0))
    study.optimize(_kinds, n_trials=40, n_jobs=4)
    assert len({(trial.params["a"], trial.params["kind"]) for trial in study.trials}) > 15


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_a_stage1_that_was_not_completed_is_never_reused(state: TrialState) -> None:
    """The best stage-1 runs end early; a trial ended in stage 2 has a stage-1 cost, and its stage 1 counts."""
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    lost, kept = set(), set()
    for number in range(60):
        trial = study.ask()
        a, b = _plain(trial)
        assert a not in lost
        if a not in kept and number % 3 == 1:
            lost.add(a)
            study.tell(trial, state=state)
        else:
            kept.add(a)
            trial.set_user_attr(STAGE1_COST, 20.0)
            ended = number % 5 == 0
            study.tell(trial, state=state) if ended else study.tell(trial, a - b)
    assert len(lost) >= 2
    assert len(kept) + len(lost) < 60


@pytest.mark.parametrize("seed", range(6))
def test_a_configuration_is_not_proposed_again_while_others_are_left(seed: int) -> None:
    """Half of the 18 fail; a stage 1 with all six stage-2 values is not reused."""
    study = _study(StagedSampler(["a"], cost_ratio=5, seed=seed))
    proposed = set()
    for _ in range(12):
        trial = study.ask()
        values = trial.suggest_int("a", 1, 3), trial.suggest_int("b", 1, 6)
        assert values not in proposed
        proposed.add(values)
        trial.set_user_attr(STAGE1_COST, 5.0)
        if values[1] % 2:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, values[1])


def _repeats(
    costs: Callable[[int], float] | None, ratio: float | None, in_all: float | None = None
) -> tuple[int, list[int]]:
    """How many of 60 trials reuse a stage 1, and the epochs of the others after the first few."""
    study = _study(StagedSampler(["a", "epochs"], cost_ratio=ratio, seed=0))
    seen: dict[tuple[float, int], int] = {}
    for _ in range(60):
        trial = study.ask()
        a, b = _plain(trial)
        epochs = trial.suggest_int("epochs", 1, 100, log=True)
        if in_all is not None and (a, epochs) in seen:
            trial.set_user_attr(REUSE_COST, in_all)
        seen[a, epochs] = trial.number
        if costs is not None:
            trial.set_user_attr(STAGE1_COST, costs(epochs))
            trial.set_user_attr(STAGE2_COST, 2.0)
        study.tell(trial, -((a - 0.3) ** 2) - (b - 0.6) ** 2)
    return 60 - len(seen), [epochs for (_, epochs), number in seen.items() if number >= 10]


def test_costs_are_learned_from_the_trials() -> None:
    known = _repeats(None, 30)[0]
    assert _repeats(lambda epochs: 60.0, None)[0] == known
    assert _repeats(lambda epochs: 2.0, None)[0] == _repeats(None, 1)[0] < known


def test_a_good_first_stage_1_is_left_for_new_ones_where_stage_2_changes_nothing() -> None:
    """The first values are good and the rest of the space is not: one stage 1 has nearly all good values."""
    study = _study(StagedSampler(["a"], cost_ratio=100, seed=0))
    study.enqueue_trial({"a": 0.3, "b": 0.6})
    stage1 = []
    for _ in range(80):
        trial = study.ask()
        a, b = _plain(trial)
        stage1.append(a)
        study.tell(trial, -abs(a - 0.3) - 1e-4 * (b - 0.6) ** 2)
    assert len(set(stage1)) > 15


def test_the_whole_cost_of_a_trial_with_a_reused_stage_1_counts_instead_of_its_stage_2_cost() -> None:
    assert _repeats(lambda epochs: 60.0, None, in_all=60.0)[0] < _repeats(lambda epochs: 60.0, None, in_all=2.0)[0]


def test_a_costly_stage1_is_proposed_less_often_than_a_cheap_one() -> None:
    """Where the cost grows with the epochs, which do not matter, new stage-1 runs have fewer of them."""
    constant, growing = (_repeats(costs, None)[1] for costs in (lambda e: 40.0, lambda e: 4.0 * e))
    assert np.mean(np.log(growing)) < np.mean(np.log(constant))


def test_enqueued_values_are_kept_whole_or_in_part() -> None:
    study = _study(StagedSampler(["a", "c"], cost_ratio=20, seed=0))
    study.enqueue_trial({"a": 0.125, "b": 0.25, "c": 0.5})
    seen: set[tuple[float, float]] = set()
    for number in range(30):
        if number == 20:
            study.enqueue_trial({"a": 0.75})
            study.enqueue_trial({"b": 0.375})
        trial = study.ask()
        a, b = _plain(trial)
        c = trial.suggest_float("c", 0, 1)
        if number == 0:
            assert (a, b, c) == (0.125, 0.25, 0.5)
        if number == 20:
            assert a == 0.75
            assert (a, c) not in seen
        if number == 21:
            assert b == 0.375
        seen.add((a, c))
        study.tell(trial, -a - b - c)


def test_further_stage_2_values_are_tried_on_enqueued_stage_1_values() -> None:
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    for number in range(30):
        if number >= 12:
            study.enqueue_trial({"a": 0.375})
        trial = study.ask()
        a, b = _plain(trial)
        study.tell(trial, -abs(a - 0.375) - abs(b - 0.6))
    given = [trial.params for trial in study.trials[12:]]
    assert {params["a"] for params in given} == {0.375}
    assert len({params["b"] for params in given}) == 18


def test_a_stage_1_stopped_at_its_end_is_not_reused_and_its_stage_2_values_do_not_count_as_tried() -> None:
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    met: dict[float, bool] = {}
    for _ in range(60):
        trial = study.ask()
        a, b = _plain(trial)
        trial.set_user_attr(STAGE1_COST, 20.0)
        assert not met.get(a), "it was stopped"
        if met.setdefault(a, len(met) % 2 == 1):
            trial.set_user_attr(STOPPED_IN_STAGE1, True)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, 0.01 * a - (b - 0.6) ** 2)
    axes = [Axes({name: FloatDistribution(0, 1)}) for name in ("a", "b")]
    history = History.of(study.trials, 1, *axes)
    stopped = np.array([met[trial.params["a"]] for trial in study.trials])
    assert stopped.sum() > 3
    assert (history.tries_stage2 == ~stopped).all()


@pytest.mark.parametrize("stopped_in_stage1", [False, True])
def test_pruned_stage_2_trials_count_in_a_study_without_costs(stopped_in_stage1: bool) -> None:
    """Stage 2 is pruned below 0.5, so that no complete trial has values there."""
    below = []
    for seed in range(4):
        study = _study(StagedSampler(["a"], cost_ratio=10, seed=seed))
        for _ in range(60):
            trial = study.ask()
            a, b = trial.suggest_float("a", 0, 1), trial.suggest_float("b", 0, 1)
            if stopped_in_stage1 and b < 0.5:
                trial.set_user_attr(STOPPED_IN_STAGE1, True)
            study.tell(trial, None if b < 0.5 else a, TrialState.PRUNED if b < 0.5 else TrialState.COMPLETE)
        below.append(sum(trial.params["b"] < 0.5 for trial in study.trials[20:]) / 40)
    mean = sum(below) / len(below)
    assert mean > 0.5 if stopped_in_stage1 else mean < 0.4


def test_an_exhausted_stage_1_is_left_without_a_draw() -> None:
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    for _ in range(40):
        trial = study.ask()
        value = trial.suggest_float("a", 0, 1) + trial.suggest_categorical("b", ["x", "y", "z"]).count("z")
        trial.suggest_int("c", 0, 2, step=2)
        study.tell(trial, value)
    trials = Counter(trial.params["a"] for trial in study.trials)
    assert max(trials.values()) == 6
    assert len(trials) >= 6
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 40


@pytest.mark.parametrize("stage1", [["a"], ["kind", "loss"]])
def test_none_is_a_choice_like_any_other_where_the_parameter_may_be_inactive(stage1: list[str]) -> None:
    def search(none: str | None) -> list[dict[str, Any]]:
        study = _study(StagedSampler(stage1, cost_ratio=5, seed=0))
        for _ in range(40):
            trial = study.ask()
            value = -abs(trial.suggest_float("a", 0, 1) - 0.3)
            if trial.suggest_categorical("kind", ["x", "y"]) == "y":
                value += 0.1 * (trial.suggest_categorical("loss", [none, "p", "q"]) == "p")
            study.tell(trial, value)
        return [{**trial.params, "loss": trial.params.get("loss", "") or "none"} for trial in study.trials]

    assert search(None) == search("none")


@pytest.mark.parametrize("given", [{"b": 0.5, "kind": "x"}, {"kind": "x"}])
def test_enqueued_stage_2_values_go_to_other_stage_1_values(given: dict[str, Any]) -> None:
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    for number in range(23):
        if number >= 15:
            study.enqueue_trial(given)
        trial = study.ask()
        value = -abs(trial.suggest_float("a", 0, 1) - 0.3)
        value -= trial.suggest_categorical("kind", ["x", "y"]) == "x"
        study.tell(trial, value - abs(trial.suggest_float("b", 0, 1) - 0.5) if "b" in given else value)
    asked = [trial.params for trial in study.trials[15:]]
    assert all(params.items() >= given.items() for params in asked)
    assert len({tuple(params.items()) for params in asked}) == 8


def test_a_none_that_is_enqueued_for_an_inactive_parameter_is_ignored() -> None:
    study = _study(StagedSampler(["loss", "margin"], cost_ratio=20, seed=0))
    for number in range(14):
        if number == 12:
            study.enqueue_trial({"loss": "ce", "margin": None})
            study.enqueue_trial({"loss": "ce", "b": 2.0})
        trial = study.ask()
        loss, b = trial.suggest_categorical("loss", ["ce", "triplet"]), 0.0
        if loss == "triplet":
            trial.suggest_float("margin", 0, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's, about the value out of range
            b = trial.suggest_float("b", 0, 1)
        study.tell(trial, b)
    assert [trial.params["loss"] for trial in study.trials[12:]] == ["ce", "ce"]
    assert study.trials[13].params["b"] == 2.0, "as with Optuna's own samplers"


def test_trials_that_run_beside_each_other_do_not_pile_on_one_stage_1() -> None:
    """At this cost ratio a stage 1 gets at most 10 trials before another one is begun."""
    study = _study(StagedSampler(["a"], cost_ratio=20, seed=0))
    for number in range(45):
        trial = study.ask()
        a, b = _plain(trial)
        if number < 15:
            study.tell(trial, -abs(a - 0.3) - abs(b - 0.5))
    assert max(Counter(trial.params["a"] for trial in study.trials[15:]).values()) <= 10


def test_stage_1_names_that_no_trial_has_are_warned_of() -> None:
    study = _study(StagedSampler(["learning_rate"], seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trial = study.ask()
        study.tell(trial, sum(_plain(trial)))
    with pytest.warns(UserWarning, match=r"no trial has any of the stage-1 parameters \(learning_rate\): .* plain TPE"):
        _plain(study.ask())


def test_one_stage_1_name_that_no_trial_has_is_warned_of() -> None:
    study = _study(StagedSampler(["a", "depht"], seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            trial = study.ask()
            study.tell(trial, sum(_plain(trial)))
    with pytest.warns(UnseenParameterWarning, match="depht"):
        _plain(study.ask())


@pytest.mark.parametrize("stage1", [["learning_rate"], ["a", "depht"]])
def test_names_that_are_known_to_be_right_are_not_warned_of(stage1: list[str]) -> None:
    study = _study(StagedSampler(stage1, seed=0, warn_unseen=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            trial = study.ask()
            study.tell(trial, sum(_plain(trial)))


def test_choices_may_be_lists_and_costs_infinite() -> None:
    study = _study(StagedSampler(["a", "layers"], seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, about choices of this type
        for _ in range(30):
            trial = study.ask()
            a, b = _plain(trial)
            layers = trial.suggest_categorical("layers", [[64], [64, 64], [128]])
            trial.set_user_attr(STAGE1_COST, math.inf if trial.number == 5 else 20.0)
            trial.set_user_attr(STAGE2_COST, 1.0)
            study.tell(trial, -abs(a - 0.3) - abs(b - 0.6) - 0.1 * len(layers))
    assert len({trial.params["a"] for trial in study.trials}) < 30, "stage 1 is reused"


def test_ranges_may_change_and_parameters_may_come_later() -> None:
    study = _study(StagedSampler(["a"], cost_ratio=10, seed=0))
    for number in range(45):
        trial = study.ask()
        high = 1.0 if number < 15 else 0.5
        a, b = trial.suggest_float("a", 0, high), trial.suggest_float("b", 0, high)
        assert a <= high
        assert b <= high
        c = trial.suggest_categorical("c", ["x", "y"]) if number >= 30 else "x"
        study.tell(trial, a + b + (c == "y"))
    assert len({trial.params["a"] for trial in study.trials[15:]}) < 25
    assert {trial.params["c"] for trial in study.trials[30:]} == {"x", "y"}


def test_infinite_values_do_no_harm() -> None:
    study = _study(StagedSampler(["a"], cost_ratio=10, seed=0))
    for number in range(25):
        trial = study.ask()
        a, _b = _plain(trial)
        study.tell(trial, float("-inf") if number % 4 == 0 else a)
    assert len(study.trials) == 25


def test_it_is_better_than_tpe_where_stages_interact_weakly() -> None:
    """At the cost of 25 plain trials and a ratio of 20, on average over four seeds."""

    def best(seed: int, staged: bool) -> float:
        optimum = np.random.default_rng(seed).uniform(0.2, 0.8, 8)
        names = [f"x{i}" for i in range(8)]
        sampler = StagedSampler(names[:3], cost_ratio=20, seed=seed) if staged else ReseededSampler(seed)
        study = optuna.create_study(sampler=sampler)
        seen: set[tuple[float, ...]] = set()
        spent = 0
        while spent < 25 * 21:
            trial = study.ask()
            x = np.array([trial.suggest_float(name, 0, 1) for name in names])
            spent += 1 + (0 if tuple(x[:3]) in seen else 20)
            seen.add(tuple(x[:3]))
            study.tell(trial, float(np.square(x - optimum).sum()))
        return study.best_value

    assert sum(best(seed, True) for seed in range(4)) < 0.7 * sum(best(seed, False) for seed in range(4))


def test_invalid_arguments_and_several_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="cost_ratio must be a positive number, not 0"):
        StagedSampler(["a"], cost_ratio=0)
    with pytest.raises(ValueError, match="list of names"):
        StagedSampler("lr")
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=StagedSampler(["a"]))
    with pytest.raises(ValueError, match="needs a study with one objective; this one has 2"):
        study.ask().suggest_float("a", 0, 1)


def test_optunas_private_storage_keeps_what_a_sampler_writes(tmp_path: Path) -> None:
    """Samplers have no public way to write a system attribute: Optuna's upper bound is raised only if this passes."""
    backend = JournalFileBackend(str(tmp_path / "journal.log"))
    study = optuna.create_study(storage=JournalStorage(backend), study_name="study")
    trial = study.ask()
    study._storage.set_trial_system_attr(trial._trial_id, PROPOSED, "text")
    again = optuna.load_study(storage=JournalStorage(backend), study_name="study")
    assert again.trials[0].system_attrs == {PROPOSED: "text"}

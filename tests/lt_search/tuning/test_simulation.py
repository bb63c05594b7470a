"""Simulated searches: what they expect to be trained, and how near that is to what searches train."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Self

import optuna
import pytest
import torch
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import model_validator

from lt_search.config.parameters import SearchedParameter, propose
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.pruning.rungs import Decision, Rung
from lt_search.samplers import ReseededSampler, StagedSampler
from lt_search.storage.addresses import stage1_address
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, sole_driver
from lt_search.storage.records import StepReport
from lt_search.storage.schema import TRIALS
from lt_search.storage.stage_store import StageOne, StageStore
from lt_search.tuning.controller import Controller
from lt_search.tuning.simulation import SIMULATED_TRIALS, Expected, StageCosts, expect
from tests.helpers.plans import COSTS, ended_trial, expected_at_random
from tests.tiny import TinyConfig, TinyTrainer


def searching(spec: RunSpec, **ranges: str) -> RunSpec:
    """Where `stage2.bias` is searched, and of stage 1 only some fields."""
    search = {f"stage1.{name}": SearchedParameter(range=range) for name, range in ranges.items()}
    return spec.model_copy(update={"search": {**search, "stage2.bias": spec.search["stage2.bias"]}})


@pytest.mark.parametrize(("come", "eta", "go"), [(27, 3, 9), (99, 3, 33), (4, 3, 3), (2, 3, 2), (16, 2, 8)])
def test_a_rung_keeps_its_share_but_never_stops_the_first_eta(tiny_spec: RunSpec, come: int, eta: int, go: int) -> None:
    arrivals = expected_at_random(tiny_spec.model_copy(update={"eta": eta}), come).arrivals
    assert arrivals[Rung(1, 1)] == come
    assert arrivals[Rung(1, 3)] == pytest.approx(go, abs=1 + go / 4)
    assert arrivals[Rung(1, 3)] >= min(come, eta)


def test_arrivals_and_steps_of_a_halving_search(tiny_spec: RunSpec) -> None:
    assert tiny_spec.eta == 2
    expected = expected_at_random(tiny_spec, 16)
    first, second, third = expected.arrivals.values()
    assert list(expected.arrivals) == list(tiny_spec.rung_list)
    assert first == expected.stage1_runs == 16 and 16 > second > third
    assert third == expected.stage1_artefacts, "each stage 1 has one trial"
    assert expected.steps[1] == first + 2 * second + third
    assert third + 2 <= expected.steps[2] < 2 * third, "the first two go on, some do not"


def test_a_shared_stage_1_is_trained_once_and_its_trials_all_come_to_stage_2(tiny_spec: RunSpec) -> None:
    expected = expected_at_random(searching(tiny_spec, optimiser="choice(sgd, momentum)"), 16)
    assert (expected.stage1_runs, expected.stage1_artefacts) == (2, 2), "a rung never stops the first two"
    assert expected.arrivals == {Rung(1, 1): 2, Rung(1, 3): 2, Rung(2, 1): 16}
    assert expected.steps[1] == 2 * 4
    assert 16 + 2 <= expected.steps[2] < 2 * 16


def test_a_stage_1_that_was_stopped_is_not_trained_again(tiny_spec: RunSpec) -> None:
    spec = searching(tiny_spec, lr="choice(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)")
    expected = expected_at_random(spec, 60)
    there, finished = expected.arrivals[Rung(1, 3)], expected.stage1_artefacts
    assert expected.stage1_runs == expected.arrivals[Rung(1, 1)] == 6
    assert expected.steps[1] == 6 + 2 * there + finished < 6 * 4
    assert finished < expected.arrivals[Rung(2, 1)] < 60 - (6 - finished), "its other trials end with it, untrained"


def test_stored_stage_1_runs_are_compared_but_not_trained(tiny_spec: RunSpec) -> None:
    trained, stored = expected_at_random(tiny_spec, 16), expected_at_random(tiny_spec, 16, stored=True)
    assert (stored.stage1_runs, stored.stage1_artefacts, stored.steps[1]) == (0, 0, 0)
    assert stored.arrivals == trained.arrivals and stored.steps[2] == trained.steps[2]


def test_without_pruning_every_trial_takes_every_step(tiny_spec: RunSpec) -> None:
    spec = tiny_spec.model_copy(update={"prune": False})
    assert expected_at_random(spec, 16).steps == {1: 16 * 4, 2: 16 * 2}


def test_without_reuse_a_rung_stops_every_training_of_a_stage_1(tiny_spec: RunSpec) -> None:
    spec = searching(tiny_spec, lr="choice(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)").model_copy(update={"reuse": False})
    expected = expected_at_random(spec, 60)
    first, second, third = expected.arrivals.values()
    assert first == expected.stage1_runs == 60 and 60 > second >= third == expected.stage1_artefacts
    assert expected.steps[1] == first + 2 * second + third
    unpruned = expected_at_random(spec.model_copy(update={"prune": False}), 60)
    assert unpruned.steps == {1: 60 * 4, 2: 60 * 2}


def test_a_plan_is_the_same_twice_and_another_seeds_is_another(tiny_spec: RunSpec) -> None:
    assert expected_at_random(tiny_spec, 40) == expected_at_random(tiny_spec, 40)
    assert expected_at_random(tiny_spec, 40) != expected_at_random(tiny_spec.model_copy(update={"seed": 1}), 40)


def test_stage_1_trainings_are_counted_by_address(tiny_spec: RunSpec) -> None:
    fixed = searching(tiny_spec)
    assert expected_at_random(fixed, 12).stage1_runs == 1
    assert expected_at_random(fixed, 12, stored=True).stage1_runs == 0
    assert expected_at_random(fixed.model_copy(update={"reuse": False}), 12).stage1_runs == 12
    assert expected_at_random(tiny_spec, 12).stage1_runs == 12


def test_of_a_longer_search_the_simulated_trials_stand_for_all(tiny_spec: RunSpec) -> None:
    short, long = expected_at_random(tiny_spec, SIMULATED_TRIALS), expected_at_random(tiny_spec, 10 * SIMULATED_TRIALS)
    assert long.stage1_runs == 10 * short.stage1_runs == 1000
    for rung, count in long.arrivals.items():
        assert count == pytest.approx(10 * short.arrivals[rung], rel=0.3)
    fixed = expected_at_random(searching(tiny_spec), 10 * SIMULATED_TRIALS)
    assert fixed.stage1_runs == fixed.stage1_artefacts == fixed.arrivals[Rung(1, 1)] == 1
    assert fixed.steps[1] == 4 and fixed.arrivals[Rung(2, 1)] == 1000


def _draw(study: optuna.Study, spec: RunSpec) -> optuna.Trial:
    trial = study.ask()
    propose(trial, spec.parameters, flatten(spec.config))
    return trial


def test_a_resumed_run_continues_with_its_own_trials(tiny_spec: RunSpec) -> None:
    study = optuna.create_study(sampler=ReseededSampler(0, "random"), direction="maximize")
    study.enqueue_trial(tiny_spec.first_values())
    ended = [_draw(study, tiny_spec) for _ in range(2)]
    study.tell(ended[0], 0.5)
    study.tell(ended[1], state=TrialState.FAIL)
    asked: list[str] = []

    def plan(earlier: list[FrozenTrial], trials: int) -> set[str]:
        asked.clear()
        expect(
            tiny_spec,
            trials,
            COSTS,
            ReseededSampler(0, "random"),
            lambda a: bool(asked.append(a)),
            started=earlier,
        )
        return set(asked)

    known = {stage1_address(tiny_spec, trial.params) for trial in ended}
    interrupted = stage1_address(tiny_spec, _draw(study, tiny_spec).params)
    whole = plan([], 6)
    assert plan(study.trials, 1) == {interrupted}
    assert plan(study.trials, 4) == whole - known, "the proposals that the run itself would make"


def test_a_trial_whose_fields_exclude_each_other_has_no_stage_1(
    tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exclusive(TinyConfig):
        @model_validator(mode="after")
        def check(self) -> Self:
            if self.stage1.optimiser == "momentum":
                raise ValueError("momentum excludes the rest")
            return self

    searched = {
        "stage1.optimiser": tiny_spec.search["stage1.optimiser"],
        "stage2.bias": tiny_spec.search["stage2.bias"],
    }
    spec = tiny_spec.model_copy(update={"search": searched})
    assert expected_at_random(spec, 12).stage1_runs == 2
    monkeypatch.setattr(TinyTrainer, "config_type", Exclusive)
    assert expected_at_random(spec, 12).stage1_runs == 1, "that of plain gradient descent"


def test_the_ended_trials_of_a_resumed_run_are_peers_at_its_rungs(tiny_spec: RunSpec) -> None:
    spec = tiny_spec.model_copy(update={"eta": 20})
    ended = [ended_trial(number, [Rung(1, 1)]) for number in range(19)]
    running = ended_trial(19, [Rung(1, 1)], TrialState.RUNNING)  # it comes there in what is left
    alone = expected_at_random(spec, 12).arrivals
    assert alone == {Rung(1, 1): 12, Rung(1, 3): 12, Rung(2, 1): 12}, "fewer than eta are not stopped"
    resumed = expected_at_random(spec, 12, [*ended, running])
    assert resumed.arrivals[Rung(1, 1)] == 12
    assert 1 <= resumed.arrivals[Rung(1, 3)] < 4, "the first one makes up the number, of the rest the best go on"


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_values_of_a_resumed_run_are_compared_by_rank(tiny_spec: RunSpec, scale: float) -> None:
    stopped = [ended_trial(number, [Rung(1, 1)], value=scale * number) for number in range(20)]
    finished = [ended_trial(number, [Rung(1, 1), Rung(1, 3)], value=scale * number) for number in range(20, 40)]
    first, second, third = expected_at_random(tiny_spec, 60, [*stopped, *finished]).arrivals.values()
    assert first == 60
    assert second == pytest.approx(30, abs=10)
    assert third == pytest.approx(15, abs=10)


def test_a_stage_1_that_a_run_has_stopped_is_not_planned_again(tiny_spec: RunSpec) -> None:
    fixed = searching(tiny_spec)
    address = stage1_address(fixed, fixed.first_values())
    ended = ended_trial(0, [Rung(1, 1)], TrialState.PRUNED, key=address, decision="stop")
    expected = expected_at_random(fixed, 12, [ended])
    assert (expected.stage1_runs, expected.steps) == (0, {1: 0, 2: 0})


def _sampler(spec: RunSpec) -> BaseSampler:
    stage1 = [name for name, parameter in spec.parameters.items() if parameter.stage == "stage1"]
    staged = StagedSampler(stage1, cost_ratio=spec.cost_ratio, seed=spec.seed)
    return staged if spec.sampler == "staged" else ReseededSampler(spec.seed, spec.sampler)


def _search(spec: RunSpec, trials: int, folder: Path) -> Expected:
    """What a search under the controller trains, where a trial's values are a smooth function of its config."""
    with sole_driver(folder):
        journal = Journal(folder / "journal.log", _sampler(spec))
    journal.study.set_user_attr(TRIALS, trials)
    stages = StageStore(FolderStore(folder))
    controller = Controller(spec, journal, FolderStore(folder), stage_storage=FolderStore(folder))
    end = spec.stage_lengths[0]
    addresses: set[str] = set()
    steps = {1: 0, 2: 0}
    while (job := controller.next_job()) is not None:
        stage1, stage2 = job.config["stage1"], job.config["stage2"]
        probe = math.exp(-(math.log(stage1["lr"] / 0.4) ** 2) / 2) + 0.1 * (stage1["optimiser"] == "momentum")
        value = probe - 0.3 * (stage2["bias"] - 0.4) ** 2
        report = StepReport(job.number, 1, 1, 0, value=probe, standard_error=0.01, seconds=1.0)
        steps1 = [replace(report, step=step) for step in range(1, end + 1)]
        steps2 = [replace(report, stage=2, step=step, value=value, final=step == 2) for step in (1, 2)]
        if stages.has(job.address):
            known = [replace(step, reused_from="another", seconds=0.0) for step in steps1]
            steps1 = [replace(known[-1], history=known[:-1], stage1_seconds=float(end))]
        addresses.add(job.address)
        for step in [*steps1, *steps2]:
            steps[step.stage] += not step.history
            if step.rung == Rung(1, end) and not step.history:
                stored = StageOne(
                    {"weight": torch.zeros(1)},
                    {},
                    history=tuple(steps1),
                    metric=spec.metric,
                    trainer=spec.trainer,
                    trained_by="another",
                )
                stages.publish(job.address, stored)
            if controller.observe(step) is Decision.STOP:
                break
    return Expected(len(addresses), sum(map(stages.has, addresses)), {}, steps)


@pytest.mark.parametrize(("sampler", "prune"), [("staged", True), ("staged", False), ("random", True)])
def test_a_plan_is_near_what_searches_train(tiny_spec: RunSpec, tmp_path: Path, sampler: str, prune: bool) -> None:
    costs = StageCosts({1: 5.0, 2: 0.5}, "a test", 0, 0)
    planned, trained = [], []
    for seed in range(3):
        how = {"seed": seed, "sampler": sampler, "prune": prune, "cost_ratio": 20.0}
        spec = tiny_spec.model_copy(update=how)
        planned.append(expect(spec, 40, costs, _sampler(spec), lambda address: False))
        trained.append(_search(spec, 40, tmp_path / f"run{seed}"))

    def work(found: list[Expected]) -> float:
        return sum(steps * costs.seconds[stage] for each in found for stage, steps in each.steps.items())

    near = {"rel": 0.25}
    assert sum(each.stage1_runs for each in planned) == pytest.approx(sum(each.stage1_runs for each in trained), **near)
    assert work(planned) == pytest.approx(work(trained), **near)

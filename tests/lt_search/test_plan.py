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

from lt_search.address import stage1_address
from lt_search.data.registry import load_dataset
from lt_search.journal import Journal, sole_driver
from lt_search.messages import RunInputs, StepReport
from lt_search.plan import (
    NOTHING,
    SIMULATED_TRIALS,
    TURNAROUND,
    Begun,
    Expected,
    StageCosts,
    earlier_seconds,
    elapsed_seconds,
    expect,
    measure,
    render_plan,
)
from lt_search.referee import TRIALS, Referee, rung_attribute
from lt_search.run_folder import new_run
from lt_search.rungs import Decision, Rung
from lt_search.sampler import ReseededSampler, StagedSampler, propose
from lt_search.session import LoadedInputs
from lt_search.spec import RunSpec, SearchedParameter
from lt_search.stage_store import StageOne, StageStore
from lt_search.store import FolderStore
from lt_search.values import flatten
from tests.tiny import TinyConfig, TinyTrainer

COSTS = StageCosts({1: 3.0, 2: 10.0}, "a test", checkpoint_bytes=2**20, artefact_bytes=2**21)


def _expect(spec: RunSpec, trials: int, begun: Begun = NOTHING, stored: bool = False) -> Expected:
    """With random proposals, which have a stage 1 each where a number of it is searched."""
    return expect(spec, trials, COSTS, ReseededSampler(0, "random"), lambda address: stored, begun=begun)


def _searching(spec: RunSpec, **ranges: str) -> RunSpec:
    """Where `stage2.bias` is searched, and of stage 1 only some fields."""
    search = {f"stage1.{name}": SearchedParameter(range=range) for name, range in ranges.items()}
    return spec.model_copy(update={"search": {**search, "stage2.bias": spec.search["stage2.bias"]}})


@pytest.mark.parametrize(("come", "eta", "go"), [(27, 3, 9), (99, 3, 33), (4, 3, 3), (2, 3, 2), (16, 2, 8)])
def test_a_rung_keeps_its_share_but_never_stops_the_first_eta(tiny_spec: RunSpec, come: int, eta: int, go: int) -> None:
    arrivals = _expect(tiny_spec.model_copy(update={"eta": eta}), come).arrivals
    assert arrivals[Rung(1, 1)] == come
    assert arrivals[Rung(1, 3)] == pytest.approx(go, abs=1 + go / 4)
    assert arrivals[Rung(1, 3)] >= min(come, eta)


def test_arrivals_and_steps_of_a_halving_search(tiny_spec: RunSpec) -> None:
    assert tiny_spec.eta == 2
    expected = _expect(tiny_spec, 16)
    first, second, third = expected.arrivals.values()
    assert list(expected.arrivals) == list(tiny_spec.rung_list)
    assert first == expected.stage1s == 16 and 16 > second > third
    assert third == expected.finished_stage1s, "each stage 1 has one trial"
    assert expected.steps[1] == first + 2 * second + third
    assert third + 2 <= expected.steps[2] < 2 * third, "the first two go on, some do not"


def test_a_shared_stage_1_is_trained_once_and_its_trials_all_come_to_stage_2(tiny_spec: RunSpec) -> None:
    expected = _expect(_searching(tiny_spec, optimiser="choice(sgd, momentum)"), 16)
    assert (expected.stage1s, expected.finished_stage1s) == (2, 2), "a rung never stops the first two"
    assert expected.arrivals == {Rung(1, 1): 2, Rung(1, 3): 2, Rung(2, 1): 16}
    assert expected.steps[1] == 2 * 4
    assert 16 + 2 <= expected.steps[2] < 2 * 16


def test_a_stage_1_that_was_stopped_is_not_trained_again(tiny_spec: RunSpec) -> None:
    spec = _searching(tiny_spec, lr="choice(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)")
    expected = _expect(spec, 60)
    there, finished = expected.arrivals[Rung(1, 3)], expected.finished_stage1s
    assert expected.stage1s == expected.arrivals[Rung(1, 1)] == 6
    assert expected.steps[1] == 6 + 2 * there + finished < 6 * 4
    assert finished < expected.arrivals[Rung(2, 1)] < 60 - (6 - finished), "its other trials end with it, untrained"


def test_stored_stage_1s_are_compared_but_not_trained(tiny_spec: RunSpec) -> None:
    trained, stored = _expect(tiny_spec, 16), _expect(tiny_spec, 16, stored=True)
    assert (stored.stage1s, stored.finished_stage1s, stored.steps[1]) == (0, 0, 0)
    assert stored.arrivals == trained.arrivals and stored.steps[2] == trained.steps[2]


def test_without_pruning_every_trial_takes_every_step(tiny_spec: RunSpec) -> None:
    spec = tiny_spec.model_copy(update={"prune": False})
    assert _expect(spec, 16).steps == {1: 16 * 4, 2: 16 * 2}


def test_without_reuse_a_rung_stops_every_training_of_a_stage_1(tiny_spec: RunSpec) -> None:
    spec = _searching(tiny_spec, lr="choice(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)").model_copy(update={"reuse": False})
    expected = _expect(spec, 60)
    first, second, third = expected.arrivals.values()
    assert first == expected.stage1s == 60 and 60 > second >= third == expected.finished_stage1s
    assert expected.steps[1] == first + 2 * second + third
    unpruned = _expect(spec.model_copy(update={"prune": False}), 60)
    assert unpruned.steps == {1: 60 * 4, 2: 60 * 2}


def test_a_plan_is_the_same_twice_and_another_seeds_is_another(tiny_spec: RunSpec) -> None:
    assert _expect(tiny_spec, 40) == _expect(tiny_spec, 40)
    assert _expect(tiny_spec, 40) != _expect(tiny_spec.model_copy(update={"seed": 1}), 40)


def test_stage_1_trainings_are_counted_by_address(tiny_spec: RunSpec) -> None:
    fixed = _searching(tiny_spec)
    assert _expect(fixed, 12).stage1s == 1
    assert _expect(fixed, 12, stored=True).stage1s == 0
    assert _expect(fixed.model_copy(update={"reuse": False}), 12).stage1s == 12
    assert _expect(tiny_spec, 12).stage1s == 12


def test_of_a_longer_search_the_simulated_trials_stand_for_all(tiny_spec: RunSpec) -> None:
    short, long = _expect(tiny_spec, SIMULATED_TRIALS), _expect(tiny_spec, 10 * SIMULATED_TRIALS)
    assert long.stage1s == 10 * short.stage1s == 1000
    for rung, count in long.arrivals.items():
        assert count == pytest.approx(10 * short.arrivals[rung], rel=0.3)
    fixed = _expect(_searching(tiny_spec), 10 * SIMULATED_TRIALS)
    assert fixed.stage1s == fixed.finished_stage1s == fixed.arrivals[Rung(1, 1)] == 1
    assert fixed.steps[1] == 4 and fixed.arrivals[Rung(2, 1)] == 1000


def _draw(study: optuna.Study, spec: RunSpec) -> optuna.Trial:
    trial = study.ask()
    propose(trial, spec.parameters, flatten(spec.config))
    return trial


def test_a_run_that_was_begun_goes_on_with_its_own_trials(tiny_spec: RunSpec) -> None:
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
            begun=Begun(trials=earlier),
        )
        return set(asked)

    begun = {stage1_address(tiny_spec, trial.params) for trial in ended}
    interrupted = stage1_address(tiny_spec, _draw(study, tiny_spec).params)
    whole = plan([], 6)
    assert plan(study.trials, 1) == {interrupted}
    assert plan(study.trials, 4) == whole - begun, "the proposals that the run itself would make"


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
    assert _expect(spec, 12).stage1s == 2
    monkeypatch.setattr(TinyTrainer, "config_type", Exclusive)
    assert _expect(spec, 12).stage1s == 1, "that of plain gradient descent"


def _write_run(storage: FolderStore, name: str, spec: RunSpec, *reports: StepReport) -> None:
    store = new_run(storage, name, spec, {})
    for report in reports:
        store.append_line(f"trials/{report.number:04d}/metrics.jsonl", report.to_json())


def test_time_is_measured_from_earlier_runs_that_trained_the_same(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    assert earlier_seconds(tiny_spec, storage, "cpu:1") == {}
    steps = [StepReport(0, 1, 1, 1, seconds=2.0), StepReport(0, 1, 1, 2, seconds=4.0)]
    reused = StepReport(1, 1, 1, 1, seconds=0.0, reused_from="a/0")
    _write_run(storage, "a", tiny_spec, *steps, StepReport(0, 1, 2, 1, seconds=10.0), reused)
    found = tiny_spec.model_copy(update={"seed": 7, "metric": "ap50", "notes": ["another"]})
    assert earlier_seconds(found, storage, "cpu:1") == {1: 3.0, 2: 10.0}


def test_time_of_other_work_is_not_this_runs(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    step = StepReport(0, 1, 1, 1, seconds=99.0)
    slow = {**tiny_spec.config, "stage1": {**tiny_spec.config["stage1"], "seconds": 9.0}}
    others = {
        "data": {"data": tiny_spec.data.model_copy(update={"fingerprint": "other"})},
        "size": {"data": tiny_spec.data.model_copy(update={"image_size": 224})},
        "config": {"config": slow},
        "search": {"search": {"stage2.bias": tiny_spec.search["stage2.bias"]}},
    }
    for name, other in others.items():
        _write_run(storage, name, tiny_spec.model_copy(update=other), step)
    _write_run(storage, "device", tiny_spec, replace(step, device="cuda"), replace(step, step=2, threads=8))
    assert earlier_seconds(tiny_spec, storage, "cpu:1") == {}
    assert earlier_seconds(tiny_spec, storage, "cpu:8") == {1: 99.0}
    assert earlier_seconds(tiny_spec, storage, "cuda") == {1: 99.0}


@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_a_trial_is_measured_where_there_was_none_before(
    tiny_spec: RunSpec, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    monkeypatch.setattr("lt_search.plan.MEASURED_SECONDS", limit)
    inputs = RunInputs.of(tiny_spec, load_dataset(str(tiny_csv)), {}, tmp_path)
    costs = measure(tiny_spec, LoadedInputs(inputs, torch.device("cpu")), FolderStore(tmp_path / "runs"))
    assert min(costs.seconds.values()) > 0
    steps = 2 if limit == 0 else 4
    assert costs.origin == f"{steps} steps of stage 1, 2 steps of stage 2 of the first trial, trained now"
    floats = 16 * 3 + 3  # weight and bias of the tiny trainer
    assert costs.checkpoint_bytes == 3 * 4 * floats
    assert costs.artefact_bytes == 4 * (floats + 16 * 3), "with its velocity"


@pytest.mark.parametrize("concurrent", [1, 2, 16])
@pytest.mark.parametrize("stage1s", [0, 1, 2, 16])
def test_a_stage_1_is_not_divided_among_the_trials_that_share_it(
    tiny_spec: RunSpec, concurrent: int, stage1s: int
) -> None:
    stage1, stage2 = 4 * 3.0, 2 * 10.0 + TURNAROUND
    rounds1, rounds2 = -(-stage1s // concurrent), 16 // concurrent
    expected = Expected(stage1s, stage1s, {}, {1: 4 * stage1s, 2: 2 * 16})
    found = elapsed_seconds(tiny_spec, 16, expected, COSTS, concurrent)
    assert found == pytest.approx(rounds1 * stage1 + rounds2 * stage2)


def test_a_search_takes_as_long_as_one_trial_that_is_never_stopped(tiny_spec: RunSpec) -> None:
    found = elapsed_seconds(tiny_spec, 16, _expect(tiny_spec, 16), COSTS, 16)
    assert found == pytest.approx(4 * 3.0 + 2 * 10.0 + TURNAROUND)


FOUR_STAGE1S = Expected(4, 2, {Rung(1, 1): 4, Rung(1, 3): 2, Rung(2, 1): 14}, {1: 10, 2: 21})


def test_the_plan_says_what_it_takes(tiny_spec: RunSpec) -> None:
    shown = _shown(tiny_spec, FOUR_STAGE1S)
    total = 3 * 10 + 10 * 21 + round(16 * TURNAROUND)
    assert f"{total // 60}m {total % 60:02d}s: {total / 3600:.2g} device-hours of one CPU core" in shown
    assert "about 4 stage-1 trainings for 16 trials" in shown
    assert f"{total // 2 // 60}m {total // 2 % 60:02d}s, 2 trials at a time" in shown
    assert "16, 2 at a time; the first one has the defaults" in shown
    assert "1.0 MiB a checkpoint" in shown


def _shown(spec: RunSpec, expected: Expected, begun: Begun = NOTHING) -> str:
    return render_plan(spec, 16, expected, COSTS, concurrent=2, keep_gb=10, device="CPU core", begun=begun)


def _ended(number: int, rungs: list[Rung], state: TrialState = TrialState.COMPLETE, **more: object) -> FrozenTrial:
    """A trial of its own stage 1 that has a value at some rungs."""
    entry = {"key": str(number), "value": 9.0, "standard_error": 0.0, "counts": True, "decision": "continue"} | more
    entries = {rung_attribute(rung): entry for rung in rungs}
    return optuna.trial.create_trial(
        state=state, value=0.5 if state == TrialState.COMPLETE else None, user_attrs=entries
    )


def test_the_plan_of_a_run_that_was_begun_says_what_is_left(tiny_spec: RunSpec) -> None:
    begun = Begun(21, [_ended(number, []) for number in range(5)])
    shown = _shown(tiny_spec, FOUR_STAGE1S, begun)
    assert "16 to go, 2 at a time; 5 of 21 have ended" in shown
    assert "the first one has the defaults" not in shown


def test_the_trials_of_a_run_that_was_begun_are_peers_at_its_rungs(tiny_spec: RunSpec) -> None:
    spec = tiny_spec.model_copy(update={"eta": 20})
    ended = [_ended(number, [Rung(1, 1)]) for number in range(19)]
    running = _ended(19, [Rung(1, 1)], TrialState.RUNNING)  # it comes there in what is left
    alone = _expect(spec, 12).arrivals
    assert alone == {Rung(1, 1): 12, Rung(1, 3): 12, Rung(2, 1): 12}, "fewer than eta are not stopped"
    begun = _expect(spec, 12, Begun(32, [*ended, running]))
    assert begun.arrivals[Rung(1, 1)] == 12
    assert 1 <= begun.arrivals[Rung(1, 3)] < 4, "the first one makes up the number, of the rest the best go on"


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_what_a_run_has_measured_is_compared_by_its_order(tiny_spec: RunSpec, scale: float) -> None:
    stopped = [_ended(number, [Rung(1, 1)], value=scale * number) for number in range(20)]
    finished = [_ended(number, [Rung(1, 1), Rung(1, 3)], value=scale * number) for number in range(20, 40)]
    first, second, third = _expect(tiny_spec, 60, Begun(100, [*stopped, *finished])).arrivals.values()
    assert first == 60
    assert second == pytest.approx(30, abs=10)
    assert third == pytest.approx(15, abs=10)


def test_a_stage_1_that_a_run_has_stopped_is_not_planned_again(tiny_spec: RunSpec) -> None:
    fixed = _searching(tiny_spec)
    address = stage1_address(fixed, fixed.first_values())
    ended = _ended(0, [Rung(1, 1)], TrialState.PRUNED, key=address, decision="stop")
    expected = _expect(fixed, 12, Begun(13, [ended]))
    assert (expected.stage1s, expected.steps) == (0, {1: 0, 2: 0})
    off = _expect(fixed, 12, Begun(13, [ended], off={Rung(1, 1)}))
    assert (off.stage1s, off.steps[1], off.arrivals[Rung(2, 1)]) == (1, 4, 12)


def test_a_rung_that_was_turned_off_stops_nothing_in_the_plan(tiny_spec: RunSpec) -> None:
    begun = Begun(21, [_ended(0, [])], off={Rung(1, 1)})
    expected = _expect(tiny_spec, 16, begun)
    come = expected.arrivals
    assert come[Rung(1, 1)] == come[Rung(1, 3)] == 16
    assert come[Rung(2, 1)] == pytest.approx(8, abs=3)
    shown = _shown(tiny_spec, expected, begun)
    assert "stage 1 step 1: about 16 stage 1s come, all go on" in shown
    assert "stage 1 step 3: about 16 stage 1s come, the best 1/2 go on" in shown
    assert "about 16 stage 1s come, all go on (--no-prune)" in _shown(
        tiny_spec.model_copy(update={"prune": False}), expected
    )


@pytest.mark.parametrize("rungs", [[1, 3], [4]])
def test_disk_is_taken_by_the_stage_1s_that_come_to_their_end(tiny_spec: RunSpec, rungs: list[int]) -> None:
    spec = tiny_spec.model_copy(update={"rungs": {"stage1": rungs, "stage2": [1]}})
    expected = _expect(spec, 16)
    come = expected.arrivals[Rung(2, 1)]
    assert come < expected.stage1s == 16
    finished = 16 if rungs == [4] else come  # a rung at the end stops what is stored
    assert expected.finished_stage1s == finished
    assert f"{2 * finished:.1f} MiB of shared stage 1s" in _shown(spec, expected)
    assert _expect(spec.model_copy(update={"prune": False}), 16).finished_stage1s == 16


def _sampler(spec: RunSpec) -> BaseSampler:
    stage1 = [name for name, parameter in spec.parameters.items() if parameter.stage == "stage1"]
    staged = StagedSampler(stage1, cost_ratio=spec.cost_ratio, seed=spec.seed)
    return staged if spec.sampler == "staged" else ReseededSampler(spec.seed, spec.sampler)


def _search(spec: RunSpec, trials: int, folder: Path) -> Expected:
    """What a search with the referee's decisions trains, where a trial's values are a smooth function of its config."""
    with sole_driver(folder):
        journal = Journal(folder / "journal.log", _sampler(spec))
    journal.study.set_user_attr(TRIALS, trials)
    stages = StageStore(FolderStore(folder))
    referee = Referee(spec, journal, FolderStore(folder), stage_storage=FolderStore(folder))
    end = spec.stage_lengths[0]
    stage1s: set[str] = set()
    steps = {1: 0, 2: 0}
    while (job := referee.next_job()) is not None:
        stage1, stage2 = job.config["stage1"], job.config["stage2"]
        worth = math.exp(-(math.log(stage1["lr"] / 0.4) ** 2) / 2) + 0.1 * (stage1["optimiser"] == "momentum")
        value = worth - 0.3 * (stage2["bias"] - 0.4) ** 2
        report = StepReport(job.number, 1, 1, 0, value=worth, standard_error=0.01, seconds=1.0)
        steps1 = [replace(report, step=step) for step in range(1, end + 1)]
        steps2 = [replace(report, stage=2, step=step, value=value, final=step == 2) for step in (1, 2)]
        if stages.has(job.address):
            known = [replace(step, reused_from="another", seconds=0.0) for step in steps1]
            steps1 = [replace(known[-1], history=known[:-1], stage1_seconds=float(end))]
        stage1s.add(job.address)
        for step in [*steps1, *steps2]:
            steps[step.stage] += not step.history
            if step.rung == Rung(1, end) and not step.history:
                stored = StageOne({"weight": torch.zeros(1)}, {}, tuple(steps1), spec.metric, "another", spec.trainer)
                stages.publish(job.address, stored)
            if referee.observe(step) is Decision.STOP:
                break
    return Expected(len(stage1s), sum(map(stages.has, stage1s)), {}, steps)


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
    assert sum(each.stage1s for each in planned) == pytest.approx(sum(each.stage1s for each in trained), **near)
    assert work(planned) == pytest.approx(work(trained), **near)

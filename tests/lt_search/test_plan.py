from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from pydantic import model_validator

from lt_search.address import stage1_address
from lt_search.data.registry import load_dataset
from lt_search.messages import RunInputs, StepReport
from lt_search.plan import (
    NOTHING,
    TURNAROUND,
    Begun,
    Expected,
    StageCosts,
    earlier_seconds,
    elapsed_seconds,
    expect,
    expected_stage1s,
    going_on,
    measure,
    render_plan,
)
from lt_search.referee import rung_attribute
from lt_search.run_folder import new_run
from lt_search.rungs import Rung
from lt_search.sampler import ReseededSampler, propose
from lt_search.session import LoadedInputs
from lt_search.spec import RunSpec
from lt_search.store import FolderStore
from lt_search.values import flatten
from tests.tiny import TinyConfig, TinyTrainer

COSTS = StageCosts({1: 3.0, 2: 10.0}, "a test", checkpoint_bytes=2**20, artefact_bytes=2**21)


@pytest.mark.parametrize(("come", "eta", "go"), [(27, 3, 9), (9, 3, 3), (4, 3, 3), (2, 3, 2), (16, 2, 8)])
def test_a_rung_keeps_its_share_but_never_stops_the_first_eta(come: int, eta: int, go: int) -> None:
    assert going_on(come, eta) == go


def test_arrivals_and_steps_of_a_halving_search(tiny_spec: RunSpec) -> None:
    assert tiny_spec.eta == 2
    expected = expect(tiny_spec, 16, 16)
    assert expected.arrivals == {Rung(1, 1): 16, Rung(1, 3): 8, Rung(2, 1): 4}
    # stage 1: 16 take step 1, 8 take steps 2 and 3, 4 take step 4; stage 2: 4, then 2
    assert expected.steps == {1: 16 + 8 + 8 + 4, 2: 4 + 2}


def test_a_shared_stage_1_is_trained_once_and_its_trials_all_come_to_stage_2(tiny_spec: RunSpec) -> None:
    expected = expect(tiny_spec, 16, 4)
    # 4 stage 1s, 2 of them after step 1, of which the rung at step 3 stops none; the two that were stopped had one
    # trial each, so 14 trials come to stage 2
    assert expected.arrivals == {Rung(1, 1): 4, Rung(1, 3): 2, Rung(2, 1): 14}
    assert expected.steps == {1: 4 + 2 + 2 + 2, 2: 14 + 7}


def test_without_pruning_every_trial_takes_every_step(tiny_spec: RunSpec) -> None:
    spec = tiny_spec.model_copy(update={"prune": False})
    assert expect(spec, 16, 16).steps == {1: 16 * 4, 2: 16 * 2}


def _stage1s(spec: RunSpec, trials: int, stored: bool = False) -> int:
    return expected_stage1s(spec, trials, COSTS, ReseededSampler(0, "random"), lambda address: stored)


def test_stage_1_trainings_are_counted_by_address(tiny_spec: RunSpec) -> None:
    fixed = tiny_spec.model_copy(update={"search": {"stage2.bias": tiny_spec.search["stage2.bias"]}})
    assert _stage1s(fixed, 12) == 1
    assert _stage1s(fixed, 12, stored=True) == 0
    assert _stage1s(fixed.model_copy(update={"reuse": False}), 12) == 12
    assert _stage1s(tiny_spec, 12) == 12
    assert _stage1s(tiny_spec, 1000) == 1000, "of a long search, the first proposals stand for all"


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
        expected_stage1s(
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
    assert _stage1s(spec, 12) == 2
    monkeypatch.setattr(TinyTrainer, "config_type", Exclusive)
    assert _stage1s(spec, 12) == 1, "that of plain gradient descent"


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
    spec = tiny_spec.model_copy(update={"prune": False})
    stage1, stage2 = 4 * 3.0, 2 * 10.0 + TURNAROUND
    rounds1, rounds2 = -(-stage1s // concurrent), 16 // concurrent
    found = elapsed_seconds(spec, 16, expect(spec, 16, stage1s), COSTS, concurrent)
    assert found == pytest.approx(rounds1 * stage1 + rounds2 * stage2)


def test_a_search_takes_as_long_as_one_trial_that_is_never_stopped(tiny_spec: RunSpec) -> None:
    found = elapsed_seconds(tiny_spec, 16, expect(tiny_spec, 16, 16), COSTS, 16)
    assert found == pytest.approx(4 * 3.0 + 2 * 10.0 + TURNAROUND)


def test_the_plan_says_what_it_takes(tiny_spec: RunSpec) -> None:
    expected = expect(tiny_spec, 16, 4)
    shown = _shown(tiny_spec, expected)
    total = 3 * 10 + 10 * 21 + round(16 * TURNAROUND)
    assert f"{total // 60}m {total % 60:02d}s: {total / 3600:.2g} device-hours of one CPU core" in shown
    assert "about 4 stage-1 trainings for 16 trials" in shown
    assert f"{total // 2 // 60}m {total // 2 % 60:02d}s, 2 trials at a time" in shown
    assert "16, 2 at a time; the first one has the defaults" in shown
    assert "1.0 MiB a checkpoint" in shown


def _shown(spec: RunSpec, expected: Expected, begun: Begun = NOTHING) -> str:
    return render_plan(spec, 16, expected, COSTS, concurrent=2, keep_gb=10, device="CPU core", begun=begun)


def _ended(number: int, rungs: list[Rung], state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    """A trial of its own stage 1 that has a value at some rungs."""
    entries = {
        rung_attribute(rung): {"key": str(number), "value": 0.5, "standard_error": 0.0, "counts": True}
        for rung in rungs
    }
    return optuna.trial.create_trial(
        state=state, value=0.5 if state == TrialState.COMPLETE else None, user_attrs=entries
    )


def test_the_plan_of_a_run_that_was_begun_says_what_is_left(tiny_spec: RunSpec) -> None:
    begun = Begun(21, [_ended(number, []) for number in range(5)])
    shown = _shown(tiny_spec, expect(tiny_spec, 16, 4), begun)
    assert "16 to go, 2 at a time; 5 of 21 have ended" in shown
    assert "the first one has the defaults" not in shown


def test_the_trials_of_a_run_that_was_begun_are_peers_at_its_rungs(tiny_spec: RunSpec) -> None:
    spec = tiny_spec.model_copy(update={"eta": 3})
    ended = [_ended(0, [Rung(1, 1), Rung(1, 3)]), _ended(1, [Rung(1, 1)])]
    running = _ended(2, [Rung(1, 1)], TrialState.RUNNING)  # it comes there in what is left
    assert expect(spec, 4, 4).arrivals == {Rung(1, 1): 4, Rung(1, 3): 3, Rung(2, 1): 3}
    assert expect(spec, 4, 4, Begun(6, [*ended, running])).arrivals == {Rung(1, 1): 4, Rung(1, 3): 1, Rung(2, 1): 1}


def test_a_rung_that_was_turned_off_stops_nothing_in_the_plan(tiny_spec: RunSpec) -> None:
    begun = Begun(21, [_ended(0, [])], off={Rung(1, 1)})
    expected = expect(tiny_spec, 16, 16, begun)
    assert expected.arrivals == {Rung(1, 1): 16, Rung(1, 3): 16, Rung(2, 1): 8}
    shown = _shown(tiny_spec, expected, begun)
    assert "stage 1 step 1: about 16 stage 1s come, all go on" in shown
    assert "stage 1 step 3: about 16 stage 1s come, the best 1/2 go on" in shown
    assert "about 16 stage 1s come, all go on (--no-prune)" in _shown(
        tiny_spec.model_copy(update={"prune": False}), expected
    )


@pytest.mark.parametrize(("rungs", "finished"), [([1, 3], 4), ([4], 16)])
def test_disk_is_taken_by_the_stage_1s_that_come_to_their_end(
    tiny_spec: RunSpec, rungs: list[int], finished: int
) -> None:
    spec = tiny_spec.model_copy(update={"rungs": {"stage1": rungs, "stage2": [1]}})
    expected = expect(spec, 16, 16)
    assert (expected.stage1s, expected.finished_stage1s) == (16, finished), "a rung at the end stops what is stored"
    assert f"{2 * finished:.1f} MiB of shared stage 1s" in _shown(spec, expected)
    assert expect(spec.model_copy(update={"prune": False}), 16, 16).finished_stage1s == 16

"""Measured costs of a trial, and the text of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import FrozenTrial

from lt_search.config.spec import RunSpec
from lt_search.data.registry import load_dataset
from lt_search.pruning.rungs import Rung
from lt_search.storage.files import FolderStore
from lt_search.storage.records import StepReport
from lt_search.storage.run_folder import new_run
from lt_search.training.inputs import LoadedInputs, RunInputs
from lt_search.tuning.plan import earlier_seconds, elapsed_seconds, measure, render_plan
from lt_search.tuning.simulation import TURNAROUND, Expected
from tests.helpers.plans import COSTS, ended_trial, expected_at_random

FOUR_STAGE1_RUNS = Expected(4, 2, {Rung(1, 1): 4, Rung(1, 3): 2, Rung(2, 1): 14}, {1: 10, 2: 21})


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
    monkeypatch.setattr("lt_search.tuning.plan.MEASURED_SECONDS", limit)
    inputs = RunInputs.of(tiny_spec, load_dataset(str(tiny_csv)), {}, tmp_path)
    costs = measure(tiny_spec, LoadedInputs(inputs, torch.device("cpu")), FolderStore(tmp_path / "runs"))
    assert min(costs.seconds.values()) > 0
    steps = 2 if limit == 0 else 4
    assert costs.origin == f"{steps} steps of stage 1, 2 steps of stage 2 of the first trial, trained now"
    floats = 16 * 3 + 3  # weight and bias of the tiny trainer
    assert costs.checkpoint_bytes == 3 * 4 * floats
    assert costs.artefact_bytes == 4 * (floats + 16 * 3), "with its velocity"


@pytest.mark.parametrize("concurrent", [1, 2, 16])
@pytest.mark.parametrize("runs1", [0, 1, 2, 16])
def test_a_stage_1_is_not_divided_among_the_trials_that_share_it(
    tiny_spec: RunSpec, concurrent: int, runs1: int
) -> None:
    stage1, stage2 = 4 * 3.0, 2 * 10.0 + TURNAROUND
    rounds1, rounds2 = -(-runs1 // concurrent), 16 // concurrent
    expected = Expected(runs1, runs1, {}, {1: 4 * runs1, 2: 2 * 16})
    found = elapsed_seconds(tiny_spec, 16, expected, COSTS, concurrent)
    assert found == pytest.approx(rounds1 * stage1 + rounds2 * stage2)


def test_a_search_takes_as_long_as_one_trial_that_is_never_stopped(tiny_spec: RunSpec) -> None:
    found = elapsed_seconds(tiny_spec, 16, expected_at_random(tiny_spec, 16), COSTS, 16)
    assert found == pytest.approx(4 * 3.0 + 2 * 10.0 + TURNAROUND)


def test_the_plan_shows_what_a_search_takes(tiny_spec: RunSpec) -> None:
    shown = _shown(tiny_spec, FOUR_STAGE1_RUNS)
    total = 3 * 10 + 10 * 21 + round(16 * TURNAROUND)
    assert f"{total // 60}m {total % 60:02d}s: {total / 3600:.2g} device-hours of one CPU core" in shown
    assert "about 4 stage-1 trainings for 16 trials" in shown
    assert f"{total // 2 // 60}m {total // 2 % 60:02d}s, 2 trials at a time" in shown
    assert "16, 2 at a time; the first one has the defaults" in shown
    assert "1.0 MiB a checkpoint" in shown


def _shown(spec: RunSpec, expected: Expected, started: Sequence[FrozenTrial] = ()) -> str:
    return render_plan(spec, 16, expected, COSTS, concurrent=2, keep_gb=10, device="CPU core", started=started)


def test_the_plan_of_a_resumed_run_shows_what_is_left(tiny_spec: RunSpec) -> None:
    shown = _shown(tiny_spec, FOUR_STAGE1_RUNS, [ended_trial(number, []) for number in range(5)])
    assert "16 to go, 2 at a time; 5 of 21 have ended" in shown
    assert "the first one has the defaults" not in shown


def test_the_plan_shows_how_many_reach_each_rung_and_continue(tiny_spec: RunSpec) -> None:
    shown = _shown(tiny_spec, FOUR_STAGE1_RUNS)
    assert "stage 1 step 1: about 4 stage-1 configurations reach it, the best 1/2 continue" in shown
    assert "stage 2 step 1: about 14 trials reach it, the best 1/2 continue" in shown
    unpruned = _shown(tiny_spec.model_copy(update={"prune": False}), FOUR_STAGE1_RUNS)
    assert "about 4 stage-1 configurations reach it, all continue (--no-prune)" in unpruned


@pytest.mark.parametrize("rungs", [[1, 3], [4]])
def test_disk_is_taken_by_the_stage_1_runs_that_finish(tiny_spec: RunSpec, rungs: list[int]) -> None:
    spec = tiny_spec.model_copy(update={"rungs": {"stage1": rungs, "stage2": [1]}})
    expected = expected_at_random(spec, 16)
    come = expected.arrivals[Rung(2, 1)]
    assert come < expected.stage1_runs == 16
    finished = 16 if rungs == [4] else come  # a rung at the end stops what is stored
    assert expected.stage1_artefacts == finished
    assert f"{2 * finished:.1f} MiB of shared stage-1 artefacts" in _shown(spec, expected)
    assert expected_at_random(spec.model_copy(update={"prune": False}), 16).stage1_artefacts == 16

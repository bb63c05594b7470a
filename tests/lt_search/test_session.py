"""Trials without Ray: the two stages, their checkpoints, and what a worker does after it was killed."""

from __future__ import annotations

import errno
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_search.checkpoints import checkpoint_files, load_checkpoint
from lt_search.data.registry import load_dataset
from lt_search.messages import RunInputs, StepReport, TrialJob
from lt_search.rungs import Rung
from lt_search.session import LoadedInputs, TrialSession
from lt_search.spec import RunSpec
from lt_search.store import FolderStore


@pytest.fixture
def inputs(tiny_spec: RunSpec, tiny_csv: Path, tmp_path: Path) -> RunInputs:
    return RunInputs.of(tiny_spec, load_dataset(str(tiny_csv)), {}, tmp_path / "run")


def _session(inputs: RunInputs, spec: RunSpec, attempt: int = 1, number: int = 0, **values: Any) -> TrialSession:
    job = TrialJob(number, attempt, spec.resolve({f"stage1.{name}": value for name, value in values.items()}))
    return TrialSession(job, LoadedInputs(inputs, torch.device("cpu")))


def _to_the_end(session: TrialSession) -> list[StepReport]:
    reports = [session.advance()]
    while not reports[-1].ended:
        reports.append(session.advance())
    return reports


def _plain(report: StepReport) -> StepReport:
    return replace(report, seconds=0.0, attempt=0)


def test_goes_through_both_stages(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    reports = _to_the_end(_session(inputs, tiny_spec))
    assert [(r.stage, r.step) for r in reports] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)]
    assert [r.final for r in reports] == [False] * 5 + [True]
    judged = [r.standard_error is not None for r in reports]
    assert judged == [True, False, True, True, True, True], "errors at rungs and at the end of each stage"


def test_stage_1_is_judged_by_the_probe_and_stage_2_by_the_head(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    reports = {(r.stage, r.step): r for r in _to_the_end(_session(inputs, tiny_spec))}
    assert reports[1, 1].value == reports[1, 1].scalars["probe_mAP"]
    assert reports[1, 1].scalars["mAP"] > 0
    assert reports[1, 2].value is None
    assert reports[2, 1].value == reports[2, 1].scalars["mAP"]


def test_a_worker_killed_after_any_step_is_followed_by_one_that_gives_the_same_reports(
    inputs: RunInputs, tiny_spec: RunSpec, tmp_path: Path
) -> None:
    whole = [_plain(report) for report in _to_the_end(_session(inputs, tiny_spec))]
    for killed_after in range(1, len(whole) + 1):
        own = replace(inputs, run_folder=str(tmp_path / f"killed{killed_after}"))
        first = _session(own, tiny_spec)
        for _ in range(killed_after):
            first.advance()
        second = [_plain(report) for report in _to_the_end(_session(own, tiny_spec, attempt=2))]
        assert second == whole[len(whole) - len(second) :]
        assert len(second) >= len(whole) - killed_after + 1, "the last known step is told again"


def test_a_complete_checkpoint_only_reports(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    final = _to_the_end(_session(inputs, tiny_spec))[-1]
    session = _session(inputs, tiny_spec, attempt=2)
    done = list(session.trainer.done)
    assert session.advance() == final
    assert session.trainer.done == done == [4, 2]


def test_a_left_over_worker_does_not_touch_the_next_attempts_checkpoint(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    old = _session(inputs, tiny_spec)
    old.advance()
    new = _session(inputs, tiny_spec, attempt=2)
    for _ in range(4):
        new.advance()
    old.advance()
    old.advance()
    store = FolderStore(Path(inputs.run_folder))
    assert len(checkpoint_files(store, 0)) == 2
    checkpoint = load_checkpoint(store, 0)
    assert checkpoint is not None
    assert checkpoint.report.rung == Rung(1, 4)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    inputs: RunInputs, tiny_spec: RunSpec, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = [_plain(report) for report in _to_the_end(_session(inputs, tiny_spec))]
    store = FolderStore(Path(inputs.run_folder))
    [name] = checkpoint_files(store, 0)
    content = store.read(name)
    store.write(name, {"truncate": content[:-10], "garbage": b"x" * 500, "empty": b""}[damage])
    assert [_plain(report) for report in _to_the_end(_session(inputs, tiny_spec, attempt=2))] == whole
    assert sum("damaged" in record.message for record in caplog.records) == 1


def test_a_trainer_that_raises_gives_a_failed_report_with_its_last_lines(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    reports = _to_the_end(_session(inputs, tiny_spec, fail_above_lr=0.1))
    assert len(reports) == 2
    failure = reports[-1].failure
    assert failure is not None
    assert failure.splitlines()[-1] == "ArithmeticError: learning rate 0.5 is too large <for & this test>"


def test_nan_fails_the_trial_and_is_no_value(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    reports = _to_the_end(_session(inputs, tiny_spec, nan_above_lr=0.1))
    assert reports[-1].failure == "loss is nan at stage 1 step 2"
    checkpoint = load_checkpoint(FolderStore(Path(inputs.run_folder)), 0)
    assert checkpoint is not None
    assert checkpoint.report.rung == Rung(1, 1), "what diverged is not saved"


def test_reports_survive_json(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    for report in _to_the_end(_session(inputs, tiny_spec)):
        assert StepReport.from_json(report.to_json()) == report
    odd = StepReport(1, 1, 1, 1, value=math.inf, scalars={"x": math.nan})
    assert math.isnan(StepReport.from_json(odd.to_json()).scalars["x"])


def test_a_trial_is_handed_nothing_of_the_test_split(tiny_spec: RunSpec, tiny_csv: Path, tmp_path: Path) -> None:
    import pickle

    dataset = load_dataset(str(tiny_csv))
    inputs = RunInputs.of(tiny_spec, dataset, {}, tmp_path / "run")
    content = pickle.dumps(inputs)
    assert dataset.val.ids[0].encode() in content
    for name in (*dataset.test.ids, *(f"{group}\x94" for group in set(dataset.test.groups))):
        assert name.encode() not in content


def test_a_full_disk_is_no_fault_of_the_trial(
    inputs: RunInputs, tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    session = _session(inputs, tiny_spec)
    monkeypatch.setattr(session.store, "write_with", full)
    report = session.advance()
    assert report.failure is None
    assert report.ended
    assert not report.final
    assert "No space left" in str(report.storage_failure)

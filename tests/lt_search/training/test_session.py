"""Trials without Ray: the two stages, their checkpoints, and what a worker does after it was killed."""

from __future__ import annotations

import errno
import math
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lt_search.config.options import SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.spec import RunSpec
from lt_search.data.decoded import open_images
from lt_search.data.extra import add_extra_data
from lt_search.data.registry import load_dataset
from lt_search.pruning.rungs import Rung
from lt_search.storage.addresses import compute_kind
from lt_search.storage.checkpoints import checkpoint_files, load_checkpoint
from lt_search.storage.files import FolderStore
from lt_search.storage.provenance import machine
from lt_search.storage.records import StepReport
from lt_search.storage.stage_store import StageStore
from lt_search.training.inputs import LoadedInputs, RunInputs, TrialJob
from lt_search.training.session import TrialSession
from tests.helpers.extra_data import extra_table
from tests.tiny import TinyTrainer


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
        assert len(second) >= len(whole) - killed_after + 1, "the last known step is reported again"


def test_a_complete_checkpoint_only_reports(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    final = _to_the_end(_session(inputs, tiny_spec))[-1]
    session = _session(inputs, tiny_spec, attempt=2)
    done = list(session.trainer.done)
    assert session.advance() == final
    assert session.trainer.done == done == [4, 2]


@pytest.fixture
def sharing(inputs: RunInputs, tmp_path: Path) -> RunInputs:
    return replace(inputs, stage_storage=str(tmp_path))


def _sharing_session(
    inputs: RunInputs, spec: RunSpec, number: int, *, stored: bool = False, **stage2: Any
) -> TrialSession:
    config = spec.resolve({f"stage2.{name}": value for name, value in stage2.items()})
    return TrialSession(_sharing_job(number, config, stored), LoadedInputs(inputs, torch.device("cpu")))


def _sharing_job(number: int, config: dict[str, Any], stored: bool = False) -> TrialJob:
    return TrialJob(number, 1, config, "abc", compute_kind("cpu", torch.get_num_threads()), stored)


def _stage1_reports(report: StepReport) -> list[StepReport]:
    return [*report.history, replace(report, history=[])]


def test_a_trial_whose_stage_1_is_stored_starts_at_stage_2(sharing: RunInputs, tiny_spec: RunSpec) -> None:
    first = _to_the_end(_sharing_session(sharing, tiny_spec, 0, bias=0.5))
    session = _sharing_session(sharing, tiny_spec, 1, bias=-0.5)
    second = _to_the_end(session)
    assert [(r.stage, r.step) for r in second] == [(1, 4), (2, 1), (2, 2)]
    taken = _stage1_reports(second[0])
    rungs = [first[0], first[2], first[3]]
    assert [(r.stage, r.step) for r in taken] == [(1, 1), (1, 3), (1, 4)], "what was judged"
    assert [r.value for r in taken] == [r.value for r in rungs]
    assert [r.standard_error for r in taken] == [r.standard_error for r in rungs]
    assert {r.reused_from for r in taken} == {"run/0"}
    assert {r.number for r in taken} == {1}
    assert second[0].stage1_seconds == pytest.approx(sum(r.seconds for r in first[:4]))
    assert second[-1].scalars["shift"] == -0.5


def test_reuse_changes_the_cost_and_never_the_result(sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path) -> None:
    alone = replace(sharing, stage_storage=None, run_folder=str(tmp_path / "alone"))
    for number, bias in enumerate((0.5, -0.5, 0.25)):
        with_reuse = _to_the_end(_sharing_session(sharing, tiny_spec, number, bias=bias))
        without = _to_the_end(_sharing_session(alone, tiny_spec, number, bias=bias))
        assert len(with_reuse) == (6 if number == 0 else 3)
        for a, b in zip(with_reuse[-2:], without[-2:], strict=True):
            assert replace(a, seconds=0.0) == replace(b, seconds=0.0)


def test_a_run_with_another_objective_and_other_rungs_takes_what_it_needs(
    sharing: RunInputs, tiny_spec: RunSpec
) -> None:
    first = _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    other = replace(sharing, metric="macro_auc", rungs=(Rung(1, 1), Rung(1, 2)))
    taken = _stage1_reports(_sharing_session(other, tiny_spec, 1).advance())
    probes = [r.scalars.get("probe_macro_auc") for r in first[:4]]
    assert probes[0] is not None
    assert [r.rung for r in taken] == [Rung(1, 1), Rung(1, 4)], "step 2 was no rung when it was trained"
    assert [r.value for r in taken] == [probes[0], probes[3]]
    assert all(r.standard_error is None for r in taken), "the error is one of another metric"


def test_a_trial_goes_on_from_its_checkpoint_and_not_from_the_store(sharing: RunInputs, tiny_spec: RunSpec) -> None:
    _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    final = _sharing_session(sharing, tiny_spec, 0).advance()
    assert final.final


def test_a_trial_killed_in_stage_1_still_stores_all_its_steps(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path
) -> None:
    killed = _sharing_session(sharing, tiny_spec, 0)
    for _ in range(3):
        killed.advance()
    whole = _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    assert whole[0].rung == Rung(1, 3)
    stored = StageStore(FolderStore(tmp_path)).load("abc")
    assert stored is not None
    assert [r.rung for r in stored.history] == [Rung(1, step) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("harm", ["damage", "delete"])
def test_a_stage_1_that_is_damaged_or_gone_is_trained_again_with_one_warning(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path, harm: str
) -> None:
    first = _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    stages = StageStore(FolderStore(tmp_path))
    if harm == "damage":
        path = tmp_path / "stage1" / "abc" / "stage1.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    else:
        stages.discard("abc")
    second = _to_the_end(_sharing_session(sharing, tiny_spec, 1, stored=True))
    assert [r.rung for r in second] == [r.rung for r in first]
    assert [r.value for r in second] == [r.value for r in first]
    warnings = [r.warning for r in second if r.warning]
    assert len(warnings) == 1
    assert "training it again" in warnings[0]
    assert stages.fault("abc") is None, "it is published again"


def test_a_stage_1_that_cannot_be_stored_stays_the_trials_own(
    sharing: RunInputs, tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FolderStore, "publish", full)
    reports = _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    assert reports[-1].final
    assert [bool(r.warning) for r in reports] == [False] * 3 + [True] + [False] * 2


@pytest.mark.parametrize(
    "changed",
    [
        {"state": {"model": {}}},
        {"features": {"no split": torch.zeros(1)}},
        {"history": ()},
        {"history": (StepReport(0, 1, 1, 2),)},
    ],
    ids=["state", "features", "no history", "other length"],
)
def test_an_intact_artefact_that_does_not_fit_the_trainer_stays_and_every_trial_trains_its_own(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path, changed: dict[str, Any]
) -> None:
    first = _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    stages = StageStore(FolderStore(tmp_path))
    stored = stages.load("abc")
    assert stored is not None
    stages.discard("abc")
    stages.publish("abc", replace(stored, **changed))
    for number in (1, 2):
        own = _to_the_end(_sharing_session(sharing, tiny_spec, number, stored=True))
        assert [(r.rung, r.value) for r in own] == [(r.rung, r.value) for r in first]
        # The warning is repeated at the end of stage 1, so that the controller knows that the reason persists.
        assert [r.rung for r in own if r.warning] == [Rung(1, 1), Rung(1, 4)]
        assert stages.fault("abc") is None, "its digest fits, so it is not damaged"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=["host", "device"])
def test_too_little_memory_for_a_stored_stage_1_fails_the_trial_and_spares_the_artefact(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    _fail_to_load(monkeypatch, error)
    with pytest.raises(type(error)):
        _sharing_session(sharing, tiny_spec, 1, stored=True)
    monkeypatch.undo()
    assert StageStore(FolderStore(tmp_path)).load("abc") is not None


def test_an_error_of_the_device_while_a_stored_stage_1_is_loaded_spares_the_artefact(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    _fail_to_load(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"))
    second = _to_the_end(_sharing_session(sharing, tiny_spec, 1, stored=True))
    assert [(r.rung, r.value) for r in second] == [(r.rung, r.value) for r in first]
    assert "CUDA error: an illegal memory access" in (second[0].warning or "")
    assert "damaged" not in (second[0].warning or "")
    monkeypatch.undo()
    assert StageStore(FolderStore(tmp_path)).load("abc") is not None


def _fail_to_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_state(*_: object) -> None:
        raise error

    monkeypatch.setattr(TinyTrainer, "load_state", load_state)


def test_a_stage_1_is_stored_with_what_it_was_trained_on(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path
) -> None:
    _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    stored = StageStore(FolderStore(tmp_path)).load("abc")
    assert stored is not None
    assert stored.trained_on == machine("cpu")
    assert stored.trained_on["torch"] == version("torch")
    assert stored.trained_on["processor"]


def test_a_damaged_stage_1_that_may_not_be_removed_is_reported(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _to_the_end(_sharing_session(sharing, tiny_spec, 0))
    path = tmp_path / "stage1" / "abc" / "stage1.safetensors"
    path.write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FolderStore, "remove", refuse)
    reports = _to_the_end(_sharing_session(sharing, tiny_spec, 1, stored=True))
    assert reports[-1].final
    said = {report.rung: report.warning for report in reports if report.warning}
    assert list(said) == [Rung(1, 1), Rung(1, 4)]
    assert "could not be stored for other trials" in (said[Rung(1, 4)] or "")


def test_a_stage_1_is_stored_only_if_all_of_it_was_computed_as_its_address_says(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path
) -> None:
    stages = StageStore(FolderStore(tmp_path))
    threads = torch.get_num_threads()
    killed = _sharing_session(sharing, tiny_spec, 0)
    torch.set_num_threads(threads + 1)
    try:
        killed.advance()
    finally:
        torch.set_num_threads(threads)
    assert _to_the_end(_sharing_session(sharing, tiny_spec, 0))[-1].final
    assert not stages.has("abc")
    _to_the_end(_sharing_session(sharing, tiny_spec, 1))
    assert stages.has("abc")


def test_a_worker_with_other_code_than_the_drivers_shares_no_stage_1(
    sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path
) -> None:
    stages = StageStore(FolderStore(tmp_path))
    edited = replace(sharing, source="what the file was when the driver read it")
    reports = _to_the_end(_sharing_session(edited, tiny_spec, 0))
    assert not stages.has("abc")
    assert [bool(r.warning) for r in reports] == [True] + [False] * 5
    _to_the_end(_sharing_session(sharing, tiny_spec, 1))
    assert stages.has("abc")
    assert len(_to_the_end(_sharing_session(edited, tiny_spec, 2))) == len(reports), "nor takes one"


def test_what_diverged_is_not_shared(sharing: RunInputs, tiny_spec: RunSpec, tmp_path: Path) -> None:
    config = tiny_spec.resolve({"stage1.nan_above_lr": 0.1})
    job = _sharing_job(0, config)
    assert _to_the_end(TrialSession(job, LoadedInputs(sharing, torch.device("cpu"))))[-1].failure
    assert StageStore(FolderStore(tmp_path)).addresses() == []


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
    checkpoint = load_checkpoint(store, 0, new.job.config)
    assert checkpoint is not None
    assert checkpoint.report.rung == Rung(1, 4)


def test_a_checkpoint_of_another_configuration_is_not_taken_over(inputs: RunInputs, tiny_spec: RunSpec) -> None:
    _to_the_end(_session(inputs, tiny_spec, lr=0.5))
    alone = replace(inputs, run_folder=f"{inputs.run_folder}-alone")
    reports = [_to_the_end(_session(own, tiny_spec, attempt=2, lr=0.1)) for own in (inputs, alone)]
    assert [_plain(report) for report in reports[0]] == [_plain(report) for report in reports[1]]


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
    session = _session(inputs, tiny_spec, nan_above_lr=0.1)
    reports = _to_the_end(session)
    assert reports[-1].failure == "loss is nan at stage 1 step 2"
    checkpoint = load_checkpoint(FolderStore(Path(inputs.run_folder)), 0, session.job.config)
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


SMALL_CXR = ("stage1.epochs=1", "stage2.rounds=1", "stage1.d_model=8", "stage1.heads=2", "stage1.ffn=8")


def test_extra_images_reach_the_trainer_behind_its_own_with_unknown_labels(tiny_csv: Path, tmp_path: Path) -> None:
    table = extra_table(tmp_path / "more", "a", "b|hernia", "", "a|b")
    data = load_dataset(str(tiny_csv))
    extended = add_extra_data(data, [str(table)])
    options = SpecOptions("cxr", budget="small", set=SMALL_CXR)
    spec = resolve_spec(options, extended, gpu=False)
    inputs = RunInputs.of(spec, extended, {}, tmp_path / "run")
    loaded, own = LoadedInputs(inputs, torch.device("cpu")), len(data.train)
    assert loaded.train_labels.dtype == torch.float32
    for policy, unknown in (("mask", math.nan), ("zero", 0.0)):
        config = spec.resolve({"stage1.missing_labels": policy})
        trainer = loaded.build_trainer(config)
        added = [[1, 0, unknown], [0, 1, unknown], [0, 0, unknown], [1, 1, unknown]]
        np.testing.assert_array_equal(trainer.labels, [*data.train.labels.tolist(), *added])
    given = trainer.inputs
    sizes = spec.data.image_size
    both = [open_images(part, sizes) for part in (data.train, extended.extra[0].train)]
    np.testing.assert_array_equal(given.images[np.arange(own + 4)], np.concatenate(both))
    assert list(given.groups or ()) == [*data.train.groups, *(f"patient:more{number}" for number in range(4))]
    assert inputs.val is data.val


def test_a_trial_with_extra_images_goes_through_both_stages_and_its_model_needs_none_of_them(
    tiny_csv: Path, tmp_path: Path
) -> None:
    data = load_dataset(str(tiny_csv))
    extended = add_extra_data(data, [str(extra_table(tmp_path / "more", *["a", "b|hernia", "", "a|b"] * 4))])
    for policy in ("zero", "mask"):
        options = SpecOptions("cxr", budget="small", set=(*SMALL_CXR, f"stage1.missing_labels={policy}"))
        spec = resolve_spec(options, extended, gpu=False)
        inputs = RunInputs.of(spec, extended, {}, tmp_path / policy, tmp_path / policy)
        session = _sharing_session(inputs, spec, 0)
        reports = _to_the_end(session)
        assert [(r.stage, r.step, r.failure) for r in reports] == [(1, 1, None), (2, 1, None)]
        assert all(math.isfinite(value) for r in reports for value in r.scalars.values())
        again = _to_the_end(_sharing_session(inputs, spec, 1))
        assert again[0].reused_from and again[-1].scalars == reports[-1].scalars
        plain = LoadedInputs(RunInputs.of(spec, data, {}, tmp_path / policy), torch.device("cpu"))
        exported = plain.load_trainer(spec.config, session.trainer.state()["model"])
        val = plain.val_images
        assert torch.equal(exported.predict_logits(val), session.trainer.predict_logits(val))


def test_images_without_any_label_give_finite_metrics(tiny_spec: RunSpec, tiny_csv: Path, tmp_path: Path) -> None:
    header, *lines = tiny_csv.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    # Of the 40 patients only every second one keeps its labels, and no image of another one has any.
    kept = [[image, label if int(patient[1:]) % 2 else "", patient] for image, label, patient in cells]
    tiny_csv.write_text("\n".join([header, *(",".join(row) for row in kept)]) + "\n")
    data = load_dataset(str(tiny_csv))
    assert all((part.labels.max(axis=1) == 0).mean() > 0.4 for part in data.parts())
    reports = _to_the_end(_session(RunInputs.of(tiny_spec, data, {}, tmp_path / "run"), tiny_spec))
    assert all(report.failure is None for report in reports)
    assert all(math.isfinite(value) for report in reports for value in report.scalars.values())
    assert reports[-1].standard_error is not None

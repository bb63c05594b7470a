"""An exported configuration: written whole from the best trial, and refused where its files do not belong together."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from optuna.trial import TrialState
from safetensors import safe_open
from safetensors.torch import save_file

from lt_search.config.spec import RunSpec
from lt_search.errors import UserError
from lt_search.results.export import BEST, METRICS, MODEL, export_best, export_run, read_export, reproduces
from lt_search.results.retention import trim_checkpoints
from lt_search.results.summary import RunSummary, TrialSummary
from lt_search.samplers import ReseededSampler
from lt_search.storage.checkpoints import Checkpoint, checkpoint_files, save_checkpoint
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.storage.records import StepReport
from lt_search.storage.run_folder import JOURNAL, new_run
from lt_search.storage.schema import ADDRESS, FINAL

PARAMS = {"stage1.lr": 0.3, "stage2.bias": 0.1}


@pytest.fixture
def store(tiny_spec: RunSpec, tmp_path: Path) -> FolderStore:
    found = new_run(FolderStore(tmp_path), "a", tiny_spec, {"git": "abc"})
    for number, value in enumerate((0.4, 0.6, 0.5)):
        report = StepReport(number, 1, 2, 2, final=True, value=value, scalars={"mAP": value, "loss": math.nan})
        state = {"model": {"w": torch.full((3,), value)}}
        save_checkpoint(found, number, 1, tiny_spec.resolve(PARAMS), Checkpoint(report, state))
    return found


def summary(*values: float) -> RunSummary:
    trials = tuple(TrialSummary(n, "finished", v, 0.1, PARAMS, {}) for n, v in enumerate(values))
    return RunSummary(len(trials), trials, ())


def test_the_best_trial_is_exported_with_its_values_resolved(store: FolderStore, tiny_spec: RunSpec) -> None:
    folder = export_best(tiny_spec, store, summary(0.4, 0.6, 0.5))
    export = read_export(folder)
    assert export.trial == 1
    assert export.reported["mAP"] == 0.6
    assert export.spec.search == {}
    assert export.spec.config["stage1"]["lr"] == 0.3
    assert export.spec.config["stage1"]["epochs"] == tiny_spec.config["stage1"]["epochs"]
    assert json.loads((folder / "provenance.json").read_text())["git"] == "abc"


@pytest.mark.parametrize(
    ("name", "message"), [(MODEL, "does not match the hash in best.yaml"), (METRICS, "two different exports")]
)
def test_a_file_of_another_export_is_refused(store: FolderStore, tiny_spec: RunSpec, name: str, message: str) -> None:
    folder = export_best(tiny_spec, store, summary(0.4, 0.6))
    other = export_best(tiny_spec, store, summary(0.4), folder="other")
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(UserError, match=f"{message}.*\n.*lt-search export RUN"):
        read_export(folder)


def test_a_bit_flipped_model_is_called_damaged(store: FolderStore, tiny_spec: RunSpec) -> None:
    folder = export_best(tiny_spec, store, summary(0.4))
    content = bytearray((folder / MODEL).read_bytes())
    content[-1] ^= 1
    (folder / MODEL).write_bytes(content)
    with pytest.raises(UserError, match="damaged or of another export"):
        read_export(folder)


@pytest.mark.parametrize("name", [BEST, MODEL, METRICS])
def test_a_missing_file_is_named(store: FolderStore, tiny_spec: RunSpec, name: str) -> None:
    folder = export_best(tiny_spec, store, summary(0.4))
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} missing"):
        read_export(folder)


@pytest.mark.parametrize(("name", "text"), [(BEST, "trial: ["), (BEST, "trial: 0"), (METRICS, "{}"), (METRICS, "[1]")])
def test_a_damaged_file_is_refused(store: FolderStore, tiny_spec: RunSpec, name: str, text: str) -> None:
    folder = export_best(tiny_spec, store, summary(0.4))
    (folder / name).write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        read_export(folder)


def test_nothing_is_exported_without_a_finished_trial_or_its_weights(store: FolderStore, tiny_spec: RunSpec) -> None:
    with pytest.raises(UserError, match="no trial of this run has finished"):
        export_best(tiny_spec, store, RunSummary(3, (), ()))
    store.remove("trials/0000")
    with pytest.raises(UserError, match="trial 0 has no intact weights"):
        export_best(tiny_spec, store, summary(0.4))
    assert not store.exists("best")


@pytest.mark.parametrize("content", [b"\xff\xfe\x80", "[" * 5000, "null"])
@pytest.mark.parametrize("name", [BEST, METRICS])
def test_random_content_is_refused(store: FolderStore, tiny_spec: RunSpec, name: str, content: bytes | str) -> None:
    folder = export_best(tiny_spec, store, summary(0.4))
    store.write(f"best/{name}", content)
    with pytest.raises(UserError, match="cannot be read"):
        read_export(folder)
    store.remove(f"best/{name}")
    (folder / name).mkdir()
    with pytest.raises(UserError, match=f"{name} missing"):
        read_export(folder)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_winner_with_damaged_weights_leaves_the_earlier_export(store: FolderStore, tiny_spec: RunSpec) -> None:
    before = _files(export_best(tiny_spec, store, summary(0.4)))
    [name] = checkpoint_files(store, 1)
    damaged = bytearray(store.read(name))
    damaged[-5] ^= 1
    store.write(name, bytes(damaged))
    with pytest.raises(UserError, match=f"trial 1 has no intact weights.*\n.*lt-search repair {store.root}"):
        export_best(tiny_spec, store, summary(0.4, 0.6))
    assert _files(store.path("best")) == before


def test_weights_of_another_configuration_or_training_are_not_exported(store: FolderStore, tiny_spec: RunSpec) -> None:
    with pytest.raises(UserError, match="trial 0 has no intact weights"):
        export_best(tiny_spec, store, summary(0.7))
    other = TrialSummary(0, "finished", 0.4, 0.1, {**PARAMS, "stage1.lr": 0.4}, {})
    with pytest.raises(UserError, match="trial 0 has no intact weights"):
        export_best(tiny_spec, store, RunSummary(1, (other,), ()))


def test_on_a_gpu_a_value_is_reached_within_the_tolerance() -> None:
    [trial] = summary(0.4).trials
    report = StepReport(0, 1, 2, 2, final=True, value=0.401)
    assert not reproduces(report, trial)
    assert reproduces(replace(report, device="cuda"), trial)
    assert not reproduces(replace(report, device="cuda", value=0.42), trial)


def test_an_export_that_is_not_read_back_as_it_was_written_leaves_the_earlier_one(
    store: FolderStore, tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _files(export_best(tiny_spec, store, summary(0.4)))
    real = FolderStore.write

    def flip(self: FolderStore, name: str, content: bytes | str) -> None:
        flipped = content[:-1] + bytes([content[-1] ^ 1]) if isinstance(content, bytes) else content
        real(self, name, flipped)

    monkeypatch.setattr(FolderStore, "write", flip)
    with pytest.raises(OSError, match="cannot be read back"):
        export_best(tiny_spec, store, summary(0.4, 0.6))
    assert _files(store.path("best")) == before


def test_nan_is_null_in_the_metrics_and_nan_again_when_read(store: FolderStore, tiny_spec: RunSpec) -> None:
    folder = export_best(tiny_spec, store, summary(0.4))
    text = (folder / METRICS).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["scalars"]["loss"] is None
    assert math.isnan(read_export(folder).reported["loss"])
    (folder / METRICS).write_text(text.replace('"loss": null', '"loss": NaN'))
    assert math.isnan(read_export(folder).reported["loss"]), "an export of an earlier version"


def test_a_folder_that_cannot_be_written_is_named(
    store: FolderStore, tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.rename("trials/0000", "kept")
    store.remove("trials")
    journal = Journal(store.path(JOURNAL), ReseededSampler(0))
    journal.study.enqueue_trial(PARAMS)
    trial = journal.study.ask()
    for name in PARAMS:
        trial.suggest_float(name, 0, 1)
    journal.set(0, ADDRESS, "a")
    journal.set(0, FINAL, [0.4, 0.1])
    journal.tell(0, TrialState.COMPLETE, 0.4)
    store.rename("kept", "trials/0000")
    assert read_export(export_run(tiny_spec, store)).trial == 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        export_run(tiny_spec, store)
    monkeypatch.undo()
    assert read_export(store.path("best")).trial == 0


def _as_of_an_earlier_version(store: FolderStore, weight: float) -> None:
    """Writes the checkpoint of trial 0 as earlier versions did, without checksum and digest of its config."""
    path = store.path("trials/0000/checkpoint-a001.safetensors")
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key not in {"config", "checksum"}}
        tensors = {key: torch.full_like(file.get_tensor(key), weight) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)


def test_a_checkpoint_without_a_checksum_replaces_no_intact_export_of_its_trial(
    store: FolderStore, tiny_spec: RunSpec
) -> None:
    store.write("trials/0000/config.yaml", yaml.safe_dump(tiny_spec.resolve(PARAMS)))
    _as_of_an_earlier_version(store, 0.4)
    folder = export_best(tiny_spec, store, summary(0.4))
    model = (folder / MODEL).read_bytes()
    _as_of_an_earlier_version(store, 0.5)  # a flipped bit, which nobody can see
    assert (export_best(tiny_spec, store, summary(0.4)) / MODEL).read_bytes() == model
    (folder / MODEL).write_bytes(b"damaged")
    export_best(tiny_spec, store, summary(0.4))
    assert read_export(folder).trial == 0, "an export that is damaged is written again"


def test_disk_is_kept_for_the_best_trials_first_and_always_for_the_best(store: FolderStore) -> None:
    size = store.path("trials/0000/checkpoint-a001.safetensors").stat().st_size
    trim_checkpoints(store, summary(0.4, 0.6, 0.5), keep_gb=2.5 * size / 1e9)
    assert [store.exists(f"trials/000{n}/checkpoint-a001.safetensors") for n in range(3)] == [False, True, True]
    trim_checkpoints(store, summary(0.4, 0.6, 0.5), keep_gb=0)
    assert [store.exists(f"trials/000{n}/checkpoint-a001.safetensors") for n in range(3)] == [False, True, False]


def test_what_is_exported_can_be_read_without_unpickling(store: FolderStore, tiny_spec: RunSpec) -> None:
    folder = export_best(tiny_spec, store, summary(0.4))
    assert yaml.safe_load((folder / BEST).read_text())["params"] == PARAMS

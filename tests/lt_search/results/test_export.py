"""An exported configuration: written whole from the best trial, and refused where its files do not belong together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from lt_search.config.spec import RunSpec
from lt_search.errors import UserError
from lt_search.results.export import BEST, METRICS, MODEL, export_best, read_export
from lt_search.results.retention import trim_checkpoints
from lt_search.results.summary import RunSummary, TrialSummary
from lt_search.storage.checkpoints import Checkpoint, save_checkpoint
from lt_search.storage.files import FolderStore
from lt_search.storage.records import StepReport
from lt_search.storage.run_folder import new_run

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


def test_files_of_two_exports_are_told_apart(store: FolderStore, tiny_spec: RunSpec) -> None:
    folder = export_best(tiny_spec, store, summary(0.4, 0.6))
    other = export_best(tiny_spec, store, summary(0.4), folder="other")
    (folder / MODEL).write_bytes((other / MODEL).read_bytes())
    with pytest.raises(UserError, match="two different exports"):
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
    with pytest.raises(UserError, match="trial 0 has no sound weights"):
        export_best(tiny_spec, store, summary(0.4))
    assert not store.exists("best")


def test_disk_is_kept_for_the_best_trials_first_and_always_for_the_best(store: FolderStore) -> None:
    size = store.path("trials/0000/checkpoint-a001.safetensors").stat().st_size
    trim_checkpoints(store, summary(0.4, 0.6, 0.5), keep_gb=2.5 * size / 1e9)
    assert [store.exists(f"trials/000{n}/checkpoint-a001.safetensors") for n in range(3)] == [False, True, True]
    trim_checkpoints(store, summary(0.4, 0.6, 0.5), keep_gb=0)
    assert [store.exists(f"trials/000{n}/checkpoint-a001.safetensors") for n in range(3)] == [False, True, False]


def test_what_is_exported_can_be_read_without_unpickling(store: FolderStore, tiny_spec: RunSpec) -> None:
    folder = export_best(tiny_spec, store, summary(0.4))
    assert yaml.safe_load((folder / BEST).read_text())["params"] == PARAMS

"""Checkpoints: whose they are, whether they are as written, and in which order they reach the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lt_search.config.spec import RunSpec
from lt_search.storage.checkpoints import (
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_files,
    final_report,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from lt_search.storage.files import FolderStore
from lt_search.storage.records import StepReport, log_name
from lt_search.storage.trial_config import claim_trial_folder, config_digest
from trainers.state import pack

CONFIG: dict[str, Any] = {"stage1": {"lr": 0.5, "size": 1}, "stage2": {"views": [1, 2]}}
OTHER: dict[str, Any] = {"stage1": {"lr": 0.25, "size": 1}, "stage2": {"views": [1, 2]}}
REPORT = StepReport(0, 1, 2, 2, final=True, value=0.5, scalars={"mAP": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "run")


def _state(value: float = 1.0) -> dict[str, Any]:
    return {"model": {"weight": torch.full((3,), value), "scale": torch.tensor(value)}, "lr": 0.1}


def _save(store: FolderStore, config: dict[str, Any] = CONFIG, attempt: int = 1) -> Path:
    save_checkpoint(store, 0, attempt, config, Checkpoint(REPORT, _state()))
    return store.path(checkpoint_files(store, 0)[-1])


def _save_as_earlier_versions(store: FolderStore) -> Path:
    tensors, text = pack(_state())
    path = store.path("trials/0000/checkpoint-a001.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), metadata={"state": text, "report": REPORT.to_json(), "history": "[]"})
    return path


def test_a_checkpoint_is_read_back(store: FolderStore) -> None:
    _save(store)
    found = load_checkpoint(store, 0, CONFIG)
    assert found is not None and found.report == REPORT
    assert torch.equal(found.state["model"]["weight"], torch.ones(3))


def test_a_checkpoint_of_another_configuration_is_not_used(store: FolderStore) -> None:
    _save(store, OTHER)
    assert load_checkpoint(store, 0, CONFIG) is None
    assert final_report(store, 0, CONFIG) is None
    _save(store, CONFIG, attempt=2)
    assert load_checkpoint(store, 0, CONFIG) is not None, "another attempt's is"


def test_a_config_has_the_same_digest_before_and_after_it_was_written(tiny_spec: RunSpec) -> None:
    read = RunSpec.model_validate(yaml.safe_load(yaml.safe_dump(tiny_spec.model_dump(mode="json"))))
    assert config_digest(read.resolve({"stage1.lr": 1e-5})) == config_digest(tiny_spec.resolve({"stage1.lr": 1e-5}))
    assert config_digest({"a": 1, "b": (1, 2.0)}) == config_digest({"b": [1.0, 2], "a": 1.0})
    assert config_digest({"a": 1}) != config_digest({"a": "1"})
    assert config_digest({"a": 1}) != config_digest({"a": True})


def test_a_checkpoint_of_an_earlier_version_belongs_to_the_config_beside_it(store: FolderStore) -> None:
    _save_as_earlier_versions(store)
    assert load_checkpoint(store, 0, CONFIG) is None, "there is no config"
    store.write("trials/0000/config.yaml", yaml.safe_dump(CONFIG, sort_keys=False))
    assert load_checkpoint(store, 0, CONFIG) is not None
    assert load_checkpoint(store, 0, OTHER) is None


@pytest.mark.parametrize("save", [_save, _save_as_earlier_versions])
def test_a_number_that_is_given_out_again_inherits_nothing(store: FolderStore, save: Any) -> None:
    assert not claim_trial_folder(store, 0, CONFIG)
    save(store)
    store.append_line(log_name(0), REPORT.to_json())
    assert not claim_trial_folder(store, 0, CONFIG)
    assert load_checkpoint(store, 0, CONFIG) is not None
    assert claim_trial_folder(store, 0, OTHER)
    assert load_checkpoint(store, 0, OTHER) is None
    assert final_report(store, 0, OTHER) is None
    [aside] = store.list("set-aside")
    assert len(store.list(f"{aside}/trials/0000")) == 3, "nothing is deleted"
    assert yaml.safe_load(store.read("trials/0000/config.yaml")) == OTHER


def test_a_folder_whose_config_cannot_be_read_is_set_aside(store: FolderStore) -> None:
    _save_as_earlier_versions(store)
    store.write("trials/0000/config.yaml", b"\xff\x00{")
    assert claim_trial_folder(store, 0, CONFIG)
    assert checkpoint_files(store, 0) == []


def test_the_final_report_of_another_configuration_is_not_read_from_the_log(store: FolderStore) -> None:
    claim_trial_folder(store, 0, OTHER)
    store.append_line(log_name(0), REPORT.to_json())
    assert final_report(store, 0, OTHER) == REPORT
    assert final_report(store, 0, CONFIG) is None


def test_a_flipped_bit_anywhere_is_found(store: FolderStore, caplog: pytest.LogCaptureFixture) -> None:
    path = _save(store)
    sound = path.read_bytes()
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(store, checkpoint_files(store, 0)[0])
    assert load_checkpoint(store, 0, CONFIG) is None
    assert "is damaged" in caplog.text


def test_nan_is_null_in_a_checkpoint(store: FolderStore) -> None:
    report = StepReport(0, 1, 1, 1, scalars={"loss": float("nan")})
    save_checkpoint(store, 0, 1, CONFIG, Checkpoint(report, {}, (report,)))
    from safetensors import safe_open

    with safe_open(str(store.path(checkpoint_files(store, 0)[0])), framework="pt") as file:
        metadata = file.metadata()
    for name in ("report", "history"):
        json.loads(metadata[name], parse_constant=pytest.fail)

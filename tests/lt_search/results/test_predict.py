"""What is said where an exported model cannot predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lt_search.config.spec import RunSpec
from lt_search.data.registry import load_dataset
from lt_search.errors import UserError
from lt_search.results.export import Export
from lt_search.results.predict import load_model
from lt_search.training.inputs import LoadedInputs
from trainers.state import pack


@pytest.fixture
def export(tiny_spec: RunSpec, tmp_path: Path) -> Export:
    """With a model file that is whole, but no model of its trainer."""
    found = Export(tmp_path / "best", 0, tiny_spec, {}, "cpu", torch.get_num_threads())
    tensors, text = pack({"w": torch.zeros(2)})
    found.folder.mkdir()
    save_file(tensors, str(found.model_file), metadata={"state": text})
    return found


def load(export: Export) -> object:
    return load_model(export, load_dataset(export.spec.options["dataset"]))


def test_a_full_device_is_no_damaged_file(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LoadedInputs, "load_trainer", full)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        load(export)


def test_a_model_that_does_not_fit_is_damaged(export: Export) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors: is damaged"):
        load(export)


def test_settings_that_are_wrong_are_named_with_their_file(export: Export) -> None:
    wrong = export.spec.model_copy(update={"config": {"stage1": {"lr": -1.0}}})
    with pytest.raises(UserError, match=r"best\.yaml: stage1\.lr: must be greater than 0"):
        load(replace(export, spec=wrong))

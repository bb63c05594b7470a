from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lt_search.config.options import SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.spec import RunSpec
from lt_search.data.registry import load_dataset
from lt_search.errors import UserError
from lt_search.storage.addresses import stage1_address
from lt_search.training.tensor_files import needed_resources, resolve_resources
from tests.helpers.tiny_encoders import WIDTH, save_clip
from trainers.hashing import hash_tensors
from trainers.text.label_embeddings import LabelEmbeddings


def _spec(*settings: str, search: tuple[str, ...] = (), budget: str = "full") -> RunSpec:
    options = SpecOptions("ldrnet", budget=budget, set=settings, search=search)  # type: ignore[arg-type]
    return resolve_spec(options, load_dataset("digits-ml:200"), gpu=False)


def _prompt(path: Path, tokens: torch.Tensor) -> str:
    save_file({"tokens": tokens}, str(path))
    return f"stage1.prompt={path}"


def test_every_file_that_a_trial_may_need_is_found_before_the_search() -> None:
    spec = _spec(search=("stage1.backbone=choice(resnet50, resnet18, densenet121)",))
    assert {resource.key for resource in needed_resources(spec)} == {
        "backbone:resnet50:imagenet",
        "backbone:resnet18:imagenet",
        "backbone:densenet121:imagenet",
    }


def test_a_run_without_files_needs_none() -> None:
    assert needed_resources(_spec(budget="small")) == []


def test_files_are_hashed_into_the_spec_and_the_address(tmp_path: Path) -> None:
    addresses, hashes = set(), set()
    for value in (0.0, 1.0):
        setting = _prompt(tmp_path / "tokens.safetensors", torch.full((3, 8), value))
        spec, weights = resolve_resources(_spec(setting, budget="small"), print)
        [(key, tensors)] = weights.items()
        assert torch.equal(tensors["tokens"], torch.full((3, 8), value))
        hashes.add(spec.resources[key])
        addresses.add(stage1_address(spec, {}))
    assert len(hashes) == len(addresses) == 2, "the same path with other content is another stage 1"


def test_all_missing_files_of_the_user_are_named_even_with_a_forgiving_budget(tmp_path: Path) -> None:
    spec = _spec(f"stage1.prompt={tmp_path / 'no.pt'}", f"stage1.weights={tmp_path / 'none.pt'}", budget="small")
    with pytest.raises(UserError) as raised:
        resolve_resources(spec, print)
    assert {problem.place.split("=")[0] for problem in raised.value.problems} == {"stage1.prompt", "stage1.weights"}


def test_hash_sees_names_shapes_types_and_values() -> None:
    base = {"a": torch.arange(4.0)}
    others = [
        {"b": torch.arange(4.0)},
        {"a": torch.arange(4.0).reshape(2, 2)},
        {"a": torch.arange(4)},
        {"a": torch.tensor([0.0, 1.0, 2.0, 4.0])},
        {"a": torch.arange(4.0).bfloat16()},
    ]
    digests = {hash_tensors(tensors) for tensors in [base, *others]}
    assert len(digests) == 6
    assert hash_tensors({"a": torch.arange(4.0)}) == hash_tensors(base)


def test_weights_that_fit_no_network_are_refused_before_the_search(tmp_path: Path) -> None:
    save_file({"layer1.weight": torch.zeros(3)}, str(tmp_path / "wrong.safetensors"))
    with pytest.raises(UserError, match=r"wrong\.safetensors \(conv4\)"):
        resolve_resources(_spec(f"stage1.weights={tmp_path / 'wrong.safetensors'}", budget="small"), print)


def test_a_text_encoder_encodes_the_labels_of_the_data_once_for_all_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        save_clip(tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    addresses = set()
    for name in ("a", "b"):
        spec, weights = resolve_resources(_spec(f"stage1.prompt={name}", budget="small"), print)
        assert spec.config["stage1"]["prompt"] == str(tmp_path / name), "found again from another folder"
        [(key, tensors)] = weights.items()
        assert tensors["tokens"].shape[1] == WIDTH
        assert key in spec.resources
        assert any(f"{len(spec.data.classes)} labels encoded by {tmp_path / name}" in note for note in spec.notes)
        addresses.add(stage1_address(spec, {}))
    assert len(addresses) == 2


def test_a_hub_out_of_reach_is_said_and_done_without_unless_the_budget_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    settings = ("stage1.prompt=tiny/clip", "stage1.backbone=conv4", "stage1.weights=none")
    said: list[str] = []
    spec, weights = resolve_resources(_spec(*settings, budget="small"), said.append)
    assert weights == {} and spec.config["stage1"]["prompt"] == "none"
    assert any("tiny/clip unavailable here" in note for note in spec.notes)
    [line] = said
    assert "the hub is out of reach" in line and "continuing with stage1.prompt=none (no text)" in line
    assert "\n" not in line
    with pytest.raises(UserError, match=r"--set stage1\.prompt=FILE, or continue without: --set stage1\.prompt=none"):
        resolve_resources(_spec(*settings), print)


def test_an_embedding_file_of_other_labels_is_the_users_mistake_with_every_budget(tmp_path: Path) -> None:
    ones, zeros = torch.ones(3, 8), torch.zeros(3, 8)
    made = LabelEmbeddings("m", "r", "cls", ("a", "b", "c"), ones, zeros, "id")
    save_file(made.tensors(), tmp_path / "t.safetensors", made.metadata())
    with pytest.raises(UserError, match="only in the file: a, b, c; only in the data: ") as raised:
        resolve_resources(_spec(f"stage1.prompt={tmp_path / 't.safetensors'}", budget="small"), print)
    assert "embed-labels" in str(raised.value)

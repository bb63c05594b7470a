from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lt_search.address import hash_tensors, stage1_address
from lt_search.data.registry import load_dataset
from lt_search.errors import UserError
from lt_search.resources import needed_resources, resolve_resources
from lt_search.spec import RunSpec, SpecOptions, resolve_spec


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

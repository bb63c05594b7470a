"""Two trials share an address exactly if their stage 1 is the same computation."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import BaseModel, Field

from lt_search.config.options import SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.spec import ExtraFacts, RunSpec, extra_key
from lt_search.data.registry import load_dataset
from lt_search.storage.addresses import changed_fields, compute_kind, stage1_address
from tests.tiny import TinyConfig, TinyStage1, TinyTrainer
from trainers.base import TrainerConfig
from trainers.hashing import hash_tensors
from trainers.registry import BUILT_IN, find_trainer

DRAWN: dict[str, Any] = {"stage1.lr": 0.3, "stage1.optimiser": "momentum", "stage1.momentum": 0.2, "stage2.bias": 0.1}


class WiderStage1(TinyStage1):
    warmup: int = Field(3, ge=0)
    """A field that a later version adds."""


class WiderConfig(TinyConfig):
    stage1: WiderStage1 = Field(default_factory=WiderStage1)


class Narrow(TinyTrainer):
    """The tiny trainer in this file, so that both versions have one source digest."""


class Wider(TinyTrainer):
    config_type: ClassVar[type[TrainerConfig]] = WiderConfig


def _trained_by(trainer: type[TinyTrainer], spec: RunSpec, **values: Any) -> str:
    changed = spec.model_copy(update={"trainer": f"{trainer.__module__}:{trainer.__qualname__}"})
    return stage1_address(changed, {**DRAWN, **values})


def test_a_new_field_counts_only_where_it_differs_from_its_default(tiny_spec: RunSpec) -> None:
    before = _trained_by(Narrow, tiny_spec)
    assert _trained_by(Wider, tiny_spec) == before
    assert _trained_by(Wider, tiny_spec, **{"stage1.warmup": 3}) == before
    assert _trained_by(Wider, tiny_spec, **{"stage1.warmup": 4}) != before


@pytest.mark.parametrize("package", ["", "trainers."], ids=["own", "built-in"])
def test_a_trainer_that_moves_to_another_module_keeps_its_addresses(
    tiny_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("trainers.__path__", [*importlib.import_module("trainers").__path__, str(tmp_path)])
    addresses = set()
    for name in ("moved_from", "moved_to"):
        (tmp_path / f"{name}.py").write_text(inspect.getsource(sys.modules[TinyTrainer.__module__]))
        trainer = importlib.import_module(f"{package}{name}").TinyTrainer
        addresses.add(_trained_by(trainer, tiny_spec))
        sys.modules.pop(f"{package}{name}")
    assert len(addresses) == 1


def test_a_raised_code_version_has_other_stage_1_addresses(tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _trained_by(Narrow, tiny_spec)
    monkeypatch.setattr(Narrow, "code_version", 2, raising=False)
    assert _trained_by(Narrow, tiny_spec) != before


class Inner(BaseModel):
    a: int = 1
    b: float = 2


class Outer(BaseModel):
    inner: Inner = Inner()
    set_otherwise: Inner = Inner(a=5)
    optional: Inner | None = None
    weights: dict[str, float] = {"x": 1.0}
    needed: int


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        ({"inner": Inner(b=2.0)}, {}),
        ({"inner": Inner(b=3)}, {"inner": {"b": 3.0}}),
        ({"set_otherwise": Inner(a=5)}, {}),
        ({"set_otherwise": Inner()}, {"set_otherwise": {"a": 1}}),
        ({"optional": Inner()}, {"optional": {"a": 1, "b": 2.0}}),
        ({"weights": {}}, {"weights": {}}),
    ],
    ids=str,
)
def test_fields_of_nested_configs_count_where_they_differ_from_their_defaults(
    given: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert changed_fields(Outer(needed=7, **given)) == {"needed": 7, **changed}


def test_the_defaults_of_every_built_in_trainer_count_for_nothing() -> None:
    for name in BUILT_IN:
        assert changed_fields(find_trainer(name).config_type().stage1) == {}, name


def test_stage_two_values_do_not_count(tiny_spec: RunSpec) -> None:
    assert stage1_address(tiny_spec, DRAWN) == stage1_address(tiny_spec, {**DRAWN, "stage2.bias": -0.9})


def test_inactive_values_do_not_count(tiny_spec: RunSpec) -> None:
    plain = {**DRAWN, "stage1.optimiser": "sgd"}
    assert stage1_address(tiny_spec, plain) == stage1_address(tiny_spec, {**plain, "stage1.momentum": 0.8})
    assert stage1_address(tiny_spec, DRAWN) != stage1_address(tiny_spec, {**DRAWN, "stage1.momentum": 0.8})


def test_what_the_trainer_gets_for_an_inactive_parameter_counts(tiny_spec: RunSpec) -> None:
    config = {**tiny_spec.config, "stage1": {**tiny_spec.config["stage1"], "momentum": 0.75}}
    other = tiny_spec.model_copy(update={"config": config})
    plain = {**DRAWN, "stage1.optimiser": "sgd"}
    assert stage1_address(tiny_spec, plain) != stage1_address(other, plain)
    assert stage1_address(tiny_spec, DRAWN) == stage1_address(other, DRAWN)


def test_another_device_or_number_of_threads_has_other_addresses(tiny_spec: RunSpec) -> None:
    kinds = [compute_kind("cpu", 1), compute_kind("cpu", 2), compute_kind("cuda", 1)]
    assert compute_kind("cuda", 2) == kinds[2], "a GPU's results do not depend on the host's threads"
    assert len({stage1_address(tiny_spec, DRAWN, kind) for kind in kinds}) == 3


@pytest.mark.parametrize("name", ["stage1.lr", "stage1.seconds"])
def test_every_stage_one_value_counts(tiny_spec: RunSpec, name: str) -> None:
    assert stage1_address(tiny_spec, DRAWN) != stage1_address(tiny_spec, {**DRAWN, name: 0.31})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data": {"fingerprint": "other"}},
        {"data": {"split_hash": "other"}},
        {"data": {"image_size": 16}},
        {"data": {"pixels": {"train": "other"}}},
        {"data": {"pixels": {"val": "other"}}},
    ],
    ids=str,
)
def test_seed_and_data_count(tiny_spec: RunSpec, change: dict[str, Any]) -> None:
    data = tiny_spec.data.model_copy(update=change.get("data", {}))
    other = tiny_spec.model_copy(update={**change, "data": data})
    assert stage1_address(tiny_spec, DRAWN) != stage1_address(other, DRAWN)


def test_extra_training_data_counts_with_its_pixels_and_order(tiny_spec: RunSpec) -> None:
    def address(*extra: tuple[str, str]) -> str:
        facts = [ExtraFacts(name="more", fingerprint=one, images=4, unknown=["c"], left_out=[]) for one, _ in extra]
        pixels = {**tiny_spec.data.pixels, **{extra_key(n): found for n, (_, found) in enumerate(extra, 1)}}
        data = tiny_spec.data.model_copy(update={"extra": facts, "pixels": pixels})
        return stage1_address(tiny_spec.model_copy(update={"data": data}), DRAWN)

    one, two = ("one", "p1"), ("two", "p2")
    different = [address(), address(one), address(two), address(one, two), address(two, one), address(("one", "p2"))]
    assert len(set(different)) == len(different)
    assert address() == stage1_address(tiny_spec, DRAWN)


@pytest.mark.parametrize("name", ["lr", "seconds"])
def test_a_number_counts_as_the_trainer_sees_it(tiny_spec: RunSpec, name: str) -> None:
    whole, real = ({**DRAWN, f"stage1.{name}": value} for value in (1, 1.0))
    assert stage1_address(tiny_spec, whole) == stage1_address(tiny_spec, real)


def test_weights_count_by_what_they_hold_and_not_by_where_they_lie() -> None:
    dataset = load_dataset("digits-ml:500")

    def address(path: str, content: str) -> str:
        found = resolve_spec(SpecOptions("ldrnet", budget="small"), dataset, gpu=False)
        stage1 = {**found.config["stage1"], "backbone": "resnet50", "weights": path}
        resources = {f"backbone:resnet50:{path}": content}
        config = {**found.config, "stage1": stage1}
        return stage1_address(found.model_copy(update={"config": config, "resources": resources}), {})

    assert address("a.pt", "content") == address("/elsewhere/b.pt", "content")
    assert address("a.pt", "content") != address("a.pt", "other content")
    assert address("a.pt", "content") != address("none", "content")


def test_another_version_of_torch_has_other_addresses(tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage1_address(tiny_spec, DRAWN)
    monkeypatch.setattr("lt_search.storage.addresses.version", lambda name: "0.0")
    assert stage1_address(tiny_spec, DRAWN) != before


def test_what_changes_nothing_in_training_does_not_count(tiny_spec: RunSpec) -> None:
    other = tiny_spec.model_copy(update={"prune": False, "sampler": "random", "rungs": {"stage1": [2], "stage2": []}})
    assert stage1_address(tiny_spec, DRAWN) == stage1_address(other, DRAWN)


def test_tensors_differ_by_name_shape_type_and_content() -> None:
    x = torch.arange(4.0)
    hashes = [
        hash_tensors(named)
        for named in ({"a": x}, {"b": x}, {"a": x.view(2, 2)}, {"a": x.double()}, {"a": x + 1}, {"a": x, "b": x[:0]})
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_tensors({"a": x, "b": x + 1}) == hash_tensors({"b": x + 1, "a": x.clone()})

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trainers.state import pack, unpack


def through_file(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    tensors, text = pack(state)
    save_file(tensors, str(folder / "state.safetensors"), metadata={"state": text})
    with safe_open(str(folder / "state.safetensors"), framework="pt") as file:
        loaded = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return unpack(loaded, file.metadata()["state"])


def test_nested_state_survives_a_file(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "numbers": [1, -2.5, 1 / 3, True, None, "x"],
        "pair": (0.9, 0.999),
        "nested": {"a": {"b": [shared, {"c": shared.T}]}},
        "empty": {"dict": {}, "list": [], "tensor": torch.zeros(0, 4)},
        "kinds": [torch.tensor(7, dtype=torch.int64), torch.ones(2, dtype=torch.bfloat16), torch.tensor([True])],
    }
    back = through_file(state, tmp_path)
    assert back["numbers"] == state["numbers"]
    assert [type(x) for x in back["numbers"]] == [type(x) for x in state["numbers"]]
    assert back["pair"] == (0.9, 0.999)
    assert torch.equal(back["nested"]["a"]["b"][0], shared)
    assert torch.equal(back["nested"]["a"]["b"][1]["c"], shared.T)
    assert back["empty"]["dict"] == {}
    assert back["empty"]["list"] == []
    assert back["empty"]["tensor"].shape == (0, 4)
    assert [t.dtype for t in back["kinds"]] == [torch.int64, torch.bfloat16, torch.bool]


def test_nan_and_infinity_survive() -> None:
    back = unpack(*pack({"x": [math.nan, math.inf, -math.inf, 5e-324]}))["x"]
    assert math.isnan(back[0])
    assert back[1:] == [math.inf, -math.inf, 5e-324]


def test_optimiser_continues_exactly_from_a_packed_state(tmp_path: Path) -> None:
    def fresh() -> tuple[torch.nn.Parameter, torch.optim.Adam]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        return weight, torch.optim.Adam([weight], lr=0.1, betas=(0.8, 0.95), weight_decay=1e-3)

    def train(weight: torch.nn.Parameter, adam: torch.optim.Adam) -> None:
        adam.zero_grad()
        ((weight - torch.arange(5.0)) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()

    weight, adam = fresh()
    for _ in range(3):
        train(weight, adam)
    state = through_file({"weight": weight, "adam": adam.state_dict()}, tmp_path)
    assert list(state["adam"]["state"]) == [0]
    assert state["adam"]["param_groups"][0]["betas"] == (0.8, 0.95)

    other, other_adam = fresh()
    with torch.no_grad():
        other.copy_(state["weight"])
    other_adam.load_state_dict(state["adam"])
    for _ in range(3):
        train(weight, adam)
        train(other, other_adam)
    assert torch.equal(weight, other)


def test_packed_tensors_are_copies() -> None:
    weight = torch.zeros(3)
    tensors, text = pack({"w": weight})
    weight += 1
    assert torch.equal(unpack(tensors, text)["w"], torch.zeros(3))


def test_keys_of_one_spelling_stay_apart() -> None:
    back = unpack(*pack({"a": {0: torch.tensor(1), "0": torch.tensor(2)}, "a/0": torch.tensor(3)}))
    assert (int(back["a"][0]), int(back["a"]["0"]), int(back["a/0"])) == (1, 2, 3)


@pytest.mark.parametrize("bad", [{"a": {"b": object()}}, {"a": {"b": {1, 2}}}, {"a": {"b": {(1, 2): 3}}}])
def test_other_values_are_refused_with_their_place(bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="state/a/b"):
        pack(bad)


@pytest.mark.parametrize("text", ["", "[1", "3", '{"dict": [["a", {"tensor": "gone"}]]}', '{"what": 1}'])
def test_damaged_description_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a packed trainer state"):
        unpack({}, text)

"""Serialisation of a nested trainer state as named tensors and a JSON string, for safetensors files. No pickle."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from trainers.types import State

_Tree = Any
"""JSON value: a scalar as itself, anything else as a one-key object that names its type."""


def pack(state: State) -> tuple[dict[str, Tensor], str]:
    """Splits `state` into named tensors (CPU, contiguous, own memory) and a JSON string for all the rest.

    Dict keys may be strings or integers (optimiser states have integer keys), lists and tuples stay what they are,
    and floats keep every bit, also NaN and infinities. Raises `TypeError`, naming the place, for any other value.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, json.dumps(_encode(state, "", tensors), separators=(",", ":"))


def unpack(tensors: dict[str, Tensor], description: str) -> State:
    """The state that `pack` was given; raises `ValueError` where the two parts do not belong together."""
    try:
        state = _decode(json.loads(description), tensors)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a packed trainer state: {error}") from error
    if not isinstance(state, dict):
        raise ValueError("not a packed trainer state: its top level is not a dict")  # noqa: TRY004 - a damaged file
    return state


def clone(value: Any) -> Any:
    """A deep copy of nested dicts, lists and tuples of tensors and plain values, detached from any graph.

    Optimisers take over, and later change, the tensors they are given; networks change theirs in place.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(clone(item) for item in value)
    return value


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> _Tree:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        # A copy, because safetensors refuses tensors that share memory and training must not change what was packed.
        name = place
        while name in tensors:  # the keys 0 and "0" have one spelling
            name += "+"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [_encode_item(key, item, place, tensors) for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    raise TypeError(f"state{place} is a {type(value).__name__}; a state holds tensors, numbers, strings, None")


def _encode_item(key: Any, value: Any, place: str, tensors: dict[str, Tensor]) -> list[_Tree]:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"state{place} has the key {key!r}; keys are strings or integers")
    return [key, _encode(value, f"{place}/{key}", tensors)]


def _decode(tree: _Tree, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: _decode(value, tensors) for key, value in content}
        case "list":
            return [_decode(item, tensors) for item in content]
        case "tuple":
            return tuple(_decode(item, tensors) for item in content)
    raise KeyError(kind)

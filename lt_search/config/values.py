"""Plain values written by a person: on the command line, in a range, in a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Value = bool | int | float | str | None
"""What a config field or a parameter can hold in a file or on the command line."""

_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None, "~": None}


def parse_value(text: str) -> Value:
    """Reads one scalar: `true`, `null`, an integer, a float (`1e-4` included, which YAML 1.1 misses) or a string."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text.strip("'\"")


def write_value(value: Value) -> str:
    """The text that `parse_value` reads as this value; strings that would be read as something else are quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return f'"{text}"' if isinstance(value, str) and parse_value(text) != value else text


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"stage1": {"lr": 1}}` as `{"stage1.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"stage1.lr": 1}` as `{"stage1": {"lr": 1}}`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return nested

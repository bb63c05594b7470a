"""Scalar values as text: on the command line, in a range, in a condition."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

Value = bool | int | float | str | None
"""What a config field or a parameter can hold in a file or on the command line."""

_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None, "~": None}
_QUOTES = "'\""
_ITEM = re.compile(r"""(\s*(?:"[^"]*"|'[^']*'|(?!\s*["'])[^,]*)\s*)(?=,|$)""", re.DOTALL)
"""One value of a list, up to its comma: in quotes, or without a quote at its start."""


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
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in _QUOTES
    return text[1:-1] if quoted else text


def write_value(value: Value) -> str:
    """The text that `parse_value` and `split_values` read as this value; strings are quoted where they must be."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if not isinstance(value, str) or (parse_value(text) == value and "," not in text):
        return text
    quote = "'" if '"' in text else '"'
    return f"{quote}{text}{quote}"


def split_values(text: str) -> list[Value]:
    """Reads scalars separated by commas; a comma inside quotes belongs to its value. An empty text has none.

    Raises:
        ValueError: if quotes do not enclose a whole value, or a number is not finite.
    """
    if not text.strip():
        return []
    words, rest = [], text
    while True:
        match = _ITEM.match(rest)
        if match is None:
            raise ValueError(f"quotes must enclose a whole value in {shorten(text)}")
        words.append(match.group(1))
        if match.end() == len(rest):
            break
        rest = rest[match.end() + 1 :]
    return [_finite(parse_value(word)) for word in words]


def is_finite(value: object) -> bool:
    """Whether a value is neither NaN nor infinite."""
    return not isinstance(value, float) or math.isfinite(value)


def _finite(value: Value) -> Value:
    if not is_finite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def shorten(text: object, limit: int = 80) -> str:
    """The representation of a value, cut to a length that fits a message."""
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


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

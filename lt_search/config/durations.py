"""Durations as text, such as `1h30m`."""

from __future__ import annotations

import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"\s*".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS), re.ASCII)
"""Each unit at most once, the longest first."""


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `45m`, `2h`, `1h30m`, `1d`.

    Raises:
        ValueError: if the text is not a duration, or is zero.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not text.strip():
        raise ValueError(f"{text!r} is not a duration; write 90s, 45m, 2h or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for unit, number in match.groupdict().items() if number)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text[:40]!r} is not a duration above zero")
    return seconds


def show_duration(seconds: float) -> str:
    """`1h 05m`, `3m 20s` or `12s`."""
    rounded = round(seconds)
    if rounded >= 3600:
        return f"{rounded // 3600}h {rounded % 3600 // 60:02d}m"
    if rounded >= 60:
        return f"{rounded // 60}m {rounded % 60:02d}s"
    return f"{rounded}s"

"""Text of parameter values, scores and durations in the report's page and figures."""

from __future__ import annotations

import math
import re
from typing import TypeGuard


def clean(value: object) -> str:
    """Text without characters that HTML or UTF-8 cannot hold; an error message of a trial may contain any."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(value))


def parameter_text(value: object) -> str:
    """A parameter's value as the YAML of a space writes it, numbers to four digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def score_text(value: float | None, standard_error: float | None = None) -> str:
    """A score to four digits, with its standard error where that is known."""
    if not known(value):
        return "–"
    return f"{value:.4f} ± {standard_error:.4f}" if known(standard_error) else f"{value:.4f}"


def duration_text(seconds: float) -> str:
    """A duration in the two largest units that matter, such as `1 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def known(value: float | None) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return value is not None and math.isfinite(value)

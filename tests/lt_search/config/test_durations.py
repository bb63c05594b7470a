from __future__ import annotations

import pytest

from lt_search.config.durations import parse_duration, show_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("1d", 86400)]
)
def test_reads_a_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "2", "2 weeks", "h", "-3m", "0s", "1h banana", "1h1h", "30m1h", "1h1d", "1d 1h 1d"]
)
def test_refuses_what_is_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12s"), (200, "3m 20s"), (3900, "1h 05m")])
def test_shows_a_duration(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text

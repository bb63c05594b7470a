from __future__ import annotations

import pytest

from lt_search.results.report.text import clean, duration_text, known, parameter_text, score_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (42.3, "42 s"),
        (150, "2 min"),
        (3599, "1 h"),
        (5400, "1 h 30 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_has_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (None, "none"), (3, "3"), (0.000123456, "0.0001235"), ("bce", "bce")]
)
def test_parameter_values_are_written_as_in_a_space(value: object, text: str) -> None:
    assert parameter_text(value) == text


@pytest.mark.parametrize(
    ("value", "is_known"), [(0.0, True), (-1.5, True), (None, False), (float("nan"), False), (float("inf"), False)]
)
def test_only_a_finite_number_is_known(value: float | None, is_known: bool) -> None:
    assert known(value) is is_known


def test_characters_that_a_page_cannot_hold_are_replaced() -> None:
    assert clean("a\x00b\ud800c\td") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\td"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.5, 0.01, "0.5000 ± 0.0100"), (0.5, None, "0.5000"), (0.5, float("nan"), "0.5000"), (None, 0.1, "–")],
)
def test_a_score_has_its_standard_error_where_that_is_known(
    value: float | None, error: float | None, text: str
) -> None:
    assert score_text(value, error) == text

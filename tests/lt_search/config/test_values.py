from __future__ import annotations

import pytest

from lt_search.config.values import flatten, parse_value, unflatten


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("0.5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("none", "none"),
        ("crop+flip", "crop+flip"),
        ("'1'", "1"),
    ],
)
def test_reads_a_scalar(text: str, value: object) -> None:
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


def test_flat_and_nested_are_inverse() -> None:
    nested = {"stage1": {"lr": 0.1, "epochs": 3}, "stage2": {"q": 0.8}}
    assert flatten(nested) == {"stage1.lr": 0.1, "stage1.epochs": 3, "stage2.q": 0.8}
    assert unflatten(flatten(nested)) == nested

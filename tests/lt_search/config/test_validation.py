from __future__ import annotations

import pytest

from lt_search.config.validation import read_yaml
from lt_search.errors import UserError


@pytest.mark.parametrize(
    "text", ["a: 3\na: 9", "set: {a: 3, a: 9}", '{? a : 3, ? "a" : 9}', "outer:\n  b: 1\n  c: 2\n  b: 3"]
)
def test_a_key_that_occurs_twice_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: .*line \d+.*the key '\w+' occurs twice, first in line \d"):
        read_yaml(text, "mine.yaml")


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000, "0x" + "f" * 5000, "0b" + "1" * 99, "-" + "9" * 30])
def test_an_integer_of_too_many_digits_is_refused(digits: str) -> None:
    with pytest.raises(UserError, match="line 1, column 9: the integer has too many digits"):
        read_yaml(f"trials: {digits}", "mine.yaml")


def test_plain_values_are_read() -> None:
    text = "a: 12\nb: 0x1f\nc: [1, 2.5, word]\nd: {a: 1}\ne: -9223372036854775807"
    assert read_yaml(text, "f") == {"a": 12, "b": 31, "c": [1, 2.5, "word"], "d": {"a": 1}, "e": -(2**63 - 1)}


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "- \x00", "[" * 5000, "a: !!python/object/apply:os.system [x]"])
def test_text_that_is_not_plain_yaml_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml"):
        read_yaml(text, "mine.yaml")

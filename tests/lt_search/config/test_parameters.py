from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lt_search.config.parameters import Condition, Parameter, active_names, in_sampling_order, parse_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uniform(0, 1.5)", FloatDistribution(0, 1.5)),
        ("loguniform(1e-5, 1e-3)", FloatDistribution(1e-5, 1e-3, log=True)),
        ("int(1, 4)", IntDistribution(1, 4)),
        ("logint(5, 500)", IntDistribution(5, 500, log=True)),
        ("choice(256, 512, backbone)", CategoricalDistribution((256, 512, "backbone"))),
        ("choice(full, diag)", CategoricalDistribution(("full", "diag"))),
        ("bool()", CategoricalDistribution((False, True))),
        ("choice('a,b', c)", CategoricalDistribution(("a,b", "c"))),
        ('choice("a, b", "1", it\'s)', CategoricalDistribution(("a, b", "1", "it's"))),
    ],
)
def test_reads_a_range(text: str, expected: object) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("uniform(1, 0)", "reversed"),
        ("uniform(1, 1)", "reversed or empty"),
        ("loguniform(0, 1)", "log scale"),
        ("logint(0, 5)", "log scale"),
        ("int(0.5, 2)", "two integers"),
        ("uniform(a, b)", "two numbers"),
        ("uniform(1)", "two numbers"),
        ("choice(a)", "at least two"),
        ("choice(a, a)", "all different"),
        ("bool(1)", "takes no values"),
        ("normal(0, 1)", "is not a range"),
        ("0.5", "is not a range"),
        ("uniform(0, nan)", "nan is not a finite number"),
        ("uniform(-inf, 1)", "not a finite number"),
        ("choice(0, inf)", "not a finite number"),
        (f"uniform(0, {'9' * 5000})", "not a finite number"),
        (f"int(0, {'9' * 20})", "beyond 2"),
        ("choice('a, b)", "quotes must enclose"),
        ("uniform(,)", "two numbers"),
    ],
)
def test_refuses_a_wrong_range_and_names_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse_range(text)


@pytest.mark.parametrize(
    ("text", "values", "holds"),
    [
        ("stage1.loss == triplet", {"stage1.loss": "triplet"}, True),
        ("stage1.loss == triplet", {"stage1.loss": "ce"}, False),
        ("stage1.loss == triplet", {}, False),
        ("stage1.loss != triplet", {"stage1.loss": "ce"}, True),
        ("stage1.loss != triplet", {}, False),
        ("stage2.on == true", {"stage2.on": True}, True),
        ("stage1.loss in (triplet, npair)", {"stage1.loss": "npair"}, True),
        ("stage1.loss in (triplet, npair)", {"stage1.loss": "ce"}, False),
    ],
)
def test_condition_holds(text: str, values: dict[str, object], holds: bool) -> None:
    condition = Condition.parse(text)
    assert condition.holds(values) is holds
    assert Condition.parse(str(condition)) == condition


@pytest.mark.parametrize("text", ["stage1.lr > 3", "stage1.lr == 1, 2", "stage1.lr == nan", "stage1.lr in ('a, b)"])
def test_refuses_a_condition_of_another_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"name == value|in \(a, b\)|finite|quotes"):
        Condition.parse(text)


def test_a_parameter_whose_range_cannot_be_read_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="not a range"):
        Parameter("stage1.lr", "normal(0, 1)")


def _parameter(name: str, when: str | None = None) -> Parameter:
    return Parameter(name, "bool()", Condition.parse(when) if when else None)


def test_a_parameter_comes_after_the_one_its_condition_reads() -> None:
    parameters = {p.name: p for p in (_parameter("c", "b == true"), _parameter("b", "a == true"), _parameter("a"))}
    assert [p.name for p in in_sampling_order(parameters)] == ["a", "b", "c"]


def test_conditions_in_a_circle_are_refused() -> None:
    parameters = {p.name: p for p in (_parameter("a", "b == true"), _parameter("b", "a == true"))}
    with pytest.raises(ValueError, match="depend on each other"):
        in_sampling_order(parameters)


def test_what_hangs_on_an_inactive_parameter_is_inactive() -> None:
    parameters = {p.name: p for p in (_parameter("a"), _parameter("b", "a == true"), _parameter("c", "b == true"))}
    assert set(active_names(parameters, {"a": False, "b": True, "c": True})) == {"a"}
    assert set(active_names(parameters, {"a": True, "b": True, "c": True})) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "text",
    [
        "a.b == null", "a.b != true", "a.b == 3", "a.b == 0.5", "a.b == full", 'a.b == "1"', 'a.b == "null"',
        'a.b in (x, "2", null)', 'a.b in ("x,y", z)', 'a.b == "x, y"',
    ],
)  # fmt: skip
def test_a_condition_is_read_again_as_it_was_written(text: str) -> None:
    condition = Condition.parse(text)
    assert Condition.parse(str(condition)) == condition
    assert str(condition) == text

"""Searched parameters: ranges as Optuna distributions, and conditions between parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, ConfigDict, PrivateAttr

from lt_search.config.values import Value, shorten, split_values, write_value

GRAMMAR = "uniform(a, b), loguniform(a, b), int(a, b), logint(a, b), choice(a, b, ...) or bool()"

_CALL = re.compile(r"^\s*([a-z]+)\s*\((.*)\)\s*$", re.DOTALL)
_CONDITION = re.compile(r"^\s*([\w.]+)\s*(==|!=|\bin\b)\s*(.+?)\s*$", re.DOTALL)
_CONDITION_GRAMMAR = "'name == value', 'name != value' or 'name in (a, b)'"
_LIST = re.compile(r"^[(\[](.*)[)\]]$", re.DOTALL)
_LARGEST_INT = 2**53
"""Integers beyond it are not exact as the floats that samplers compute with."""


@dataclass(frozen=True)
class Condition:
    """`when: stage2.gce_form != bce`: the parameter is sampled only where this holds."""

    parameter: str
    values: tuple[Value, ...]
    negated: bool

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads `name == value`, `name != value` or `name in (a, b)`.

        Raises:
            ValueError: if the text has another form.
        """
        match = _CONDITION.match(text)
        if match is None:
            raise ValueError(f"the condition {shorten(text)} is not {_CONDITION_GRAMMAR}")
        name, operator, right = match.groups()
        listed = _LIST.match(right) if operator == "in" else None
        values = split_values(listed.group(1) if listed else right)
        if operator != "in" and len(values) != 1:
            raise ValueError(f"the condition {shorten(text)} compares with several values; write {name} in (a, b)")
        return cls(name, tuple(values), operator == "!=")

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition is met by a flat configuration; a missing parameter meets none."""
        if self.parameter not in values:
            return False
        return (values[self.parameter] in self.values) != self.negated

    def __str__(self) -> str:
        words = [write_value(value) for value in self.values]
        if len(words) == 1:
            return f"{self.parameter} {'!=' if self.negated else '=='} {words[0]}"
        return f"{self.parameter} in ({', '.join(words)})"


@cache
def parse_range(text: str) -> BaseDistribution:
    """Reads a range such as `loguniform(1e-5, 1e-3)` or `choice(full, diag)`.

    Raises:
        ValueError: naming the value and the rule it breaks.
    """
    match = _CALL.match(text)
    if match is None or match.group(1) not in _RANGES:
        raise ValueError(f"{shorten(text)} is not a range; write {GRAMMAR}")
    try:
        arguments = split_values(match.group(2))
    except ValueError as error:
        raise ValueError(f"{shorten(text)}: {error}") from None
    return _RANGES[match.group(1)](shorten(text), arguments)


def _bounds(text: str, arguments: list[Value], *, integer: bool, log: bool) -> tuple[float, float]:
    numbers = [a for a in arguments if isinstance(a, int if integer else (int, float)) and not isinstance(a, bool)]
    if len(arguments) != 2 or len(numbers) != 2:
        raise ValueError(f"{text} needs two {'integers' if integer else 'numbers'}, low and high")
    low, high = numbers
    if max(abs(low), abs(high)) > _LARGEST_INT and integer:
        raise ValueError(f"{text} has an integer beyond 2**53, which samplers cannot represent")
    if low >= high:
        raise ValueError(f"{text} is reversed or empty: low {low} is not below high {high}")
    if log and low <= 0:
        raise ValueError(f"{text} is on a log scale, so low must be above 0, not {low}")
    return low, high


def _float(log: bool) -> Callable[[str, list[Value]], BaseDistribution]:
    return lambda text, arguments: FloatDistribution(*_bounds(text, arguments, integer=False, log=log), log=log)


def _int(log: bool) -> Callable[[str, list[Value]], BaseDistribution]:
    def build(text: str, arguments: list[Value]) -> BaseDistribution:
        low, high = _bounds(text, arguments, integer=True, log=log)
        return IntDistribution(int(low), int(high), log=log)

    return build


def _choice(text: str, arguments: list[Value]) -> BaseDistribution:
    if len(set(arguments)) < 2 or len(set(arguments)) != len(arguments):
        raise ValueError(f"{text} needs at least two values, all different")
    return CategoricalDistribution(arguments)


def _bool(text: str, arguments: list[Value]) -> BaseDistribution:
    if arguments:
        raise ValueError(f"{text} takes no values; it is false or true")
    return CategoricalDistribution([False, True])


_RANGES: dict[str, Callable[[str, list[Value]], BaseDistribution]] = {
    "uniform": _float(log=False),
    "loguniform": _float(log=True),
    "int": _int(log=False),
    "logint": _int(log=True),
    "choice": _choice,
    "bool": _bool,
}


@dataclass(frozen=True)
class Parameter:
    """One searched field of a trainer's config.

    Raises:
        ValueError: if the range cannot be read.
    """

    name: str
    """Flat name such as `stage2.alpha`."""
    range: str
    """As written, see `parse_range`."""
    when: Condition | None = None
    """None: always sampled."""
    distribution: BaseDistribution = field(init=False, repr=False, compare=False)
    """The range as an Optuna distribution."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "distribution", parse_range(self.range))

    def at_most(self, limit: int) -> Parameter | None:
        """This range of integers without values above `limit`; None where that leaves one value.

        Raises:
            TypeError: if the range is not one of integers.
        """
        found = self.distribution
        if not isinstance(found, IntDistribution):
            raise TypeError(f"{self.range!r} is not a range of integers")
        if found.high <= limit:
            return self
        kind = self.range.partition("(")[0]
        return None if found.low >= limit else replace(self, range=f"{kind}({found.low}, {limit})")

    @property
    def stage(self) -> str:
        """`stage1` or `stage2`."""
        return self.name.split(".", 1)[0]

    def words(self) -> tuple[str, ...]:
        """The strings among the values of a choice; none for a range of numbers."""
        distribution = self.distribution
        if not isinstance(distribution, CategoricalDistribution):
            return ()
        return tuple(choice for choice in distribution.choices if isinstance(choice, str))

    def check_values(self) -> tuple[Value, ...]:
        """Values that a field must accept: all of a choice; else the bounds and, for a real range, one between them.

        The one between reveals a real range on an integer field, whose bounds alone may be integers.
        """
        low, *high = self.corners()
        if isinstance(self.distribution, FloatDistribution):
            assert isinstance(low, int | float)
            assert isinstance(high[0], int | float)
            return low, high[0], low + 0.618 * (high[0] - low)
        return self.corners()

    def corners(self) -> tuple[Value, ...]:
        """The extreme values; all of them, for a choice."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return tuple(distribution.choices)
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        return distribution.low, distribution.high


class SearchedParameter(BaseModel):
    """A searched parameter as written in a space or in `run.yaml`, beside its name; parsed once, when it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    range: str
    """See `parse_range`."""
    when: str | None = None
    """The condition under which it is sampled, see `Condition.parse`; None: always."""
    _parsed: Parameter = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Parses both texts; a validator would do so again whenever the entry is put into another model."""
        mistakes, condition = [], None
        try:
            condition = None if self.when is None else Condition.parse(self.when)
        except ValueError as error:
            mistakes.append(str(error))
        try:
            self._parsed = Parameter("", self.range, condition)
        except ValueError as error:
            mistakes.insert(0, str(error))
        if mistakes:
            raise ValueError("; ".join(mistakes))

    def named(self, name: str) -> Parameter:
        """The parsed parameter of that name."""
        return replace(self._parsed, name=name)


def in_sampling_order(parameters: Mapping[str, Parameter]) -> tuple[Parameter, ...]:
    """Orders parameters so that each comes after the one its condition reads.

    Raises:
        ValueError: if conditions form a cycle.
    """
    ordered: dict[str, Parameter] = {}
    waiting = dict(parameters)
    while waiting:
        ready = [p for p in waiting.values() if p.when is None or p.when.parameter not in waiting]
        if not ready:
            raise ValueError(f"the conditions of {', '.join(sorted(waiting))} depend on each other")
        for parameter in ready:
            ordered[parameter.name] = waiting.pop(parameter.name)
    return tuple(ordered.values())


def active_names(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters that are sampled given `values` of the others (a flat configuration)."""
    active: dict[str, Any] = {name: value for name, value in values.items() if name not in parameters}
    for parameter in in_sampling_order(parameters):
        if parameter.when is None or parameter.when.holds(active):
            active[parameter.name] = values.get(parameter.name)
    return tuple(name for name in active if name in parameters)


def propose(trial: optuna.Trial, parameters: Mapping[str, Parameter], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Draws every active parameter of a trial, conditions respected.

    Args:
        trial: an Optuna trial; parameters that it already has keep their values.
        parameters: what is searched.
        fixed: the flat base config, read by conditions.

    Returns:
        The drawn values by flat name; inactive parameters are absent.
    """
    known = {name: value for name, value in fixed.items() if name not in parameters}
    drawn: dict[str, Any] = {}
    for parameter in in_sampling_order(parameters):
        if parameter.when is None or parameter.when.holds(known):
            value = _suggest(trial, parameter.name, parameter.distribution)
            drawn[parameter.name] = known[parameter.name] = value
    return drawn


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

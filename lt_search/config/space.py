"""Search spaces: YAML files that say what is searched, in which ranges, with which budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lt_search.config.names import row_name_problem
from lt_search.config.parameters import Parameter, SearchedParameter
from lt_search.config.validation import read_yaml, validation_problems
from lt_search.config.values import Value, is_finite, parse_value, shorten
from lt_search.errors import Problem, Problems, UserError, did_you_mean


def _scalar(value: object) -> Value:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError("must be one value: a number, text, true, false or null")
    if not is_finite(parse_value(value) if isinstance(value, str) else value):  # YAML reads `inf` as text
        raise ValueError("must be a finite number")
    return value


def _range_alone(value: object) -> object:
    """A searched parameter may be its range alone, where it has no condition."""
    if isinstance(value, str):
        return {"range": value}
    if isinstance(value, Mapping | BaseModel):
        return value
    raise ValueError("must be a range such as uniform(0, 1), or {range: ..., when: ...}")


def _rung_points(value: object) -> object:
    points = value if isinstance(value, list | tuple) else [value]
    for point in points:
        is_step = isinstance(point, int) and not isinstance(point, bool) and point >= 1
        if not (is_step or (isinstance(point, float) and 0 < point <= 1)):
            raise ValueError(f"{shorten(point)} is neither an integer step from 1 on nor a fraction above 0 up to 1.0")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Scalar = Annotated[Any, BeforeValidator(_scalar)]
Entry = Annotated[SearchedParameter, BeforeValidator(_range_alone)]
RungPoints = Annotated[list[Any], BeforeValidator(_rung_points)]
"""Integers are steps, floats fractions of the stage's length."""


class RungPlan(_Section):
    """Where trials are compared: integers are steps, `0.25` and `1.0` are fractions of the stage's length."""

    eta: int = Field(3, ge=2)
    stage1: RungPoints = []
    stage2: RungPoints = []


class Budget(_Section):
    """How much a search spends: trials, image size, lengths of both stages."""

    trials: int = Field(ge=1)
    """Trials proposed in all, pruned and failed ones included."""
    image_size: int | None = Field(None, ge=8)
    """Side in pixels to which images are decoded; None: the typical side of the data, at most `max_image_size`."""
    max_image_size: int = Field(512, ge=8)
    """Upper limit for an image size taken from the data."""
    stage1_images: int | None = Field(None, ge=1)
    """Images that stage 1 sees in all; sets `stage1.epochs` from the size of the training split, 8 to `max_epochs`."""
    max_epochs: int = Field(30, ge=8)
    """Longest stage 1 that `stage1_images` gives; without it small sets would be seen hundreds of times."""
    rungs: RungPlan = RungPlan()
    set: dict[str, Scalar] = {}
    """Config fields fixed by this budget."""
    search: dict[str, Entry] = {}
    """Searched in this budget: one more, or with another range."""


class Row(_Section):
    """One row of a comparison: a method with the fields that make it and those it searches beside the common ones."""

    set: dict[str, Scalar] = {}
    """Config fields that make this row."""
    search: dict[str, Entry] = {}
    """Searched in this row only."""
    rungs: RungPlan | None = None
    """Where this row's trials are compared; None: where the budget says."""


class Space(_Section):
    """One search space, as written in its file."""

    trainer: str
    metric: str
    search: dict[str, Entry] = {}
    set: dict[str, Scalar] = {}
    """Config fields fixed in every budget."""
    budgets: dict[str, Budget] = Field(min_length=1)
    rows: dict[str, Row] = {}
    """Methods to compare, each searched by itself with the same number of trials; none in an ordinary space."""

    def parameters(self, budget: str, row: str | None = None) -> dict[str, Parameter]:
        """The parameters searched in a budget, by name."""
        own = self.rows[row].search if row is not None else {}
        entries = {**self.search, **self.budgets[budget].search, **own}
        return {name: entry.named(name) for name, entry in entries.items()}


def shipped_spaces() -> dict[str, str]:
    """Name and text of every space that comes with the package."""
    folder = resources.files("search_spaces")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): (folder / name).read_text(encoding="utf-8") for name in names}


def load_space(name_or_file: str) -> Space:
    """Reads a shipped space by name, or a YAML file.

    Raises:
        UserError: if there is no such space, or the file breaks the rules; every mistake is named.
    """
    shipped = shipped_spaces()
    if name_or_file in shipped:
        return parse_space(shipped[name_or_file], name_or_file)
    path = Path(name_or_file)
    if path.suffix not in {".yaml", ".yml"}:
        listing = f"use one of {', '.join(shipped)}, or the path of a .yaml file"
        fix = did_you_mean(name_or_file, shipped, listing)
        raise UserError(Problem("--space", f"there is no search space {shorten(name_or_file)}", fix))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(Problem("--space", f"cannot read {name_or_file}: {reason}")) from error
    return parse_space(text, name_or_file)


def parse_space(text: str, place: str) -> Space:
    """Reads a space from YAML text; `place` names it in messages.

    Raises:
        UserError: with every mistake found.
    """
    try:
        space = Space.model_validate(read_yaml(text, place))
    except ValidationError as error:
        raise UserError(*validation_problems(error, place)) from error
    problems = Problems()
    for where, fixed in _fixed_fields(space):
        for field in fixed:
            if "." not in field:
                problems.add(f"{place}: {where}.{field}", "is not in a stage", "write stage1.NAME or stage2.NAME")
    for name in space.rows:
        if problem := row_name_problem(name):
            problems.add(f"{place}: rows.{name}", *problem)
    problems.raise_if_any()
    return space


def _fixed_fields(space: Space) -> Iterator[tuple[str, Mapping[str, Value]]]:
    """Every `set` of a space with its place."""
    yield "set", space.set
    yield from ((f"budgets.{name}.set", budget.set) for name, budget in space.budgets.items())
    yield from ((f"rows.{name}.set", row.set) for name, row in space.rows.items())

"""Search spaces: YAML files that say what is searched, in which ranges, with which budgets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lt_search.config.parameters import Condition, Parameter, parse_range
from lt_search.config.values import Value
from lt_search.errors import Problem, Problems, UserError

FOLDER_NAME = re.compile(r"[\w][\w.-]*")
"""What may name a run, or a row of a comparison."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ParameterEntry(_Section):
    """A searched parameter that has a condition."""

    range: str
    when: str | None = None


class RungPlan(_Section):
    """Where trials are compared: whole numbers are steps, `0.25` and `1.0` are fractions of the stage's length."""

    eta: int = Field(3, ge=2)
    stage1: list[int | float] = []
    stage2: list[int | float] = []

    @field_validator("stage1", "stage2")
    @classmethod
    def _steps_or_fractions(cls, points: list[int | float]) -> list[int | float]:
        wrong = [p for p in points if not ((isinstance(p, int) and p >= 1) or 0 < p <= 1)]
        if wrong:
            raise ValueError(f"{wrong} are neither whole steps from 1 on nor fractions above 0 up to 1.0")
        return points


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
    """Longest stage 1 that `stage1_images` gives: small sets would else be seen hundreds of times."""
    rungs: RungPlan = RungPlan()
    set: dict[str, Value] = {}
    """Config fields fixed by this budget."""
    search: dict[str, str | ParameterEntry] = {}
    """Searched in this budget: one more, or with another range."""


class Row(_Section):
    """One row of a comparison: a method with the fields that make it and those it searches beside the common ones."""

    set: dict[str, Value] = {}
    """Config fields that make this row."""
    search: dict[str, str | ParameterEntry] = {}
    """Searched in this row only."""
    rungs: RungPlan | None = None
    """Where this row's trials are compared; None: where the budget says."""


class Space(_Section):
    """One search space, as its file says it."""

    trainer: str
    metric: str
    search: dict[str, str | ParameterEntry] = {}
    set: dict[str, Value] = {}
    """Config fields fixed in every budget."""
    budgets: dict[str, Budget]
    rows: dict[str, Row] = {}
    """Methods to compare, each searched by itself with the same number of trials; none in an ordinary space."""

    def parameters(self, budget: str, row: str | None = None) -> dict[str, Parameter]:
        """The parameters searched in a budget, by name. Their texts were checked when the space was read."""
        own = self.rows[row].search if row is not None else {}
        entries = {**self.search, **self.budgets[budget].search, **own}
        return {name: _parameter(name, entry) for name, entry in entries.items()}


def _parameter(name: str, entry: str | ParameterEntry) -> Parameter:
    if isinstance(entry, str):
        return Parameter(name, entry)
    return Parameter(name, entry.range, Condition.parse(entry.when) if entry.when else None)


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
        close = difflib.get_close_matches(name_or_file, shipped, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            Problem(
                "--space",
                f"there is no search space {name_or_file!r}",
                f"{hint}use one of {', '.join(shipped)}, or the path of a .yaml file",
            )
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem("--space", f"cannot read {name_or_file}: {error}")) from error
    return parse_space(text, name_or_file)


def parse_space(text: str, place: str) -> Space:
    """Reads a space from YAML text; `place` names it in messages.

    Raises:
        UserError: with every mistake found.
    """
    try:
        raw: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(Problem(place, f"is not valid YAML: {error}")) from error
    try:
        space = Space.model_validate(raw)
    except ValidationError as error:
        raise UserError(*validation_problems(error, place)) from error
    problems = Problems()
    for where, fixed in _fixed_fields(space):
        for field in fixed:
            if "." not in field:
                problems.add(f"{place}: {where}.{field}", "is no field of a stage", "write stage1.NAME or stage2.NAME")
    _check_search(problems, f"{place}: search", space.search)
    for name, budget in space.budgets.items():
        _check_search(problems, f"{place}: budgets.{name}.search", budget.search)
    for name, row in space.rows.items():
        if not FOLDER_NAME.fullmatch(name):
            problems.add(f"{place}: rows.{name}", "cannot name a folder", "use letters, digits, '-', '_' and '.'")
        _check_search(problems, f"{place}: rows.{name}.search", row.search)
    problems.raise_if_any()
    return space


def _fixed_fields(space: Space) -> Iterator[tuple[str, Mapping[str, Value]]]:
    """Every `set` of a space with its place."""
    yield "set", space.set
    yield from ((f"budgets.{name}.set", budget.set) for name, budget in space.budgets.items())
    yield from ((f"rows.{name}.set", row.set) for name, row in space.rows.items())


def _check_search(problems: Problems, place: str, search: Mapping[str, str | ParameterEntry]) -> None:
    for name, entry in search.items():
        check_range(problems, f"{place}.{name}", entry if isinstance(entry, str) else entry.range)
        if isinstance(entry, ParameterEntry) and entry.when is not None:
            try:
                Condition.parse(entry.when)
            except ValueError as error:
                problems.add(f"{place}.{name}.when", str(error))


def check_range(problems: Problems, place: str, text: str) -> bool:
    """Notes what is wrong with a range's text; True if nothing is."""
    try:
        parse_range(text)
    except ValueError as error:
        problems.add(place, str(error))
        return False
    return True


def validation_problems(error: ValidationError, place: str) -> list[Problem]:
    """A pydantic error as the user's mistakes, one per field."""
    found = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        given = detail["input"]
        shown = f" (given: {given!r})" if isinstance(given, bool | int | float | str) else ""
        found.append(Problem(f"{place}: {where}" if where else place, f"{detail['msg']}{shown}"))
    return found

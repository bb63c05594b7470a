"""Resolution and checks of one budget of a search space against its trainer, as far as no data is needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution
from pydantic import ValidationError

from lt_search.config.parameters import Condition, Parameter, in_sampling_order
from lt_search.config.space import Row, RungPlan, Space
from lt_search.config.spec import parse_config, trainer_type
from lt_search.config.validation import describe
from lt_search.config.values import flatten, is_finite, parse_value
from lt_search.errors import Problem, Problems, UserError, did_you_mean
from lt_search.metrics.evaluate import check_metric

if TYPE_CHECKING:
    from trainers.base import TrainerConfig

LENGTHS = {"stage1": "stage1.epochs", "stage2": "stage2.rounds"}
"""The fields that hold the length of each stage."""


def check_space(space: Space, name: str) -> None:
    """Checks every budget and row of a space, without data.

    Args:
        space: as read from its file.
        name: of the space, or its file; for messages.

    Raises:
        UserError: with every mistake that would be found by a search on any data.
    """
    problems = Problems()
    trainer = trainer_type(space.trainer)
    wrong = Problems()
    accepted = [wrong.collect(partial(check_metric, space.metric, task, f"{name}: metric")) for task in trainer.tasks]
    if not any(accepted):
        problems.collect(wrong.raise_if_any)
    for budget in space.budgets:
        for row in space.rows or [None]:
            check = BudgetResolver(space, name, budget, row, problems)
            config = check.base_config({}, space.budgets[budget].max_epochs)
            searched = check.searched({}, {})
            if config is not None:
                check.check_parameters(config, searched)
                check.check_rungs(check.rungs(config, {}), config, searched)
    problems.raise_if_any()


def row_of(space: Space, name: str | None) -> Row:
    """The row of that name; an empty one where the space has none and none is named.

    Raises:
        UserError: if there is no such row, or one must be named.
    """
    if name is None and not space.rows:
        return Row()
    if name is None:
        fix = f"use one of {', '.join(space.rows)}"
        raise UserError(Problem("--row", "the space compares rows, and none is named", fix))
    if name not in space.rows:
        fix = did_you_mean(name, space.rows) if space.rows else "leave the option out: the space has no rows"
        raise UserError(Problem("--row", f"the space has no row {name!r}", fix))
    return space.rows[name]


class BudgetResolver:
    """A budget, and a row, of a space with what the user changed.

    Args:
        space: the search space.
        name: of the space, or its file; for messages.
        budget: name of the budget.
        row: name of the row; None where the space has none.
        problems: collects what is wrong.
    """

    def __init__(self, space: Space, name: str, budget: str, row: str | None, problems: Problems) -> None:
        self.space, self.name, self.budget_name, self.row_name = space, name, budget, row
        self.problems = problems
        self.notes: list[str] = []
        self.config_type = trainer_type(space.trainer).config_type
        self.budget = space.budgets[budget]
        self.row = row_of(space, row)
        self.fields = tuple(flatten(self.config_type().model_dump()))

    def assignments(self, texts: Sequence[str], option: str) -> dict[str, str]:
        """The `NAME=VALUE` texts of an option, by field."""
        found: dict[str, str] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            name = name.strip()
            if not equals or not value.strip():
                self.problems.add(option, f"{text!r} is not NAME=VALUE")
            elif name not in self.fields:
                self._unknown_field(f"{option} {text}", name, self.fields)
            elif name in found:
                self.problems.add(f"{option} {text}", f"{name} is given twice", "keep one of the two")
            elif option == "--set" and not is_finite(parse_value(value)):
                self.problems.add(f"{option} {name}", "must be a finite number", "give another value")
            else:
                found[name] = value.strip()
        return found

    def _unknown_field(self, place: str, name: str, known: Iterable[str]) -> None:
        fix = did_you_mean(name, known, f"`lt-search spaces {self.name}` lists all fields")
        self.problems.add(place, f"{self.space.trainer} has no parameter {name!r}", fix)

    def searched(self, fixed: Mapping[str, str], ranges: Mapping[str, str]) -> dict[str, Parameter]:
        """The searched parameters: those of the space, without `fixed` ones, with the user's `ranges`."""
        parameters = self.space.parameters(self.budget_name, self.row_name)
        for name in [name for name in parameters if name not in self.fields]:
            self._unknown_field(f"{self.name}: search.{name}", name, self.fields)
            del parameters[name]
        for name, text in ranges.items():
            if name in fixed:
                self.problems.add(f"--search {name}", "is also fixed by --set", "give one of the two")
            old = parameters.get(name)
            try:
                parameters[name] = Parameter(name, text, old.when if old else None)
            except ValueError as error:
                self.problems.add(f"--search {name}", str(error))
        for name in fixed:
            parameters.pop(name, None)
        for name in LENGTHS.values():
            if parameters.pop(name, None):
                what = "the length of a stage is one constant per run, so that rungs are comparable"
                self.problems.add(f"search.{name}", what, f"fix it with --set {name}=N")
        return parameters

    def base_config(self, fixed: Mapping[str, str], epochs: int | None) -> TrainerConfig | None:
        """The config of the first trial; None if the space's own values are wrong.

        Args:
            fixed: texts of the values that the user fixed, by field.
            epochs: length of stage 1 where the budget gives its number of images.
        """
        flat: dict[str, Any] = {**self.space.set, **self.budget.set, **self.row.set}
        if self.budget.stage1_images is not None and epochs is not None:
            flat["stage1.epochs"] = epochs
        flat.update({name: parse_value(text) for name, text in fixed.items()})
        try:
            config = parse_config(self.config_type, flat)
        except ValidationError as error:
            wrong = set()
            for detail in error.errors():
                name = ".".join(str(part) for part in detail["loc"])
                wrong |= {name} if name in fixed else {text for text in fixed if text.startswith(f"{name}.")}
                place = f"--set {name}={fixed[name]}" if name in fixed else f"{self.name}: {name}"
                self.problems.add(place, describe(detail))
            left = {name: text for name, text in fixed.items() if name not in wrong}
            return self.base_config(left, epochs) if wrong else None
        # A path given from one folder must still be found when the run is resumed from another.
        return self.with_values(config, {r.field: _absolute(r.source) for r in config.resources() if not r.published})

    def with_values(self, config: TrainerConfig, values: Mapping[str, Any]) -> TrainerConfig:
        """The config with some fields changed; raises `ValidationError` if they cannot be."""
        flat = flatten(config.model_dump())
        if all(flat[name] == value for name, value in values.items()):
            return config
        return parse_config(self.config_type, {**flat, **values})

    def first_value_inside(
        self, config: TrainerConfig, searched: Mapping[str, Parameter], narrowed: Iterable[str]
    ) -> TrainerConfig:
        """Moves the first values of parameters into ranges that the user narrowed, with a note."""
        flat = flatten(config.model_dump())
        moved: dict[str, Any] = {}
        for name in narrowed:
            if name in searched and not _contains(searched[name], flat[name]):
                moved[name] = min(searched[name].corners(), key=partial(_distance, flat[name]))
                self.notes.append(f"{name} starts at {moved[name]!r}: {searched[name].range} leaves out {flat[name]!r}")
        try:
            return self.with_values(config, moved)
        except ValidationError:
            return config  # a bound that the field does not allow is reported with the range

    def check_parameters(self, config: TrainerConfig, searched: Mapping[str, Parameter]) -> None:
        """Checks that ranges lie within the fields' bounds, hold the first value, and have possible conditions."""
        base = flatten(config.model_dump())
        for name, parameter in searched.items():
            place = f"search.{name}"
            for value in parameter.check_values():
                try:
                    parse_config(self.config_type, {**base, name: value})
                except ValidationError as error:
                    rule = "; ".join(describe(detail) for detail in error.errors())
                    fix = "for integers write int(a, b) or logint(a, b)" if "integer" in rule else ""
                    what = f"{parameter.range} goes outside the field's bounds at {value}: {rule}"
                    self.problems.add(place, what, fix)
                    break
            if not _contains(parameter, base[name]):
                self.problems.add(
                    place,
                    f"{parameter.range} leaves out {base[name]!r}, the value of the first trial",
                    f"widen the range, or give a first value inside it: set {name} in the space's budget",
                )
            if parameter.when is not None:
                self._check_condition(f"{place}.when", parameter.when, base, searched)
        try:
            in_sampling_order(searched)
        except ValueError as error:
            self.problems.add("search", str(error))

    def _check_condition(
        self, place: str, when: Condition, base: Mapping[str, Any], searched: Mapping[str, Parameter]
    ) -> None:
        if when.parameter not in base:
            self._unknown_field(place, when.parameter, base)
            return
        read = searched.get(when.parameter)
        if read is None:
            return  # a fixed field may switch its dependants off
        possible = read.corners() if when.negated else [value for value in when.values if _contains(read, value)]
        if not any(when.holds({when.parameter: value}) for value in possible):
            what = f"{when} can never hold: {when.parameter} is searched in {read.range}"
            self.problems.add(place, what, "correct one of the two")

    def rungs(self, config: TrainerConfig, fixed: Mapping[str, str]) -> dict[str, list[int]]:
        """The steps of each stage's rungs; those beyond a stage that the user shortened are dropped, with a note."""
        return {stage: self._rung_steps(stage, config, fixed) for stage in LENGTHS}

    def _rung_steps(self, stage: str, config: TrainerConfig, fixed: Mapping[str, str]) -> list[int]:
        plan: RungPlan = self.row.rungs or self.budget.rungs
        length = _length(stage, config)
        points = plan.stage1 if stage == "stage1" else plan.stage2
        steps = [max(1, round(point * length)) if isinstance(point, float) else point for point in points]
        if LENGTHS[stage] in fixed:
            beyond = [step for step in steps if step > _last_rung(stage, length)]
            if beyond:
                self.notes.append(f"no rung at {stage} step {', '.join(map(str, beyond))}: it has only {length} steps")
            steps = [step for step in steps if step not in beyond]
        return sorted(set(steps))

    def check_rungs(
        self, rungs: Mapping[str, list[int]], config: TrainerConfig, searched: Mapping[str, Parameter]
    ) -> None:
        """Checks that rungs lie within their stage, after every loss is active."""
        active_from = self._losses_active_from(config, searched)
        owner = f"rows.{self.row_name}" if self.row.rungs else f"budgets.{self.budget_name}"
        for stage, steps in rungs.items():
            number, last = int(stage[-1]), _last_rung(stage, _length(stage, config))
            place = f"{self.name}: {owner}.rungs.{stage}"
            for step in steps:
                if not 1 <= step <= last:
                    what = f"a rung at step {step} is outside 1 to {last}"
                    self.problems.add(place, what, f"move it, or lengthen {stage}")
                elif step <= active_from[number]:
                    what = f"the rung at step {step} comes before every loss is active: one is switched on after step "
                    fix = "move the rung behind that step, or switch the loss on earlier"
                    self.problems.add(place, f"{what}{active_from[number]}", fix)

    def _losses_active_from(self, config: TrainerConfig, searched: Mapping[str, Parameter]) -> dict[int, int]:
        latest = dict(config.losses_active_from())
        base = flatten(config.model_dump())
        corners = [(name, corner) for name, parameter in searched.items() for corner in parameter.corners()]
        # Pairs, because a switch and the step that it brings into play are two parameters.
        for (one, first), (two, second) in itertools.combinations_with_replacement(corners, 2):
            try:
                varied = parse_config(self.config_type, {**base, one: first, two: second})
            except ValidationError:
                continue  # reported by check_parameters
            for stage, step in varied.losses_active_from().items():
                latest[stage] = max(latest[stage], step)
        return latest


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _length(stage: str, config: TrainerConfig) -> int:
    return config.stage1.epochs if stage == "stage1" else config.stage2.rounds


def _last_rung(stage: str, length: int) -> int:
    """The last step that can be a rung; the end of stage 2 gives the final value, and is not a rung."""
    return length if stage == "stage1" else length - 1


def _contains(parameter: Parameter, value: Any) -> bool:
    distribution = parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, high = parameter.corners()
    return isinstance(value, int | float) and low <= value <= high  # type: ignore[operator]


def _distance(value: object, bound: object) -> float:
    """How far a bound is from a value; 0 where they are not numbers, so that the first word of a choice is taken."""
    return abs(bound - value) if isinstance(bound, int | float) and isinstance(value, int | float) else 0.0

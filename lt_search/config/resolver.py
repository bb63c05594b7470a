"""From what the user asked for to what a run is, with every mistake found on the way."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution, IntDistribution
from pydantic import ValidationError

from lt_search.config.options import SpecOptions
from lt_search.config.parameters import Condition, Parameter, in_sampling_order
from lt_search.config.space import Budget, Row, RungPlan, Space, check_range, load_space
from lt_search.config.spec import DataFacts, ExtraFacts, RunSpec, SearchedParameter, parse_config, trainer_type
from lt_search.config.values import flatten, parse_value, unflatten
from lt_search.errors import Problem, Problems, UserError
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import check_metric, counted_classes

if TYPE_CHECKING:
    from lt_search.data.table import Dataset
    from trainers.base import TrainerConfig

MIN_EPOCHS = 8
"""Shortest stage 1 that is derived from the size of the data."""


def resolve_spec(options: SpecOptions, dataset: Dataset, *, gpu: bool) -> RunSpec:
    """Turns what the user asked for into what the run is.

    Args:
        options: as given.
        dataset: the data that was loaded for them.
        gpu: whether trials have a GPU; decides the `auto` budget.

    Raises:
        UserError: with every mistake found in the space, the options and their fit to the data.
    """
    return _Resolver(options, dataset, gpu=gpu).resolve()


class _Resolver:
    """Resolves options to a spec, collecting mistakes on the way."""

    def __init__(self, options: SpecOptions, dataset: Dataset, *, gpu: bool) -> None:
        self.options = options
        self.dataset = dataset
        self.problems = Problems()
        self.notes: list[str] = []
        self.space: Space = load_space(options.space)
        self.trainer = trainer_type(self.space.trainer)
        self.config_type = self.trainer.config_type
        self.budget_name = self._budget_name(gpu)
        self.budget: Budget = self.space.budgets[self.budget_name]
        self.row = self._row()
        self.rung_plan: RungPlan = self.row.rungs or self.budget.rungs

    def resolve(self) -> RunSpec:
        self._check_task()
        self._check_extra_data()
        metric = self._metric()
        fixed = self._assignments(self.options.set, "--set")
        searched = self._searched(fixed)
        config = self._base_config(fixed)
        if config is None:
            self.problems.raise_if_any()  # the space's own values are wrong: there is no config to check the rest by
        assert config is not None
        config, searched = self._within_the_data(config, searched)
        config = self._first_value_inside(config, searched)
        self._check_parameters(config, searched)
        if flatten(config.model_dump()).get("stage1.weights") == "none":
            self.notes.append("stage1.weights=none: the backbone starts from random weights")
        rungs = {stage: self._rung_steps(stage, config, fixed) for stage in ("stage1", "stage2")}
        self._check_rungs(rungs, config, searched)
        self.problems.raise_if_any()
        counts = map(int, self.dataset.train_counts())
        self.notes.extend(config.notes(dict(zip(self.dataset.classes, counts, strict=True))))
        return RunSpec(
            options={k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.options).items()},
            trainer=self.space.trainer,
            metric=metric,
            budget=self.budget_name,
            seed=self.options.seed,
            sampler=self.options.sampler,
            reuse=self.options.reuse,
            cost_ratio=self.options.cost_ratio,
            prune=self.options.prune,
            data=self._data_facts(),
            config=config.model_dump(mode="json"),
            search={
                name: SearchedParameter(range=p.range, when=str(p.when) if p.when else None)
                for name, p in searched.items()
            },
            eta=self.rung_plan.eta,
            rungs=rungs,
            notes=self.notes,
        )

    def _within_the_data(
        self, config: TrainerConfig, searched: dict[str, Parameter]
    ) -> tuple[TrainerConfig, dict[str, Parameter]]:
        """Cuts fields and ranges where larger values are the same on data of so few classes."""
        flat, within = flatten(config.model_dump()), dict(searched)
        n_classes = len(self.dataset.classes)
        for name, most in config.most(n_classes).items():
            flat[name] = min(flat[name], most)
            if name not in within or not isinstance(within[name].distribution, IntDistribution):
                continue
            cut = within[name].cut(most)
            if cut == within[name]:
                continue
            self.notes.append(f"{name}: at most {most}, more are the same on {n_classes} classes")
            if cut is None:
                del within[name]
            else:
                within[name] = cut
        return parse_config(self.config_type, unflatten(flat)), within

    def _budget_name(self, gpu: bool) -> str:
        name = self.options.budget
        if name == "auto":
            name = "full" if gpu else "small"
            self.notes.append(f"budget {name}: {'a GPU is there' if gpu else 'no GPU is there'}")
        if name not in self.space.budgets:
            known = ", ".join(self.space.budgets)
            raise UserError(Problem("--budget", f"the space has no budget {name!r}", f"use one of {known}"))
        return name

    def _row(self) -> Row:
        name, rows = self.options.row, self.space.rows
        if name is None and not rows:
            return Row()
        if name not in rows:
            close = difflib.get_close_matches(str(name), rows, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            what = f"the space has no row {name!r}" if name else "the space compares rows, and none is named"
            raise UserError(Problem("--row", what, f"{hint}its rows: {', '.join(rows) or 'none'}"))
        return rows[name]

    def _check_task(self) -> None:
        task = self.dataset.task
        if task not in self.trainer.tasks:
            takes = " or ".join(sorted(self.trainer.tasks))
            self.problems.add(
                "--space",
                f"{self.options.space} trains {self.space.trainer}, which takes {takes} data, "
                f"but {self.dataset.name} is {task}",
                "use a space for this kind of data (`lt-search spaces` lists them), or other data",
            )

    def _check_extra_data(self) -> None:
        if self.dataset.extra and not self.trainer.takes_unknown_labels:
            self.problems.add(
                "--extra-data",
                f"{self.space.trainer} does not take labels that are unknown, as those of further data are in part",
                "use a space whose trainer does, such as cxr, or leave the option out",
            )

    def _metric(self) -> str:
        """The objective: the user's, else the one that the data set is published with, else the space's."""
        own = self.dataset.objective
        metric = self.options.metric or own or self.space.metric
        if self.options.metric is None and own not in {None, self.space.metric}:
            fix = f"--metric {self.space.metric} takes the space's"
            self.notes.append(f"objective {own}: what {self.dataset.name} is scored by where it was published; {fix}")
        try:
            name = check_metric(metric, self.dataset.task).name
        except UserError as error:
            self.problems.extend(error)
            return metric
        if not counted_classes(name, self.dataset.val.labels, len(self.dataset.classes)):
            self.problems.add(
                "--dataset",
                f"no class of the validation split has what {name} needs to be computed",
                "move images of some classes to it, or try another --split-seed",
            )
        return name

    def _image_size(self) -> int:
        if self.options.image_size is not None:
            return self.options.image_size
        if self.budget.image_size is not None:
            return self.budget.image_size
        size = min(self.dataset.typical_side(), self.budget.max_image_size)
        self.notes.append(f"image size {size}: the typical side of the data, at most {self.budget.max_image_size}")
        return size

    def _assignments(self, texts: Sequence[str], option: str) -> dict[str, str]:
        found: dict[str, str] = {}
        known = _field_names(self.config_type)
        for text in texts:
            name, equals, value = text.partition("=")
            name = name.strip()
            if not equals or not value.strip():
                self.problems.add(option, f"{text!r} is not NAME=VALUE")
            elif name not in known:
                self._unknown_field(f"{option} {text}", name, known)
            elif name in found:
                self.problems.add(f"{option} {text}", f"{name} is given twice", "keep one of the two")
            else:
                found[name] = value.strip()
        return found

    def _unknown_field(self, place: str, name: str, known: Iterable[str]) -> None:
        close = difflib.get_close_matches(name, list(known), n=1)
        hint = f"did you mean {close[0]}?" if close else f"`lt-search spaces {self.options.space}` lists all fields"
        self.problems.add(place, f"{self.space.trainer} has no parameter {name!r}", hint)

    def _searched(self, fixed: Mapping[str, str]) -> dict[str, Parameter]:
        known = _field_names(self.config_type)
        parameters = self.space.parameters(self.budget_name, self.options.row)
        for name in list(parameters):
            if name not in known:
                self._unknown_field(f"{self.options.space}: search.{name}", name, known)
                del parameters[name]
        for name, text in self._assignments(self.options.search, "--search").items():
            if name in fixed:
                self.problems.add(f"--search {name}", "is also fixed by --set", "give one of the two")
            if check_range(self.problems, f"--search {name}", text):
                old = parameters.get(name)
                parameters[name] = Parameter(name, text, old.when if old else None)
        for name in fixed:
            parameters.pop(name, None)
        for name in ("stage1.epochs", "stage2.rounds"):
            if name in parameters:
                self.problems.add(
                    f"search.{name}",
                    "the length of a stage is one constant per run, or its rungs would not be comparable",
                    f"fix it with --set {name}=N",
                )
                del parameters[name]
        return parameters

    def _base_config(self, fixed: Mapping[str, str]) -> TrainerConfig | None:
        flat: dict[str, Any] = {**self.space.set, **self.budget.set, **self.row.set}
        if self.budget.stage1_images is not None and "stage1.epochs" not in fixed:
            flat["stage1.epochs"] = self._epochs(flat)
        flat.update({name: parse_value(text) for name, text in fixed.items()})
        try:
            config = parse_config(self.config_type, flat)
        except ValidationError as error:
            wrong = set()
            for detail in error.errors():
                name = ".".join(str(part) for part in detail["loc"])
                wrong |= {name} if name in fixed else {text for text in fixed if text.startswith(f"{name}.")}
                place = f"--set {name}={fixed[name]}" if name in fixed else f"{self.options.space}: {name}"
                self.problems.add(place, f"{detail['msg']} (given: {_shown(detail['input'])})")
            left = {name: text for name, text in fixed.items() if name not in wrong}
            return self._base_config(left) if wrong else None
        # A path given from one folder must still be found when the run is resumed from another.
        files = {r.field: str(Path(r.source).absolute()) for r in config.resources() if not r.published}
        return parse_config(self.config_type, {**flatten(config.model_dump()), **files})

    def _epochs(self, flat: Mapping[str, Any]) -> int:
        assert self.budget.stage1_images is not None
        n_train = len(self.dataset.train) + sum(len(extra.train) for extra in self.dataset.extra)
        per_epoch = min(n_train, int(flat.get("stage1.images_per_epoch") or n_train))
        epochs = round(self.budget.stage1_images / per_epoch)
        epochs = max(MIN_EPOCHS, min(self.budget.max_epochs, epochs))
        self.notes.append(f"{epochs} stage-1 epochs: about {epochs * per_epoch:,} images in {n_train:,}")
        return epochs

    def _first_value_inside(self, config: TrainerConfig, searched: Mapping[str, Parameter]) -> TrainerConfig:
        """Moves first values into ranges that the user narrowed on the command line, and says so."""
        flat = flatten(config.model_dump())
        moved: dict[str, Any] = {}
        for name in self._assignments(self.options.search, "--search"):
            if name in searched and not _contains(searched[name], flat[name]):
                corners = searched[name].corners()
                nearest = min(corners, key=lambda v, now=flat[name]: _distance(v, now))  # type: ignore[misc]
                moved[name] = nearest
                self.notes.append(f"{name} starts at {nearest!r}: {searched[name].range} leaves out {flat[name]!r}")
        try:
            return parse_config(self.config_type, {**flat, **moved}) if moved else config
        except ValidationError:
            return config  # a bound that the field does not allow is reported with the range

    def _check_parameters(self, config: TrainerConfig, searched: Mapping[str, Parameter]) -> None:
        base = flatten(config.model_dump())
        for name, parameter in searched.items():
            place = f"search.{name}"
            for value in parameter.probes():
                try:
                    parse_config(self.config_type, {**base, name: value})
                except ValidationError as error:
                    rule = "; ".join(str(detail["msg"]) for detail in error.errors())
                    whole = "for whole numbers write int(a, b) or logint(a, b)" if "integer" in rule else ""
                    self.problems.add(
                        place, f"{parameter.range} goes outside the field's bounds at {value}: {rule}", whole
                    )
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
            self.problems.add(
                place, f"{when} can never hold: {when.parameter} is searched in {read.range}", "correct one of the two"
            )

    def _rung_steps(self, stage: str, config: TrainerConfig, fixed: Mapping[str, str]) -> list[int]:
        """The steps of a stage's rungs; those beyond a stage that the user shortened are left out, with a note."""
        plan = self.rung_plan
        length = _length(stage, config)
        steps = []
        for point in plan.stage1 if stage == "stage1" else plan.stage2:
            step = max(1, round(point * length)) if isinstance(point, float) and point <= 1 else int(point)
            steps.append(step)
        if ("stage1.epochs" if stage == "stage1" else "stage2.rounds") in fixed:
            beyond = [step for step in steps if step > _last_rung(stage, length)]
            if beyond:
                self.notes.append(f"no rung at {stage} step {', '.join(map(str, beyond))}: it has only {length} steps")
            steps = [step for step in steps if step not in beyond]
        return sorted(set(steps))

    def _check_rungs(
        self, rungs: Mapping[str, list[int]], config: TrainerConfig, searched: Mapping[str, Parameter]
    ) -> None:
        active_from = self._losses_active_from(config, searched)
        owner = f"rows.{self.options.row}" if self.row.rungs else f"budgets.{self.budget_name}"
        for stage, steps in rungs.items():
            number, length = int(stage[-1]), _length(stage, config)
            last = _last_rung(stage, length)
            for step in steps:
                place = f"{self.options.space}: {owner}.rungs.{stage}"
                if not 1 <= step <= last:
                    self.problems.add(
                        place, f"a rung at step {step} is outside 1 to {last}", f"move it, or lengthen {stage}"
                    )
                elif step <= active_from[number]:
                    self.problems.add(
                        place,
                        f"the rung at step {step} comes before every loss is active: one is switched on after "
                        f"step {active_from[number]}",
                        "move the rung behind that step, or switch the loss on earlier",
                    )

    def _losses_active_from(self, config: TrainerConfig, searched: Mapping[str, Parameter]) -> dict[int, int]:
        latest = dict(config.losses_active_from())
        base = flatten(config.model_dump())
        corners = [(name, corner) for name, parameter in searched.items() for corner in parameter.corners()]
        # Pairs, because a switch and the step that it brings into play are two parameters.
        for (one, first), (two, second) in itertools.combinations_with_replacement(corners, 2):
            try:
                varied = parse_config(self.config_type, {**base, one: first, two: second})
            except ValidationError:
                continue  # reported by _check_parameters
            for stage, step in varied.losses_active_from().items():
                latest[stage] = max(latest[stage], step)
        return latest

    def _data_facts(self) -> DataFacts:
        dataset = self.dataset
        counts = [int(count) for count in dataset.train_counts()]
        self.notes.append(class_groups(counts).describe(dataset.classes))
        self.notes.extend(sentence for extra in dataset.extra for sentence in extra.sentences())
        return DataFacts(
            name=dataset.name,
            fingerprint=dataset.fingerprint,
            split_hash=dataset.split_hash,
            split_origin=dataset.split_origin,
            image_size=self._image_size(),
            task=str(dataset.task),
            classes=list(dataset.classes),
            train_counts=counts,
            images={part.name: len(part.ids) for part in (dataset.train, dataset.val, dataset.test)},
            extra=[
                ExtraFacts(
                    name=extra.name,
                    fingerprint=extra.train.fingerprint,
                    images=len(extra.train),
                    unknown=list(extra.unknown),
                    left_out=list(extra.left_out),
                )
                for extra in dataset.extra
            ],
        )


def _field_names(config_type: type[TrainerConfig]) -> tuple[str, ...]:
    return tuple(flatten(config_type().model_dump()))


def _length(stage: str, config: TrainerConfig) -> int:
    return config.stage1.epochs if stage == "stage1" else config.stage2.rounds


def _last_rung(stage: str, length: int) -> int:
    """The last step that can be a rung; the end of stage 2 is the final value, not a rung."""
    return length if stage == "stage1" else length - 1


def _contains(parameter: Parameter, value: Any) -> bool:
    distribution = parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, high = parameter.corners()
    return isinstance(value, int | float) and low <= value <= high  # type: ignore[operator]


def _distance(value: object, now: object) -> float:
    """How far a bound is from a value; 0 where they are no numbers, so that a choice's first word is taken."""
    return abs(value - now) if isinstance(value, int | float) and isinstance(now, int | float) else 0.0


def _shown(given: object) -> str:
    """A wrong value in short; a whole section of a config says nothing to anybody."""
    return repr(given) if isinstance(given, bool | int | float | str) else "a combination of fields"

"""Resolution of user options, a space and a data set to the spec of a run, with every mistake found on the way."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from optuna.distributions import IntDistribution

from lt_search.config.budget_resolver import BudgetResolver, row_of
from lt_search.config.options import SpecOptions
from lt_search.config.parameters import Parameter, SearchedParameter
from lt_search.config.space import Space, load_space
from lt_search.config.spec import DataFacts, ExtraFacts, RunSpec, trainer_type
from lt_search.config.values import flatten
from lt_search.errors import Problem, Problems, UserError
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import check_metric, counted_classes

if TYPE_CHECKING:
    from lt_search.data.table import Dataset
    from trainers.base import TrainerConfig

MIN_EPOCHS = 8
"""Shortest stage 1 that is derived from the size of the data."""


def resolve_spec(options: SpecOptions, dataset: Dataset, *, gpu: bool, space: Space | None = None) -> RunSpec:
    """Resolves what the user asked for to the spec of a run.

    Args:
        options: as given.
        dataset: the data that was loaded for them.
        gpu: whether trials have a GPU; decides the `auto` budget.
        space: the search space; None loads the one that `options` name.

    Raises:
        UserError: with every mistake found in the space, the options and their fit to the data.
    """
    return _Resolver(options, space or load_space(options.space), dataset, gpu=gpu).resolve()


def kept_options(options: SpecOptions) -> dict[str, Any]:
    """The options as plain values, as a run or a comparison keeps them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}


class _Resolver:
    """Resolves options to a spec, collecting mistakes on the way."""

    def __init__(self, options: SpecOptions, space: Space, dataset: Dataset, *, gpu: bool) -> None:
        self.options, self.space, self.dataset = options, space, dataset
        self.problems = Problems()
        self.trainer = trainer_type(space.trainer)
        budget, notes = _budget_name(options.budget, space, gpu)
        row_of(space, options.row)
        self.check = BudgetResolver(space, options.space, budget, options.row, self.problems)
        self.notes = self.check.notes
        self.notes.extend(notes)

    def resolve(self) -> RunSpec:
        check = self.check
        self._check_task()
        self._check_extra_data()
        metric = self._metric()
        fixed = check.assignments(self.options.set, "--set")
        ranges = check.assignments(self.options.search, "--search")
        searched = check.searched(fixed, ranges)
        config = check.base_config(fixed, self._epochs(fixed))
        if config is None:
            self.problems.raise_if_any()  # the space's own values are wrong: there is no config to check the rest by
        assert config is not None
        config, searched = self._within_the_data(config, searched)
        config = check.first_value_inside(config, searched, ranges)
        check.check_parameters(config, searched)
        if flatten(config.model_dump()).get("stage1.weights") == "none":
            self.notes.append("stage1.weights=none: the backbone starts from random weights")
        rungs = check.rungs(config, fixed)
        check.check_rungs(rungs, config, searched)
        self.problems.raise_if_any()
        counts = map(int, self.dataset.train_counts())
        self.notes.extend(config.notes(dict(zip(self.dataset.classes, counts, strict=True))))
        return RunSpec(
            options=kept_options(self.options),
            trainer=self.space.trainer,
            metric=metric,
            budget=check.budget_name,
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
            eta=(check.row.rungs or check.budget.rungs).eta,
            rungs=rungs,
            notes=self.notes,
        )

    def _within_the_data(
        self, config: TrainerConfig, searched: dict[str, Parameter]
    ) -> tuple[TrainerConfig, dict[str, Parameter]]:
        """Limits fields and ranges to values that differ on data of so few classes."""
        flat, limited = flatten(config.model_dump()), dict(searched)
        n_classes = len(self.dataset.classes)
        limits = config.most(n_classes)
        for name, most in limits.items():
            if name not in limited or not isinstance(limited[name].distribution, IntDistribution):
                continue
            cut = limited[name].at_most(most)
            if cut == limited[name]:
                continue
            self.notes.append(f"{name}: at most {most}, more are the same on {n_classes} classes")
            if cut is None:
                del limited[name]
            else:
                limited[name] = cut
        return self.check.with_values(config, {name: min(flat[name], most) for name, most in limits.items()}), limited

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
        budget = self.check.budget
        if self.options.image_size is not None:
            return self.options.image_size
        if budget.image_size is not None:
            return budget.image_size
        size = min(self.dataset.typical_side(), budget.max_image_size)
        self.notes.append(f"image size {size}: the typical side of the data, at most {budget.max_image_size}")
        return size

    def _epochs(self, fixed: dict[str, str]) -> int | None:
        """The length of stage 1 for the number of images that the budget gives, if it does and the user does not."""
        budget = self.check.budget
        if budget.stage1_images is None or "stage1.epochs" in fixed:
            return None
        values = {**self.space.set, **budget.set, **self.check.row.set}
        n_train = len(self.dataset.train) + sum(len(extra.train) for extra in self.dataset.extra)
        limit = values.get("stage1.images_per_epoch")
        per_epoch = min(n_train, limit) if isinstance(limit, int) and limit > 0 else n_train
        epochs = max(MIN_EPOCHS, min(budget.max_epochs, round(budget.stage1_images / per_epoch)))
        self.notes.append(f"{epochs} stage-1 epochs: about {epochs * per_epoch:,} images in {n_train:,}")
        return epochs

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


def _budget_name(asked: str, space: Space, gpu: bool) -> tuple[str, list[str]]:
    """The budget's name, and a note where it was chosen; raises `UserError` if the space has none of that name."""
    name = asked if asked != "auto" else "full" if gpu else "small"
    if name not in space.budgets:
        fix = f"use one of {', '.join(space.budgets)}"
        raise UserError(Problem("--budget", f"the space has no budget {name!r}", fix))
    return name, [f"budget {name}: {'a GPU is there' if gpu else 'no GPU is there'}"] if asked == "auto" else []

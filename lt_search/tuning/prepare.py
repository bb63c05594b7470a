"""Preparation of a new run: storage, space and data are checked together, then resolved to a spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.space import Space, load_space
from lt_search.config.spec import RunSpec, extra_key, tasks_of, trainer_type
from lt_search.data.decoded import open_images, pixels_checksum
from lt_search.data.extra import add_extra_data
from lt_search.data.registry import bundled_for, dataset_of
from lt_search.errors import Problems, UserError
from lt_search.metrics.evaluate import METRICS, counted_classes
from lt_search.storage.files import FolderStore, open_storage
from lt_search.storage.run_folder import check_folder_name, check_name
from lt_search.training.tensor_files import resolve_resources
from lt_search.tuning.cluster import available_resources, check_address, has_gpu

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.data.table import Dataset, Part
    from trainers.base import Weights


@dataclass(frozen=True)
class SearchInputs:
    """What a new search is made of; loaded once, also for the rows of a comparison."""

    storage: FolderStore
    space: Space
    dataset: Dataset


@dataclass(frozen=True)
class PreparedRun:
    """A run whose spec, data and tensor files are known."""

    spec: RunSpec
    dataset: Dataset
    weights: Mapping[str, Weights]
    storage: FolderStore
    """Where the run's folder is, or will be."""
    store: FolderStore | None
    """The folder of a resumed run; None: not made yet."""
    trials: Callable[[], int]
    """Trials that the budget proposes."""


def load_inputs(options: SpecOptions, run_options: RunOptions, problems: Problems | None = None) -> SearchInputs:
    """Loads the space and the data of a new search, and checks where it will be kept.

    Args:
        options: what is searched.
        run_options: options of its execution.
        problems: mistakes that were found in the options, whose places have default values in them.

    Raises:
        UserError: with all mistakes in the options, the space, the data, the storage, the name and the address.
    """
    problems = problems or Problems()
    if run_options.name is not None:
        problems.collect(partial(check_folder_name, run_options.name))
    problems.collect(lambda: check_address(run_options.address))
    storage = problems.collect(lambda: open_storage(run_options.storage))
    space = None if problems.has("--space") else problems.collect(lambda: load_space(options.space))
    trainer = problems.collect(lambda: trainer_type(space.trainer)) if space else None
    bundled = bundled_for(tasks_of(trainer, space.metric)[-1]) if space and trainer else ""
    dataset = None
    if (options.dataset or bundled) and not problems.has("--dataset", "--data-root", "--extra-data"):
        dataset = problems.collect(lambda: load_training_data(vars(options), bundled))
    problems.raise_if_any()
    assert storage is not None
    assert space is not None
    assert dataset is not None
    return SearchInputs(storage, space, dataset)


def prepare(
    options: SpecOptions, run_options: RunOptions, inputs: SearchInputs, console: Console, say: Callable[[str], None]
) -> PreparedRun:
    """Resolves the spec of a new run; with an address, the cluster must be connected.

    Raises:
        UserError: with every mistake found; nothing was written then.
    """
    spec = resolve_spec(options, inputs.dataset, gpu=gpu_available(run_options), space=inputs.space)
    spec, weights = resolve_resources(spec, say)
    announce(spec, inputs.dataset, say)
    pixels = decode(inputs.dataset, spec.data.image_size, console)
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"pixels": pixels})})
    check_name(inputs.storage, run_options.name, spec)
    trials = budget_trials(inputs.space, spec)
    return PreparedRun(spec, inputs.dataset, weights, inputs.storage, None, lambda: trials)


def budget_trials(space: Space, spec: RunSpec) -> int:
    """The number of trials of a run's budget: one where nothing is searched."""
    return space.budgets[spec.budget].trials if spec.search else 1


def load_training_data(options: Mapping[str, Any], default: str) -> Dataset:
    """The data of a run, with its further training data.

    Args:
        options: `SpecOptions` by name, as a run keeps them.
        default: the data set where they name none.

    Raises:
        UserError: with everything that is wrong with it.
    """
    return add_extra_data(dataset_of(options, default), options.get("extra_data") or (), options["split_seed"])


def gpu_available(run_options: RunOptions) -> bool:
    """Whether trials can have a GPU; with an address, the cluster must be connected."""
    if run_options.gpus_per_trial != "auto" and float(run_options.gpus_per_trial) == 0:
        return False
    return has_gpu(available_resources()) if run_options.address is not None else torch.cuda.is_available()


def announce(spec: RunSpec, dataset: Dataset, say: Callable[[str], None]) -> None:
    """Says what a run is about: its data, and every choice that was made for the user."""
    images = ", ".join(f"{count:,} {part}" for part, count in spec.data.images.items())
    bundled = "" if spec.options["dataset"] else " (bundled; give your own with --dataset FILE.csv)"
    say(f"data {spec.data.name}{bundled}: {spec.data.task}, {len(spec.data.classes)} classes, {images} images")
    say(f"split {spec.data.split_origin}; trials see train and val only")
    for line in (*dataset.warnings, *spec.notes):
        say(line)
    counted = counted_classes(spec.metric, dataset.val.labels, len(dataset.classes))
    left_out = [name for index, name in enumerate(dataset.classes) if index not in counted]
    if left_out and not METRICS[spec.metric].pooled:
        say(f"{spec.metric} on val averages over {len(counted)} classes; without: {', '.join(left_out)}")


def decode(dataset: Dataset, size: int, console: Console) -> dict[str, str]:
    """Decodes all images on this node, so that a broken one is found before the search; returns checksums by part."""
    problems = Problems()
    further = {extra_key(number): extra.train for number, extra in enumerate(dataset.extra, 1)}
    parts: dict[str, Part] = {**{part.name: part for part in dataset.parts()}, **further}
    for name, part in parts.items():
        try:
            open_images(part, size, progress=console.is_terminal)
        except UserError as error:
            for problem in error.problems:
                place = f"{name}: {problem.place}" if name in further else problem.place
                problems.add(place, problem.what, problem.fix)
    problems.raise_if_any()
    return {name: pixels_checksum(part, size) for name, part in parts.items()}

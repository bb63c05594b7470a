"""Tensor files that trials need: found once by the driver, so that nodes cannot differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from lt_search.config.spec import RunSpec, parse_config, trainer_type
from lt_search.config.values import flatten
from lt_search.errors import Problem, Problems, UserError
from lt_search.storage.files import FolderStore
from trainers.base import Resource, Task, TrainerConfig, TrainerInputs, TwoStageTrainer, Weights
from trainers.hashing import hash_tensors
from trainers.resources import PublishedUnavailable, ResourceUnavailable, resolve
from trainers.text.label_embeddings import Pooling
from trainers.text.resolve import resolve_text


def resolve_resources(spec: RunSpec, say: Callable[[str], None]) -> tuple[RunSpec, dict[str, Weights]]:
    """Loads every tensor file that a trial of this run may need, and puts their hashes into the spec.

    A text encoder encodes the data's labels. With `--budget auto` or `small` something published that is out of reach
    is done without (random initial weights, no text), with a line that says so.

    Raises:
        UserError: naming each file that is missing, and how to give it or continue without.
    """
    problems = Problems()
    found: dict[str, Weights] = {}
    hashes: dict[str, str] = {}
    notes: list[str] = []
    forgiving = spec.options["budget"] in {"auto", "small"}
    for resource in needed_resources(spec):
        try:
            if resource.kind == "backbone":
                found[resource.key] = resolve(resource)
                hashes[resource.key] = hash_tensors(found[resource.key])
            else:
                found[resource.key], hashes[resource.key], note = resolve_text(resource, spec.data.classes)
                notes.append(note)
        except ResourceUnavailable as error:
            if forgiving and isinstance(error, PublishedUnavailable) and resource.field not in spec.search:
                instead = "random initial weights" if resource.kind == "backbone" else "no text"
                say(f"{error}; continuing with {resource.field}=none ({instead})")
                return resolve_resources(without(spec, resource), say)
            fix = error.fix or f"give a local file with --set {resource.field}=FILE"
            problems.add(
                f"{resource.field}={resource.source}",
                str(error),
                f"{fix}, or continue without: --set {resource.field}=none",
            )
    problems.raise_if_any()
    _check_they_fit(spec, found)
    return spec.model_copy(update={"resources": hashes, "notes": [*spec.notes, *notes]}), found


def dry_build(spec: RunSpec, config: TrainerConfig, weights: Mapping[str, Weights]) -> TwoStageTrainer[Any]:
    """The trainer of a config, on two black images: as large as in a trial, and with its weights."""
    task, size = Task(spec.data.task), spec.data.image_size
    n_classes = len(spec.data.classes)
    labels = torch.zeros(2, n_classes) if task == Task.MULTI_LABEL else torch.zeros(2, dtype=torch.int64)
    images = np.zeros((2, 3, size, size), np.uint8)
    inputs = TrainerInputs(task, n_classes, images, labels, torch.device("cpu"), spec.seed, weights)
    return trainer_type(spec.trainer)(config, inputs)


def _check_they_fit(spec: RunSpec, weights: Mapping[str, Weights]) -> None:
    """Refuses weights that fit no network of the search, instead of failing every trial that has them."""
    problems, tried = Problems(), set()
    for config in _categorical_configs(spec):
        needed = config.resources()
        if not needed or needed in tried:
            continue
        tried.add(needed)
        try:
            dry_build(spec, config, weights)
        except (ValueError, RuntimeError) as error:
            places = ", ".join(f"{resource.field}={resource.source} ({resource.name})" for resource in needed)
            problems.add(places, str(error).splitlines()[0], "give a file made for this network, or fix the network")
    problems.raise_if_any()


def without(spec: RunSpec, resource: Resource) -> RunSpec:
    """The same run with a resource switched off in its base config."""
    config = spec.resolve({resource.field: "none"})
    what = f"{resource.name} weights" if resource.kind == "backbone" else resource.source
    note = f"{resource.field}=none: {what} unavailable here"
    return spec.model_copy(update={"config": config, "notes": [*spec.notes, note]})


def needed_resources(spec: RunSpec) -> list[Resource]:
    """The resources of every config this run can propose, each once."""
    found: dict[str, Resource] = {}
    for config in _categorical_configs(spec):
        for resource in config.resources():
            found.setdefault(resource.key, resource)
    return list(found.values())


def _categorical_configs(spec: RunSpec) -> Iterator[TrainerConfig]:
    """One config for each combination of the searched words; numbers never decide which file is needed."""
    config_type = trainer_type(spec.trainer).config_type
    base = flatten(spec.config)
    words = {name: parameter.words() for name, parameter in spec.parameters.items() if parameter.words()}
    for values in product(*words.values()):
        try:
            yield parse_config(config_type, {**base, **dict(zip(words, values, strict=True))})
        except ValidationError:
            continue  # words that exclude each other: no trial can run with them


def write_label_embeddings(source: str, labels: Sequence[str], pooling: Pooling | None, path: Path) -> str:
    """Encodes labels and writes the file; returns a line that says what is in it.

    Raises:
        UserError: the encoder is unavailable, or the file cannot be written.
    """
    from safetensors.torch import save_file

    from trainers.text.encoder import encode_labels

    try:
        made = encode_labels(source, tuple(labels), pooling)
        write = FolderStore(path.parent).write_with
        write(path.name, lambda partial: save_file(made.tensors(), partial, made.metadata()))
    except ResourceUnavailable as error:
        raise UserError(Problem("--model", str(error), error.fix or "give the folder of a text encoder")) from error
    except OSError as error:
        raise UserError(Problem("--output", f"{path} cannot be written: {error.strerror}")) from error
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in made.tensors().items())
    return f"wrote {path}: {shapes} of {made.model}, revision {made.revision}, {made.pooling} pooling"

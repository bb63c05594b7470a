"""Resuming a run: its own spec, on the same data, images and tensor files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lt_search.config.options import SpecOptions
from lt_search.config.space import load_space
from lt_search.config.spec import RunSpec, extra_key
from lt_search.errors import Problem, Problems, UserError
from lt_search.storage.files import FolderStore
from lt_search.training.tensor_files import resolve_resources
from lt_search.tuning.prepare import PreparedRun, announce, budget_trials, decode, load_training_data

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.data.table import Dataset

MOVABLE = ("dataset", "data_root", "extra_data")
"""Options that say where the data is: a resumed run accepts others, if it finds the same data there."""


def resume(
    store: FolderStore, spec: RunSpec, options: SpecOptions, console: Console, say: Callable[[str], None]
) -> PreparedRun:
    """Checks that a run can be resumed as it was started.

    Args:
        store: the run's folder.
        spec: its spec.
        options: what the user gave; nothing in it may say otherwise than the spec.
        console: for the progress of decoding images.
        say: takes lines for the user.

    Raises:
        UserError: if options, data, images or tensor files differ from the run's.
    """
    check_same_options(spec.options, options)
    dataset = load_training_data({**spec.options, **moved_data(options)}, spec.data.name)
    _check_same_data(spec, dataset)
    found, weights = resolve_resources(spec, say)
    _check_same_resources(spec, found)
    announce(spec, dataset, say)
    _check_same_pixels(spec, dataset, decode(dataset, spec.data.image_size, console))

    def trials() -> int:
        return budget_trials(load_space(spec.options["space"]), spec)  # only of a run that ended before its first trial

    return PreparedRun(spec, dataset, weights, FolderStore(store.root.parent), store, trials)


def moved_data(options: SpecOptions | None) -> dict[str, Any]:
    """Where a resumed run finds its data, if that has moved; that it is the same data is checked afterwards."""
    given = {name: getattr(options, name) for name in MOVABLE} if options else {}
    return {name: place for name, place in given.items() if place}


def check_same_options(kept: Mapping[str, Any], options: SpecOptions) -> None:
    """Refuses options that differ from those a run was started with; those that were not given are as before."""
    problems = Problems()
    not_given = SpecOptions()
    for field in fields(SpecOptions):
        if field.name in MOVABLE:
            continue  # the same data may have moved
        given, was = getattr(options, field.name), kept.get(field.name)
        plain = list(given) if isinstance(given, tuple) else given
        if given != getattr(not_given, field.name) and plain != was:
            option = f"--{field.name.replace('_', '-')}"
            problems.add(option, f"{plain!r} differs from the run's {was!r}", "leave it out, or start a new run")
    problems.raise_if_any()


def _check_same_data(spec: RunSpec, dataset: Dataset) -> None:
    if dataset.fingerprint != spec.data.fingerprint or dataset.split_hash != spec.data.split_hash:
        raise UserError(_changed(dataset.name, "labels or images"))
    kept, found = spec.data.extra, dataset.extra
    if [extra.fingerprint for extra in kept] != [extra.train.fingerprint for extra in found]:
        given = ", ".join(extra.name for extra in found) or "none"
        was = ", ".join(extra.name for extra in kept) or "none"
        what = f"the extra data ({given}) is not that of the run ({was}), or not in its order, or has changed"
        fix = "restore the original, say where it is with --extra-data, or start a new run"
        raise UserError(Problem("--resume", what, fix))


def _check_same_pixels(spec: RunSpec, dataset: Dataset, pixels: Mapping[str, str]) -> None:
    names = {extra_key(number): extra.name for number, extra in enumerate(dataset.extra, 1)}
    changed = [names.get(key, dataset.name) for key, found in pixels.items() if spec.data.pixels.get(key) != found]
    if changed:
        raise UserError(*(_changed(name, "images") for name in dict.fromkeys(changed)))


def _changed(name: str, what: str) -> Problem:
    fix = "restore the originals, say where they are with --dataset, --data-root, --extra-data, or start a new run"
    return Problem("--resume", f"the {what} of {name} are not those of the run", fix)


def _check_same_resources(spec: RunSpec, found: RunSpec) -> None:
    problems = Problems()
    for key, digest in spec.resources.items():
        if found.resources.get(key) != digest:
            what = "has changed since the run was started" if key in found.resources else "is not available here"
            problems.add("--resume", f"the file of {key} {what}", "restore the original")
    problems.raise_if_any()

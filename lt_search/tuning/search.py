"""A run from start to end: what was asked for, checked; the search; and what is left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.space import load_space
from lt_search.config.spec import RunSpec, extra_key, tasks_of, trainer_type
from lt_search.data.decoded import open_images, pixels_checksum
from lt_search.data.extra import add_extra_data
from lt_search.data.registry import bundled_for, load_dataset
from lt_search.errors import ExitCode, Problem, Problems, UserError
from lt_search.metrics.evaluate import METRICS, counted_classes
from lt_search.results.export import export_best
from lt_search.results.report.collect import REPORT, write_report
from lt_search.results.summary import RunSummary, summarise
from lt_search.samplers import NeverSeenWarning, ReseededSampler, StagedSampler
from lt_search.storage.addresses import compute_kind
from lt_search.storage.files import STORAGE_ERRORS, FolderStore, open_storage
from lt_search.storage.journal import Journal, NoTrialsYetError, sole_driver
from lt_search.storage.provenance import provenance
from lt_search.storage.run_folder import JOURNAL, check_folder_name, check_name, new_run, open_run, shared_storage
from lt_search.storage.schema import TRIALS
from lt_search.storage.stage_store import StageStore
from lt_search.training.inputs import LoadedInputs, RunInputs
from lt_search.training.tensor_files import resolve_resources
from lt_search.tuning.cluster import (
    TrialResources,
    at_a_time,
    check_address,
    choose_resources,
    has_gpu,
    ray_cluster,
    resources_there,
)
from lt_search.tuning.plan import measure, render_plan
from lt_search.tuning.progress import render_leaderboard, show_value
from lt_search.tuning.simulation import expect
from lt_search.tuning.tune_loop import StopReason, carry_out

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from lt_search.data.table import Dataset, Part

DEVICE = "device"
"""User attribute of the study: on what its trials were last computed."""


def search(options: SpecOptions, how: RunOptions, console: Console) -> ExitCode:
    """Starts or goes on with a run.

    Args:
        options: what the run is; where `how.resume` names a run, nothing in it may say otherwise.
        how: how it is carried out.
        console: where the person looks.

    Returns:
        The exit code.

    Raises:
        UserError: with every mistake found; nothing was written then.
    """
    say = _sayer(console)
    with ExitStack() as stack:
        if how.resume is None:
            storage, dataset = check_places(options, how)
            if how.address is not None:
                stack.enter_context(ray_cluster(how.address))  # the budget asks what the cluster has
            spec = resolve_spec(options, dataset, gpu=gpu_available(how))
            spec, weights = resolve_resources(spec, say)
            store = None
        else:
            storage = open_storage(how.storage)
            store, spec = open_run(storage, how.resume)
            stack.enter_context(sole_driver(store.root))
            check_same_options(spec.options, options)
            dataset = load_training_data({**spec.options, **where_the_data_is(options)}, spec.data.name)
            _check_same_data(spec, dataset)
            found, weights = resolve_resources(spec, say)
            _check_same_resources(spec, found)
        _announce(spec, dataset, say)
        pixels = _decode(dataset, spec.data.image_size, console)
        if store is None:
            spec = spec.model_copy(update={"data": spec.data.model_copy(update={"pixels": pixels})})
            check_name(storage, how.name, spec)
        else:
            _check_same_pixels(spec, dataset, pixels)
        if how.plan:
            _show_plan(spec, how, storage, store, RunInputs.of(spec, dataset, weights, storage.root), say)
            return ExitCode.DONE
        if how.address is None:
            say("starting Ray on this machine")
        stack.enter_context(ray_cluster(how.address))
        each = choose_resources(how.cpus_per_trial, how.gpus_per_trial, resources_there())
        if store is None:
            store = new_run(storage, how.name, spec, provenance())
            stack.enter_context(sole_driver(store.root))
        say(f"run {store.root.name} in {store.root}")
        journal = Journal(store.path(JOURNAL), _sampler(spec))
        _set_target(journal, how, spec, say)
        _note_device(journal, each, say)
        inputs = RunInputs.of(spec, dataset, weights, store.root, shared_storage(store).root if spec.reuse else None)
        try:
            stop = carry_out(spec, journal, store, inputs, each, how, console)
            return _conclude(spec, journal, store, stop, console)
        except KeyboardInterrupt:
            say(f"interrupted at once; go on with: {resume_command(store)}")
            return ExitCode.INTERRUPTED
        except OSError as error:
            if error.errno not in STORAGE_ERRORS:
                raise
            say(f"{store.root} cannot be written: {error.strerror}. Nothing that was finished is lost: free some space")
            say(f"and go on with: {resume_command(store)}")
            return ExitCode.FAILED


def check_places(options: SpecOptions, how: RunOptions) -> tuple[FolderStore, Dataset]:
    """The storage and the data of a new run.

    Raises:
        UserError: with all that is wrong with either, with the space, the name and the address, in one message.
    """
    problems = Problems()
    if how.name is not None:
        problems.collect(partial(check_folder_name, how.name))
    problems.collect(lambda: check_address(how.address))
    storage = problems.collect(lambda: open_storage(how.storage))
    trainer = problems.collect(lambda: trainer_type(load_space(options.space).trainer))
    bundled = bundled_for(tasks_of(trainer, load_space(options.space).metric)[-1]) if trainer else ""
    dataset = (
        problems.collect(lambda: load_training_data(vars(options), bundled)) if options.dataset or bundled else None
    )
    problems.raise_if_any()
    assert storage is not None
    assert dataset is not None
    return storage, dataset


def _sayer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show_plan(
    spec: RunSpec,
    how: RunOptions,
    storage: FolderStore,
    store: FolderStore | None,
    inputs: RunInputs,
    say: Callable[[str], None],
) -> None:
    """Says what a new run would take, or what is left of the one in `store`."""
    target, started = (None, []) if store is None else _started(store)
    ended = sum(trial.state.is_finished() for trial in started)
    # A run whose target was lowered still ends the trials that it had begun.
    trials = max(target_of(spec, how.trials, target), len(started)) - ended
    if not trials:
        say(f"nothing is left to plan: all {ended} trials have ended; plan more with --trials {2 * ended}")
        return
    with nullcontext() if how.address is None else ray_cluster(how.address):
        there = resources_there()
    each = choose_resources(how.cpus_per_trial, how.gpus_per_trial, there)
    gpu = bool(each.gpus) and torch.cuda.is_available()
    concurrent = min(trials, at_a_time(there, each, how.max_concurrent))
    say("measuring one trial")
    torch.set_num_threads(how.cpus_per_trial)
    costs = measure(spec, LoadedInputs(inputs, torch.device("cuda" if gpu else "cpu")), storage)
    kind = compute_kind("cuda" if gpu else "cpu", how.cpus_per_trial)
    stages = StageStore(storage if store is None else shared_storage(store))
    expected = expect(spec, trials, costs, _sampler(spec), stages.has, kind, started)
    device = "GPU" if gpu else "CPU core" if how.cpus_per_trial == 1 else f"trial on {how.cpus_per_trial} CPU cores"
    say(
        render_plan(
            spec,
            trials,
            expected,
            costs,
            concurrent=concurrent,
            keep_gb=how.keep_gb,
            device=device,
            started=started,
        )
    )


def _started(store: FolderStore) -> tuple[int | None, list[FrozenTrial]]:
    """How many trials a run is to have, and those that were handed out; (None, []) where it has no journal yet."""
    try:
        journal = Journal.reader(store.path(JOURNAL))
    except NoTrialsYetError:
        return None, []
    return journal.study.user_attrs.get(TRIALS), journal.started()


def load_training_data(options: Mapping[str, Any], default: str) -> Dataset:
    """The data of a run, with its further training data.

    Args:
        options: `SpecOptions` by name, as a run keeps them.
        default: the data set where they name none.

    Raises:
        UserError: with everything that is wrong with it.
    """
    root = options["data_root"]
    dataset = load_dataset(options["dataset"] or default, Path(root) if root else None, options["split_seed"])
    return add_extra_data(dataset, options.get("extra_data") or (), options["split_seed"])


MOVABLE = ("dataset", "data_root", "extra_data")
"""Options that say where the data is: a resumed run takes others, if it finds the same data there."""


def where_the_data_is(options: SpecOptions | None) -> dict[str, Any]:
    """Where a resumed run finds its data, if that has moved; that it is the same data is checked afterwards."""
    given = {name: getattr(options, name) for name in MOVABLE} if options else {}
    return {name: place for name, place in given.items() if place}


def gpu_available(how: RunOptions) -> bool:
    """Whether trials can have a GPU; with an address, the cluster must be connected."""
    if how.gpus_per_trial not in {"auto"} and float(how.gpus_per_trial) == 0:
        return False
    if how.address is not None:
        return has_gpu(resources_there())
    return torch.cuda.is_available()


def _announce(spec: RunSpec, dataset: Dataset, say: Callable[[str], None]) -> None:
    images = ", ".join(f"{count:,} {part}" for part, count in spec.data.images.items())
    bundled = "" if spec.options["dataset"] else " (bundled; give your own with --dataset FILE.csv)"
    say(f"data {spec.data.name}{bundled}: {spec.data.task}, {len(spec.data.classes)} classes, {images} images")
    say(f"split {spec.data.split_origin}; trials see train and val only")
    for line in (*dataset.warnings, *spec.notes):
        say(line)
    for line in _uncounted(spec, dataset):
        say(line)


def _uncounted(spec: RunSpec, dataset: Dataset) -> Iterator[str]:
    """Says over which classes the objective averages, where those are not all."""
    counted = counted_classes(spec.metric, dataset.val.labels, len(dataset.classes))
    left_out = [name for index, name in enumerate(dataset.classes) if index not in counted]
    if left_out and not METRICS[spec.metric].pooled:
        yield f"{spec.metric} on val averages over {len(counted)} classes; without: {', '.join(left_out)}"


def _decode(dataset: Dataset, size: int, console: Console) -> dict[str, str]:
    """Decodes all parts on this node, so that a broken image is found before the search; returns their checksums."""
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


def check_same_options(kept: Mapping[str, Any], options: SpecOptions) -> None:
    """`--resume` goes on with the run's own spec; options that say otherwise are refused, not ignored."""
    problems = Problems()
    not_given = SpecOptions(space="")
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
        fix = "bring the old one back, say where it is with --extra-data, or start a new run"
        raise UserError(Problem("--resume", what, fix))


def _check_same_pixels(spec: RunSpec, dataset: Dataset, pixels: Mapping[str, str]) -> None:
    names = {extra_key(number): extra.name for number, extra in enumerate(dataset.extra, 1)}
    changed = [names.get(key, dataset.name) for key, found in pixels.items() if spec.data.pixels.get(key) != found]
    if changed:
        raise UserError(*(_changed(name, "images") for name in dict.fromkeys(changed)))


def _changed(name: str, what: str) -> Problem:
    fix = "bring the old ones back, say where they are with --dataset, --data-root, --extra-data, or start a new run"
    return Problem("--resume", f"the {what} of {name} are not those of the run", fix)


def _check_same_resources(spec: RunSpec, found: RunSpec) -> None:
    problems = Problems()
    for key, digest in spec.resources.items():
        if found.resources.get(key) != digest:
            what = "has changed since the run began" if key in found.resources else "cannot be had here"
            problems.add("--resume", f"the file of {key} {what}", "bring the old one back")
    problems.raise_if_any()


def _sampler(spec: RunSpec) -> BaseSampler:
    """The run's sampler. Where nothing is shared, no stage 1 is worth repeating, and TPE proposes."""
    if spec.sampler != "staged":
        return ReseededSampler(spec.seed, spec.sampler)
    stage1 = [name for name, parameter in spec.parameters.items() if parameter.stage == "stage1"]
    warnings.simplefilter("ignore", NeverSeenWarning)  # a space's own names are never misspelt
    return StagedSampler(stage1 if spec.reuse else [], cost_ratio=spec.cost_ratio, seed=spec.seed)


def target_of(spec: RunSpec, asked: int | None, kept: int | None) -> int:
    """How many trials a run proposes in all.

    Args:
        spec: the run.
        asked: as many as the user wants now; None: not said.
        kept: as many as the run was to have before; None: it has not begun.
    """
    if asked is not None:
        return asked
    if kept is not None:
        return kept
    return load_space(spec.options["space"]).budgets[spec.budget].trials if spec.search else 1


def _set_target(journal: Journal, how: RunOptions, spec: RunSpec, say: Callable[[str], None]) -> None:
    kept = journal.study.user_attrs.get(TRIALS)
    target = target_of(spec, how.trials, kept)
    if target != kept:
        journal.study.set_user_attr(TRIALS, target)
    if not spec.search:
        say("nothing is searched: every trial is the same configuration")


def _note_device(journal: Journal, each: TrialResources, say: Callable[[str], None]) -> None:
    """Says when a run goes on with other devices or threads: the last bits of its values, or more, may differ."""
    now = f"{'a GPU' if each.gpus else 'the CPU'} with {each.cpus} {'thread' if each.cpus == 1 else 'threads'} a trial"
    before = journal.study.user_attrs.get(DEVICE, now)
    if before != now:
        say(f"earlier trials of this run were computed on {before}, new ones are on {now}: equal configs may differ")
    journal.study.set_user_attr(DEVICE, now)


def _conclude(spec: RunSpec, journal: Journal, store: FolderStore, stop: StopReason, console: Console) -> ExitCode:
    say = _sayer(console)
    summary = summarise(spec, journal)
    best = summary.best
    if best is not None:
        export_best(spec, store, summary)
    write_report(spec, journal, store)
    if best is not None:
        console.print(render_leaderboard(spec, summary))
        say(f"best: trial {best.number}, validation {spec.metric} {show_value(best.value, best.standard_error)}")
        say(f"exported to {store.path('best')}; check it with: lt-search evaluate {store.path('best')}")
    for line in summary.probe_lines:
        say(line)
    say(f"report: {store.path(REPORT)}")
    again = resume_command(store)
    if stop.text:
        say(f"{stop.text}; go on with: {again}")
        return stop.code
    if best is None:
        say(f"no trial finished: {_first_failure(summary)}")
        return ExitCode.FAILED
    say(f"more trials: {again} --trials {2 * summary.target}")
    return ExitCode.DONE


def resume_command(store: FolderStore) -> str:
    """The command that goes on with a run, or a comparison, in this folder."""
    elsewhere = store.root.parent != Path(RunOptions.storage).absolute()
    return f"python run_search.py --resume {store.root.name}" + (f" --storage {store.root.parent}" if elsewhere else "")


def _first_failure(summary: RunSummary) -> str:
    failed = summary.of_state("failed")
    return failed[0].note if failed else "all were pruned; start with --no-prune to see why"

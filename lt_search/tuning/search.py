"""A search from start to end: prepared or resumed, carried out, and concluded with an export and a report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from lt_search.config.hints import command, resume_command
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.spec import RunSpec
from lt_search.console import printer
from lt_search.errors import ExitCode
from lt_search.results.export import export_best
from lt_search.results.report.collect import REPORT, write_report
from lt_search.results.summary import RunSummary, summarise
from lt_search.samplers import ReseededSampler, StagedSampler
from lt_search.storage.addresses import compute_kind
from lt_search.storage.files import STORAGE_ERRORS, FolderStore, open_storage
from lt_search.storage.journal import Journal, NoTrialsYetError, sole_driver
from lt_search.storage.provenance import provenance
from lt_search.storage.repair import sole_driver_of_sound
from lt_search.storage.run_folder import JOURNAL, new_run, open_run, shared_storage
from lt_search.storage.schema import TRIALS, target_trials
from lt_search.storage.stage_store import StageStore
from lt_search.training.inputs import LoadedInputs, RunInputs
from lt_search.tuning.cluster import (
    TrialResources,
    available_resources,
    choose_resources,
    max_parallel_trials,
    ray_cluster,
)
from lt_search.tuning.plan import measure, render_plan
from lt_search.tuning.prepare import PreparedRun, SearchInputs, load_inputs, prepare
from lt_search.tuning.progress import render_leaderboard, show_value
from lt_search.tuning.resume import resume
from lt_search.tuning.simulation import expect
from lt_search.tuning.tune_loop import StopReason, carry_out

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

DEVICE = "device"
"""User attribute of the study: on what its trials were last computed."""


def search(
    options: SpecOptions, run_options: RunOptions, console: Console, inputs: SearchInputs | None = None
) -> ExitCode:
    """Starts or resumes a run.

    Args:
        options: what the run is; where `run_options.resume` names a run, nothing in it may say otherwise.
        run_options: options of its execution.
        console: for messages and the status.
        inputs: of a new run, where they were loaded before.

    Returns:
        The exit code.

    Raises:
        UserError: with every mistake found; nothing was written then.
    """
    say = printer(console)
    with ExitStack() as stack:
        if run_options.resume is None:
            inputs = inputs or load_inputs(options, run_options)
            if run_options.address is not None:
                stack.enter_context(ray_cluster(run_options.address))  # the budget depends on the cluster's devices
            run = prepare(options, run_options, inputs, console, say)
        else:
            folder, spec = open_run(open_storage(run_options.storage), run_options.resume)
            stack.enter_context(sole_driver_of_sound(folder))
            run = resume(folder, spec, options, console, say)
        if run_options.plan:
            _show_plan(run, run_options, say)
            return ExitCode.DONE
        if run_options.address is None:
            say("starting Ray on this machine")
        stack.enter_context(ray_cluster(run_options.address))
        each = choose_resources(run_options.cpus_per_trial, run_options.gpus_per_trial, available_resources())
        store = run.store
        if store is None:
            store = new_run(run.storage, run_options.name, run.spec, provenance())
            stack.enter_context(sole_driver(store.root))
        say(f"run {store.root.name} in {store.root}")
        return _carry_out(run, store, each, run_options, console, say)


def _carry_out(
    run: PreparedRun,
    store: FolderStore,
    each: TrialResources,
    run_options: RunOptions,
    console: Console,
    say: Callable[[str], None],
) -> ExitCode:
    spec = run.spec
    journal = Journal(store.path(JOURNAL), _sampler(spec))
    kept = journal.study.user_attrs.get(TRIALS)
    target = target_of(run_options.trials, kept, run.trials)
    if target != kept:
        journal.study.set_user_attr(TRIALS, target)
    if not spec.search:
        say("nothing is searched: every trial is the same configuration")
    _note_device(journal, each, say)
    shared = shared_storage(store).root if spec.reuse else None
    inputs = RunInputs.of(spec, run.dataset, run.weights, store.root, shared)
    try:
        stop = carry_out(spec, journal, store, inputs, each, run_options, console)
        return _conclude(spec, journal, store, stop, console, say)
    except KeyboardInterrupt:
        say(f"interrupted at once; resume with: {resume_command(store.root)}")
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        say(f"{store.root} cannot be written: {error.strerror}. Everything that was finished is kept: free some space")
        say(f"and resume with: {resume_command(store.root)}")
        return ExitCode.FAILED


def _show_plan(run: PreparedRun, run_options: RunOptions, say: Callable[[str], None]) -> None:
    """Says what a new run would take, or what is left of a resumed one."""
    spec, store = run.spec, run.store
    target, started = (None, []) if store is None else _started(store)
    ended = sum(trial.state.is_finished() for trial in started)
    # A run whose target was lowered still trains the trials that it had begun to their end.
    trials = max(target_of(run_options.trials, target, run.trials), len(started)) - ended
    if not trials:
        say(f"nothing is left to plan: all {ended} trials have ended; plan more with --trials {2 * ended}")
        return
    with nullcontext() if run_options.address is None else ray_cluster(run_options.address):
        there = available_resources()
    each = choose_resources(run_options.cpus_per_trial, run_options.gpus_per_trial, there)
    gpu = bool(each.gpus) and torch.cuda.is_available()
    concurrent = min(trials, max_parallel_trials(there, each, run_options.max_concurrent))
    say("measuring one trial")
    torch.set_num_threads(run_options.cpus_per_trial)
    inputs = RunInputs.of(spec, run.dataset, run.weights, run.storage.root)
    costs = measure(spec, LoadedInputs(inputs, torch.device("cuda" if gpu else "cpu")), run.storage)
    kind = compute_kind("cuda" if gpu else "cpu", run_options.cpus_per_trial)
    stages = StageStore(run.storage if store is None else shared_storage(store))
    expected = expect(spec, trials, costs, _sampler(spec), stages.has, kind, started)
    cores = run_options.cpus_per_trial
    device = "GPU" if gpu else "CPU core" if cores == 1 else f"trial on {cores} CPU cores"
    say(
        render_plan(
            spec,
            trials,
            expected,
            costs,
            concurrent=concurrent,
            keep_gb=run_options.keep_gb,
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
    return target_trials(journal), journal.started()


def _sampler(spec: RunSpec) -> BaseSampler:
    """The run's sampler. Where nothing is shared, no stage 1 is worth repeating, and TPE proposes."""
    if spec.sampler != "staged":
        return ReseededSampler(spec.seed, spec.sampler)
    stage1 = [name for name, parameter in spec.parameters.items() if parameter.stage == "stage1"]
    return StagedSampler(stage1 if spec.reuse else [], cost_ratio=spec.cost_ratio, seed=spec.seed, warn_unseen=False)


def target_of(asked: int | None, kept: int | None, budget: Callable[[], int]) -> int:
    """How many trials a run proposes in all.

    Args:
        asked: the number that the user gives now; None: not given.
        kept: the number that the run was to have before; None: it has not begun.
        budget: gives the budget's number.
    """
    if asked is not None:
        return asked
    return kept if kept is not None else budget()


def _note_device(journal: Journal, each: TrialResources, say: Callable[[str], None]) -> None:
    """Warns when a run is resumed with other devices or threads: the last bits of its values, or more, may differ."""
    now = f"{'a GPU' if each.gpus else 'the CPU'} with {each.cpus} {'thread' if each.cpus == 1 else 'threads'} a trial"
    before = journal.study.user_attrs.get(DEVICE, now)
    if before != now:
        say(f"earlier trials of this run were computed on {before}, new ones are on {now}: equal configs may differ")
    journal.study.set_user_attr(DEVICE, now)


def _conclude(
    spec: RunSpec, journal: Journal, store: FolderStore, stop: StopReason, console: Console, say: Callable[[str], None]
) -> ExitCode:
    summary = summarise(spec, journal, driven=False)
    best = summary.best
    write_report(spec, journal, store, driven=False)
    if best is not None:
        export_best(spec, store, summary)
        console.print(render_leaderboard(spec, summary))
        say(f"best: trial {best.number}, validation {spec.metric} {show_value(best.value, best.standard_error)}")
        say(f"exported to {store.path('best')}; check it with: {command('evaluate', store.path('best'))}")
    for found in summary.probe_audit:
        say(str(found))
    say(f"report: {store.path(REPORT)}")
    if stop.text:
        nothing = "; no trial has finished" if best is None and stop.code == ExitCode.DONE else ""
        say(f"{stop.text}{nothing}; resume with: {resume_command(store.root)}")
        return ExitCode.FAILED if nothing else stop.code
    if best is None:
        say(f"no trial finished: {_first_failure(summary)}")
        return ExitCode.FAILED
    say(f"more trials: {resume_command(store.root, '--trials', 2 * summary.target)}")
    return ExitCode.DONE


def _first_failure(summary: RunSummary) -> str:
    failed = summary.of_state("failed")
    return failed[0].note if failed else "all were pruned; start with --no-prune to see why"

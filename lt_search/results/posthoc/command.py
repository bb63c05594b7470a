"""The command `lt-search posthoc`: tunes post-hoc settings on a run's validation predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lt_search.config.hints import command, resume_command
from lt_search.console import printer
from lt_search.data.workers import progress_bar
from lt_search.errors import ExitCode, Problem, UserError
from lt_search.locks import held
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import evaluate
from lt_search.results.evaluate import data_of
from lt_search.results.export import Export, export_trial, file_hash, read_export
from lt_search.results.posthoc.package import MODELS, model_folder, predict_views, read_package, write_package
from lt_search.results.posthoc.pipeline import Predictions
from lt_search.results.posthoc.search import CannotHoldOutError, Evidence, Found, tune
from lt_search.results.report.collect import write_report
from lt_search.results.summary import summarise
from lt_search.storage.checkpoints import checkpoint_files
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.storage.run_folder import JOURNAL, POSTHOC, SETTINGS, open_run
from trainers.losses.softmax import log_prior
from trainers.networks.heads import LinearHead

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.data.table import Dataset
    from lt_search.results.summary import RunSummary


PREDICTIONS = "predictions"
LOCK = "posthoc.lock"


def tune_run(
    name: str,
    storage: FolderStore,
    console: Console,
    *,
    trials: int,
    models: int,
    views: int,
    dataset: str | None = None,
    data_root: str | None = None,
) -> ExitCode:
    """Tunes what needs no training on a run's validation predictions, and keeps what is better.

    Better is a gain above one standard error on patients that the settings were not chosen or learned on. Where nothing
    is adopted, earlier settings stay, as long as the models that they need are the run's and no newer trial alone is
    better.

    Args:
        name: of the run, or its path.
        storage: where runs are.
        console: for messages.
        trials: settings that are tried at most.
        models: best finished trials that may join an ensemble.
        views: views of an image that are predicted on.
        dataset: where the data is now, if it has moved.
        data_root: where its images are now.

    Raises:
        UserError: if there is no such run, it has no finished trial with weights, its data has changed, or the
            validation split has fewer than two patients; also if the run is being tuned, or cannot be written.
    """
    say = printer(console)
    run, spec = open_run(storage, name, "RUN")
    # Two at once would remove each other's files.
    with held(run.path(f"{POSTHOC}/{LOCK}"), partial(_tuned_by_another, run)):
        return _tune(run, spec, trials, models, views, lambda export: data_of(export, dataset, data_root), say)


def _tune(
    run: FolderStore,
    spec: RunSpec,
    trials: int,
    models: int,
    views: int,
    data_for: Callable[[Export], Dataset],
    say: Callable[[str], None],
) -> ExitCode:
    folder = FolderStore(run.path(POSTHOC))
    summary = summarise(spec, Journal.reader(run.path(JOURNAL)))
    with _writing(folder):
        exports = _best_models(run, spec, summary, models)
    data = data_for(exports[0])
    finished = {trial.number for trial in summary.leaderboard}
    exports, predicted = _predicted(folder, exports, finished, data, views, say)
    prior = log_prior(torch.tensor(spec.data.train_counts))
    evidence = Evidence(data.task, spec.metric, data.val.labels, data.val.groups, prior, predicted)
    started = time.monotonic()
    with progress_bar(shown=True) as progress:
        bar = progress.add_task("settings", total=trials)
        try:
            found = tune(evidence, trials, spec.seed, lambda tried: progress.update(bar, completed=tried))
        except CannotHoldOutError as error:
            fix = "search on data with more validation patients, so that some can be held out"
            raise UserError(Problem(run.root.name, str(error), fix)) from error
    rate = found.tried / max(1e-9, time.monotonic() - started) * 60
    say(f"{found.tried} settings tried, {rate:.0f} a minute")
    _report(spec.metric, found, say)
    with _writing(folder):
        if found.adopted:
            _keep(folder, spec, summary, exports, found, data)
            outcome = f"kept in {folder.root}; score it: {command('evaluate', folder.root)}"
        else:
            outcome = f"nothing is adopted: {run.path('best')} stays the model to use"
            if _keep_earlier(folder, finished, found.own):
                outcome = f"nothing is adopted; {folder.root} stays as it was tuned before"
        write_report(spec, Journal.reader(run.path(JOURNAL)), run)
    say(outcome)
    return ExitCode.DONE


def _tuned_by_another(run: FolderStore, holder: str) -> Problem:
    return Problem(run.root.name, f"is being tuned by {holder}", "wait for it, or stop it")


@contextmanager
def _writing(folder: FolderStore) -> Iterator[None]:
    """Turns a failure to write a folder into a user's error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        what = f"cannot be written ({reason})"
        raise UserError(Problem(str(folder.root), what, "tune where the run can be written")) from error


def _best_models(run: FolderStore, spec: RunSpec, summary: RunSummary, count: int) -> list[Export]:
    """The best finished trials whose weights are kept, exported, best first."""
    there = [trial for trial in summary.leaderboard if checkpoint_files(run, trial.number)][:count]
    if not there:
        what = "has no finished trial whose weights are kept"
        raise UserError(Problem(run.root.name, what, f"resume it: {resume_command(run.root)}"))
    folders = [f"{POSTHOC}/{model_folder(trial.number)}" for trial in there]
    return [
        read_export(export_trial(spec, run, summary, trial, folder))
        for trial, folder in zip(there, folders, strict=True)
    ]


def _predicted(
    folder: FolderStore,
    exports: Sequence[Export],
    finished: Collection[int],
    data: Dataset,
    views: int,
    say: Callable[[str], None],
) -> tuple[list[Export], list[Predictions]]:
    """The models whose validation predictions are finite, with these.

    Files of models that are no longer the run's are removed; those of finished trials that are not asked for stay.
    """
    good: list[Export] = []
    found: list[Predictions] = []
    for export in exports:
        predictions = _stored(folder, export, data, views)
        finite = bool(predictions.own.isfinite().all()) and bool(predictions.views.isfinite().all())
        say(f"trial {export.trial}: validation predictions{'' if finite else ' are not finite: left out'}")
        if finite:
            good.append(export)
            found.append(predictions)
    for old in _files(folder):
        if _trial_of(old) not in finished:
            folder.remove(old)
    if not good:
        raise UserError(Problem(folder.root.parent.name, "no model predicts finite values", "search again"))
    return good, found


def _keep(
    folder: FolderStore, spec: RunSpec, summary: RunSummary, exports: Sequence[Export], found: Found, data: Dataset
) -> None:
    """Writes the settings, and removes the models that they do not need."""
    groups = class_groups(spec.data.train_counts)
    evaluation = evaluate(data.task, data.val.labels, found.logits.numpy(), groups)
    write_package(
        folder,
        [export.trial for export in exports],
        found.settings,
        found.learned,
        evaluation.scalars,
        summary=_summary(spec.metric, found),
        best_trial=summary.leaderboard[0].number,
        tried=found.tried,
        own=found.own,
        cross_fitted=found.crossed,
        gain={"search": found.gain.difference, "interval": list(found.gain.interval)},
        macro_f1={"own": found.macro_f1[0], "cross_fitted": found.macro_f1[1]},
    )
    used = found.learned.members.any(1).tolist()
    _forget_models(folder, [export.trial for export, its in zip(exports, used, strict=True) if its])


def _keep_earlier(folder: FolderStore, finished: Collection[int], own: float) -> bool:
    """Keeps the settings that were adopted before, or removes them.

    They stay if all models they need are the run's, unless the best trial's own predictions are better now; it may have
    come since.
    """
    try:
        package = read_package(folder.root) if folder.exists(SETTINGS) else None
    except UserError:  # damaged, or a trial has other weights now
        package = None
    numbers = [model.trial for model in package.models] if package else []
    if package is None or package.crossed < own or any(number not in finished for number in numbers):
        folder.remove(SETTINGS)
        folder.remove(MODELS)
        return False
    _forget_models(folder, numbers)
    return True


def _forget_models(folder: FolderStore, needed: Sequence[int]) -> None:
    for unused in sorted(set(folder.list(MODELS, "[0-9]*")) - {model_folder(number) for number in needed}):
        folder.remove(unused)


def _summary(metric: str, found: Found) -> str:
    (f1, then), change = found.macro_f1, found.crossed - found.own
    return (
        f"{found.settings}: {metric} {found.own:.4f} to {found.crossed:.4f} ({change:+.4f}), macro F1 {f1:.4f} to "
        f"{then:.4f}, on patients that these settings were not chosen or learned on (the trials were)"
    )


def _report(metric: str, found: Found, say: Callable[[str], None]) -> None:
    low, high = found.gain.interval
    gain = f"{found.gain.difference:+.4f}, standard error {found.gain.standard_error:.4f}"
    say(f"best settings of all: {found.best}")
    say(f"gain in {metric} where they were not chosen: {gain}, 95 % interval {low:+.4f} to {high:+.4f}")
    if found.adopted:
        say(f"adopted: {_summary(metric, found)}")


def _files(folder: FolderStore, model: str = "[0-9]*") -> list[str]:
    """Files of predictions, of one model or all: `TRIAL-HASH-VIEWS`; by name."""
    return folder.list(PREDICTIONS, f"{model}-*.safetensors")


def _trial_of(file: str) -> int:
    return int(Path(file).name.split("-")[0])


def _views_of(file: str) -> int:
    return int(Path(file).stem.split("-")[-1])


def _stored(folder: FolderStore, export: Export, data: Dataset, views: int) -> Predictions:
    """The model's validation predictions, computed once: a file with more views serves as well.

    Files of other weights of the trial, and of fewer views than are computed now, are removed.
    """
    trial, model = f"{export.trial:04d}", file_hash(export.model_file)[:16]
    files = _files(folder, f"{trial}-{model}")
    for wide in (file for file in files if _views_of(file) >= views):
        kept = _read(folder.path(wide))
        if kept is not None:
            return replace(kept, views=kept.views[:views])
    fresh = predict_views(export, data, data.val, views)
    tensors = {"own": fresh.own, "views": fresh.views}
    if fresh.head is not None:
        tensors |= {"norms": fresh.head.norms, "biases": fresh.head.biases}
    name = f"{PREDICTIONS}/{trial}-{model}-{views}.safetensors"
    with _writing(folder):
        folder.write_with(name, lambda path: save_file(tensors, str(path)))
        for old in set(_files(folder, trial)) - {name}:
            folder.remove(old)
    return fresh


def _read(path: Path) -> Predictions | None:
    """Kept predictions; None where the file is damaged, and they are computed again."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        head = LinearHead(tensors["norms"], tensors["biases"]) if "norms" in tensors else None
        return Predictions(tensors["own"], tensors["views"], head)
    except (SafetensorError, KeyError, OSError):
        return None

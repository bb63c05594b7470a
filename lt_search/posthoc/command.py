"""`lt-search posthoc`: from a finished search to tuned settings in the run's `posthoc/`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lt_search.checkpoints import checkpoint_files
from lt_search.class_groups import class_groups
from lt_search.data.workers import progress_bar
from lt_search.errors import Problem, UserError
from lt_search.evaluation import data_of
from lt_search.exit_codes import ExitCode
from lt_search.export import Export, export_trial, file_hash, read_export
from lt_search.journal import Journal
from lt_search.metrics import evaluate
from lt_search.posthoc.package import MODELS, model_folder, predict_views, write_package
from lt_search.posthoc.pipeline import Predictions
from lt_search.posthoc.search import CannotHoldOutError, Evidence, Found, tune
from lt_search.reporting import write_report
from lt_search.run_folder import JOURNAL, POSTHOC, SETTINGS, open_run
from lt_search.store import FolderStore
from lt_search.summary import summarise
from trainers.heads import LinearHead
from trainers.softmax_losses import log_prior

if TYPE_CHECKING:
    from lt_search.data.table import Dataset
    from lt_search.spec import RunSpec


PREDICTIONS = "predictions"


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
    """Tunes what needs no training on a run's validation predictions, and keeps it where its gain is real.

    Args:
        name: of the run, or its path.
        storage: where runs are.
        console: where the person looks.
        trials: settings that are tried at most.
        models: best finished trials that may join an ensemble.
        views: views of an image that are predicted on.
        dataset: where the data is now, if it has moved.
        data_root: where its images are now.

    Raises:
        UserError: if there is no such run, it has no finished trial with weights, its data has changed, or the
            validation split has fewer than two patients.
    """
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    run, spec = open_run(storage, name, "RUN")
    folder = FolderStore(run.path(POSTHOC))
    exports = _best_models(run, spec, models)
    data = data_of(exports[0], dataset, data_root)
    exports, predicted = _predicted(folder, exports, data, views, say)
    prior = log_prior(torch.tensor(spec.data.train_counts))
    evidence = Evidence(data.task, spec.metric, data.val.labels, data.val.groups, prior, predicted)
    started = time.monotonic()
    with progress_bar(shown=True) as progress:
        bar = progress.add_task("settings", total=trials)
        try:
            found = tune(evidence, trials, spec.seed, lambda tried: progress.update(bar, completed=tried))
        except CannotHoldOutError as error:
            fix = "nothing tells a gain from luck there: search on data with more validation patients"
            raise UserError(Problem(run.root.name, str(error), fix)) from error
    rate = found.tried / max(1e-9, time.monotonic() - started) * 60
    say(f"{found.tried} settings tried, {rate:.0f} a minute")
    _report(spec.metric, found, say)
    if not found.adopted:
        folder.remove(SETTINGS)
        folder.remove(MODELS)
        write_report(spec, Journal.reader(run.path(JOURNAL)), run)
        say(f"nothing is adopted: {run.path('best')} stays the model to use")
        return ExitCode.DONE
    _keep(folder, spec, exports, found, data)
    write_report(spec, Journal.reader(run.path(JOURNAL)), run)
    say(f"kept in {folder.root}; score it: lt-search evaluate {folder.root}")
    return ExitCode.DONE


def _best_models(run: FolderStore, spec: RunSpec, count: int) -> list[Export]:
    """The best finished trials whose weights are there, exported, best first."""
    summary = summarise(spec, Journal.reader(run.path(JOURNAL)))
    there = [trial for trial in summary.leaderboard if checkpoint_files(run, trial.number)][:count]
    if not there:
        what = "has no finished trial whose weights are kept"
        raise UserError(Problem(run.root.name, what, f"go on with the run: --resume {run.root.name}"))
    folders = [f"{POSTHOC}/{model_folder(trial.number)}" for trial in there]
    return [
        read_export(export_trial(spec, run, summary, trial, folder))
        for trial, folder in zip(there, folders, strict=True)
    ]


def _predicted(
    folder: FolderStore, exports: Sequence[Export], data: Dataset, views: int, say: Callable[[str], None]
) -> tuple[list[Export], list[Predictions]]:
    """The models whose validation predictions are finite, with these; files of earlier predictions are removed."""
    good: list[Export] = []
    found: list[Predictions] = []
    names = set()
    for export in exports:
        name, predictions = _stored(folder, export, data, views)
        names.add(name)
        finite = bool(predictions.own.isfinite().all()) and bool(predictions.views.isfinite().all())
        say(f"trial {export.trial}: validation predictions{'' if finite else ' are not finite: left out'}")
        if finite:
            good.append(export)
            found.append(predictions)
    for old in sorted(set(folder.list(PREDICTIONS)) - names):
        folder.remove(old)
    if not good:
        raise UserError(Problem(folder.root.parent.name, "no model predicts finite values", "search again"))
    return good, found


def _keep(folder: FolderStore, spec: RunSpec, exports: Sequence[Export], found: Found, data: Dataset) -> None:
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
        tried=found.tried,
        own=found.own,
        cross_fitted=found.crossed,
        gain={"search": found.gain.difference, "interval": list(found.gain.interval)},
        macro_f1={"own": found.macro_f1[0], "cross_fitted": found.macro_f1[1]},
    )
    used = found.learned.members.any(1).tolist()
    needed = {model_folder(export.trial) for export, its in zip(exports, used, strict=True) if its}
    for unused in sorted(set(folder.list(MODELS)) - needed):
        folder.remove(unused)


def _summary(metric: str, found: Found) -> str:
    (f1, then), change = found.macro_f1, found.crossed - found.own
    return (
        f"{found.settings}: {metric} {found.own:.4f} to {found.crossed:.4f} ({change:+.4f}), "
        f"macro F1 {f1:.4f} to {then:.4f}, on patients that nothing was chosen or learned on"
    )


def _report(metric: str, found: Found, say: partial[None]) -> None:
    low, high = found.gain.interval
    gain = f"{found.gain.difference:+.4f}, standard error {found.gain.standard_error:.4f}"
    say(f"best settings of all: {found.best}")
    say(f"gain in {metric} where they were not chosen: {gain}, 95 % interval {low:+.4f} to {high:+.4f}")
    say(f"adopted: {_summary(metric, found)}")


def _stored(folder: FolderStore, export: Export, data: Dataset, views: int) -> tuple[str, Predictions]:
    """The model's validation predictions, computed once, and the file in which they are kept."""
    model = file_hash(export.model_file)
    name = f"{PREDICTIONS}/{export.trial:04d}-{model[:16]}-{views}.safetensors"
    kept = _read(folder.path(name)) if folder.exists(name) else None
    if kept is not None:
        return name, kept
    fresh = predict_views(export, data, data.val, views)
    tensors = {"own": fresh.own, "views": fresh.views}
    if fresh.head is not None:
        tensors |= {"norms": fresh.head.norms, "biases": fresh.head.biases}
    folder.write_with(name, lambda path: save_file(tensors, str(path)))
    return name, fresh


def _read(path: Path) -> Predictions | None:
    """Kept predictions; None where the file is damaged, and they are computed again."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        head = LinearHead(tensors["norms"], tensors["biases"]) if "norms" in tensors else None
        return Predictions(tensors["own"], tensors["views"], head)
    except (SafetensorError, KeyError, OSError):
        return None

"""`lt-search evaluate`: scores of an exported model on a split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lt_search.console import printer
from lt_search.data.registry import load_dataset
from lt_search.errors import ExitCode, Problem, UserError
from lt_search.metrics.bootstrap import Bootstrap
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import Evaluation, evaluate
from lt_search.results.export import GPU_TOLERANCE, Export, read_export
from lt_search.results.posthoc.package import read_package
from lt_search.results.predict import predict
from lt_search.results.report.collect import tuned_before, write_report
from lt_search.results.summary import summarise
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, NoTrialsYetError
from lt_search.storage.run_folder import JOURNAL, LOOKS, SETTINGS, SPEC, open_run
from lt_search.storage.strict_json import dumps

if TYPE_CHECKING:
    from lt_search.data.table import Dataset


def evaluate_export(
    folder: Path, split: str, console: Console, *, dataset: str | None = None, data_root: str | None = None
) -> ExitCode:
    """Scores an exported model and prints the scores.

    On `val` they must equal the reported ones, exactly on CPU; a difference is printed and gives exit code 1. An
    evaluation on `test` is recorded in the run.

    Args:
        folder: a run's `best/` or `posthoc/`.
        split: `val` or `test`.
        console: for output.
        dataset: where the data is now, if it has moved.
        data_root: where its images are now.

    Raises:
        UserError: if the export cannot be read, or the data is not that of the run.
    """
    say = printer(console)
    package = read_package(folder) if (folder / SETTINGS).is_file() else None
    export = read_export(folder) if package is None else package.export
    model = f"trial {export.trial}" if package is None else str(package)
    data = data_of(export, dataset, data_root)
    part = data.val if split == "val" else data.test
    logits = predict(export, data, part) if package is None else package.predict(data, part)
    evaluation = evaluate(data.task, part.labels, logits.numpy(), class_groups(export.spec.data.train_counts))
    metric = export.spec.metric
    ends = Bootstrap(metric, data.task, part.labels, part.groups).interval(logits.numpy())
    if split == "test":
        say(_record_evaluation(export, model, evaluation, (ends.low, ends.high)))  # before anything is shown
    console.print(_table(model, evaluation, split))
    if package is not None:
        for sentence in _tuned_before(export):
            say(sentence)
    value = f"{split} {metric} {evaluation.scalars[metric]:.4f}"
    if package is not None and split == "val":
        say(f"{value}, on the images that settings were learned on; {package.crossed:.4f} on held-out ones")
    else:
        patients = len(set(part.groups))
        say(f"{value}, 95 % interval {ends.low:.4f} to {ends.high:.4f} (bootstrap over {patients} patients or groups)")
    return ExitCode.DONE if split == "test" else _compare(export, evaluation, say)


def data_of(export: Export, dataset: str | None = None, data_root: str | None = None) -> Dataset:
    """The data that a model was tuned on.

    Raises:
        UserError: if it cannot be read, or has changed.
    """
    options = export.spec.options
    root = data_root or options["data_root"]
    name = dataset or options["dataset"] or export.spec.data.name
    data = load_dataset(name, Path(root) if root else None, options["split_seed"])
    facts = export.spec.data
    if (data.fingerprint, data.split_hash) != (facts.fingerprint, facts.split_hash):
        raise UserError(
            Problem(
                "--dataset",
                f"{data.name} is not the data of this model, or has changed since",
                f"name the data it was tuned on ({facts.name}) with --dataset and --data-root",
            )
        )
    return data


def _tuned_before(export: Export) -> list[str]:
    run = FolderStore(export.folder.absolute().parent)
    if not run.exists(SPEC):
        return []
    try:
        _, spec = open_run(run, str(run.root))
        return tuned_before(run, summarise(spec, Journal.reader(run.path(JOURNAL))))
    except (UserError, OSError):  # the scores do not depend on the rest of the run
        return []


def _table(model: str, evaluation: Evaluation, split: str) -> Table:
    table = Table(title=f"{model[:1].upper()}{model[1:]} on {split}", title_justify="left")
    for column in ("metric", "all", "head", "medium", "tail"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    scalars = evaluation.scalars
    for name in [name for name in scalars if not name.endswith(("_head", "_medium", "_tail"))]:
        groups = [scalars.get(f"{name}_{group}", math.nan) for group in ("head", "medium", "tail")]
        table.add_row(name, f"{scalars[name]:.4f}", *("-" if math.isnan(v) else f"{v:.4f}" for v in groups))
    return table


def _compare(export: Export, evaluation: Evaluation, say: Callable[[str], None]) -> ExitCode:
    differing = {
        name: (export.reported[name], value)
        for name, value in evaluation.scalars.items()
        if name in export.reported and not _same(export.reported[name], value)
    }
    if not differing:
        say("these are exactly the numbers that the search reported")
        return ExitCode.DONE
    for name, (was, now) in differing.items():
        say(f"{name}: the search reported {was!r}, here it is {now!r}")
    if export.device != "cpu" and all(abs(was - now) < GPU_TOLERANCE for was, now in differing.values()):
        say(f"the same within {GPU_TOLERANCE}: the search computed them on {export.device}, in bfloat16")
        return ExitCode.DONE
    say("the numbers differ: other hardware, versions or weights than in the search")
    return ExitCode.FAILED


def _same(was: float, now: float) -> bool:
    return was == now or (math.isnan(was) and math.isnan(now))


def _record_evaluation(export: Export, model: str, evaluation: Evaluation, ends: tuple[float, float]) -> str:
    """Records an evaluation on the test split in its run; returns a sentence that says where."""
    run = FolderStore(export.folder.absolute().parent)
    if not run.exists(SPEC):
        return "this export is not in its run's folder, so this evaluation on the test split is not recorded"
    metric = export.spec.metric
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "trial": export.trial,
        "model": model,
        metric: evaluation.scalars[metric],
        "interval": list(ends),
        **evaluation.to_json(),
    }
    try:
        run.append_line(LOOKS, dumps(record))
    except OSError as error:
        what = f"cannot be written ({error.strerror}), so the evaluation on the test split could not be recorded"
        raise UserError(Problem(str(run.path(LOOKS)), what, "evaluate where the run can be written")) from error
    count = len(run.read(LOOKS).splitlines())
    warning = "; choosing by what was seen there makes it a validation split" if count > 1 else ""
    said = f"recorded in {run.path(LOOKS)}: evaluation {count} on this run's test split{warning}"
    try:
        write_report(open_run(run, str(run.root))[1], Journal.reader(run.path(JOURNAL)), run)  # it counts them
    except NoTrialsYetError:
        return said
    except (UserError, OSError) as error:  # the scores do not depend on the rest of the run
        return f"{said}\nthe run's report could not be written again: {error}"
    return said

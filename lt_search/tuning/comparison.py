"""Comparison of methods: every row of a space is searched by itself with the same number of trials, then ranked.

A comparison is a folder of runs, one per row. Rows never prune each other: each has its own journal and rungs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table

from lt_search.config.hints import command, resume_command
from lt_search.config.names import numbered_stem
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.resolver import kept_options, resolve_spec
from lt_search.config.spec import DIGEST, check_digest, spec_digest
from lt_search.config.validation import read_yaml
from lt_search.console import printer
from lt_search.data.registry import dataset_of
from lt_search.data.table import Dataset
from lt_search.errors import ExitCode, Problem, Problems, UserError
from lt_search.metrics.bootstrap import Bootstrap
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import evaluate
from lt_search.results.export import FOLDER, read_export
from lt_search.results.predict import predict
from lt_search.results.summary import summarise
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, sole_driver
from lt_search.storage.run_folder import COMPARISON, JOURNAL, SPEC, claim, claim_numbered, find_folder, open_run
from lt_search.training.tensor_files import resolve_resources
from lt_search.tuning.cluster import ray_cluster
from lt_search.tuning.prepare import SearchInputs, gpu_available, load_inputs
from lt_search.tuning.progress import show_value
from lt_search.tuning.resume import check_same_options, moved_data
from lt_search.tuning.search import search

RANKING = "ranking.csv"


@dataclass(frozen=True)
class RankedRow:
    """The best trial of one row, scored on the validation split."""

    row: str
    finished: int
    """Trials that were trained to their end."""
    value: float
    standard_error: float | None
    """Bootstrap standard error of `value` over patients or groups."""
    behind: float
    """Difference to the best row; 0 for the best."""
    low: float
    high: float
    """95 % interval of `behind`, paired over the same patients or groups."""
    scalars: Mapping[str, float]
    """All validation metrics."""


def comparison_folder(storage: Path, name: str) -> FolderStore:
    """The folder of a comparison, by its name or its path; it may not exist."""
    return find_folder(FolderStore(storage), name, COMPARISON)


def search_or_compare(
    options: SpecOptions, run_options: RunOptions, console: Console, problems: Problems | None = None
) -> ExitCode:
    """Starts or resumes what the options ask for: a run, or a comparison where a space has rows and none is chosen.

    `problems` are mistakes in the options of a new search, which are then reported together with all others.

    Raises:
        UserError: with every mistake found; nothing was written then.
    """
    if run_options.resume is not None:
        compared = comparison_folder(Path(run_options.storage), run_options.resume).exists(COMPARISON)
        return (compare if compared else search)(options, run_options, console)
    inputs = load_inputs(options, run_options, problems)
    compared = options.row is None and bool(inputs.space.rows)
    return (compare if compared else search)(options, run_options, console, inputs)


def compare(
    options: SpecOptions, run_options: RunOptions, console: Console, inputs: SearchInputs | None = None
) -> ExitCode:
    """Searches every row in turn, or resumes that, then ranks them.

    Args:
        options: what is compared; the space names the rows.
        run_options: options of the execution; `trials` are per row, `time_budget` is for all.
        console: for messages and the status.
        inputs: of a new comparison, where they were loaded before.

    Returns:
        The exit code.

    Raises:
        UserError: with every mistake found in any row; nothing was written then.
    """
    say = printer(console)
    with ExitStack() as stack:
        if run_options.address is not None:
            stack.enter_context(ray_cluster(run_options.address))  # the budget depends on the cluster's devices
        if run_options.resume is not None:
            folder, rows = _open(options, run_options, say)
        else:
            inputs = inputs or load_inputs(options, run_options)
            rows = _checked_rows(options, run_options, inputs, say)
            if run_options.plan:
                say(f"the plan of each is that of {next(iter(rows))}, but for its own parameters:")
                return search(next(iter(rows.values())), run_options, console, inputs)
            folder = _create(options, run_options, list(rows), inputs.storage)
        stack.enter_context(sole_driver(folder.root))
        if not run_options.plan:
            stack.enter_context(ray_cluster(run_options.address))
        code = _search_rows(folder, rows, options, run_options, console, inputs)
    if code != ExitCode.INTERRUPTED and not run_options.plan:
        show_ranking(folder, console, options)
    return code


def _search_rows(
    folder: FolderStore,
    rows: Mapping[str, SpecOptions],
    options: SpecOptions,
    run_options: RunOptions,
    console: Console,
    inputs: SearchInputs | None,
) -> ExitCode:
    """Searches the rows in turn; the worst exit code of them."""
    say = printer(console)
    deadline = None if run_options.time_budget is None else time.monotonic() + run_options.time_budget
    worst = ExitCode.DONE
    for number, (name, row_options) in enumerate(rows.items(), start=1):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            say(f"the time budget is used up; resume with: {resume_command(folder.root)}")
            break
        say(f"\nrow {number} of {len(rows)}: {name}")
        row_how = replace(run_options, storage=str(folder.root), time_budget=left, name=None, resume=None)
        if folder.exists(f"{name}/{SPEC}"):
            code = search(options, replace(row_how, resume=name), console)
        else:
            row_how = replace(row_how, name=name)
            inputs = replace(inputs, storage=folder) if inputs else load_inputs(row_options, row_how)
            code = search(row_options, row_how, console, inputs)
        if code == ExitCode.INTERRUPTED:
            say(f"resume the comparison with: {resume_command(folder.root)}")
            return code
        worst = max(worst, code)
    return worst


def show_ranking(folder: FolderStore, console: Console, moved: SpecOptions | None = None) -> None:
    """Ranks the rows of a comparison by the validation value of their best trials, prints and keeps that ranking.

    `moved` may say where the data is now.
    """
    rows = _read(folder)["rows"]
    ranked = rank(folder, rows, moved)
    metric = _metric(folder, rows)
    table = Table(title=f"Rows by validation {metric}", title_justify="left", box=None, pad_edge=False)
    for column in ("row", f"{metric} ± s.e.", "difference to the best [95 % CI]", "head", "medium", "tail"):
        if column == "row":
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in ranked:
        behind = "" if row is ranked[0] else f"{row.behind:.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        groups = [row.scalars.get(f"{metric}_{group}") for group in ("head", "medium", "tail")]
        cells = ["-" if value is None else f"{value:.3f}" for value in groups]
        table.add_row(row.row, show_value(row.value, row.standard_error), behind, *cells)
    console.print(table)
    missing = sorted(set(rows) - {row.row for row in ranked})
    if missing:
        console.print(f"no finished trial yet: {', '.join(missing)}", highlight=False, markup=False)
    records = [{**asdict(row), **row.scalars, "scalars": None} for row in ranked]
    folder.write(RANKING, pd.DataFrame(records).drop(columns="scalars", errors="ignore").to_csv(index=False))
    say = printer(console)
    say("The best trials were chosen on this split, so their values are optimistic; the test split was not used.")
    say(f"the table is in {folder.path(RANKING)}")
    scored = command("evaluate", folder.path(f"ROW/{FOLDER}"), "--split", "test")
    say(f"score the best model of a row on the test split with: {scored}")


def rank(folder: FolderStore, rows: list[str], moved: SpecOptions | None = None) -> list[RankedRow]:
    """The rows that have a finished trial, best first; `moved` may say where the data is now."""
    logits: dict[str, npt.NDArray[np.float32]] = {}
    summaries = {}
    data: Dataset | None = None
    for name in rows:
        if not folder.exists(f"{name}/{FOLDER}"):
            continue
        export = read_export(folder.path(f"{name}/{FOLDER}"))
        if data is None:
            data = dataset_of({**export.spec.options, **moved_data(moved)}, export.spec.data.name)
        logits[name] = predict(export, data, data.val).numpy()
        store, spec = open_run(folder, name)
        summaries[name] = summarise(spec, Journal.reader(store.path(JOURNAL)))
    if data is None:
        return []
    metric, groups = _metric(folder, rows), class_groups(data.train_counts().tolist())
    scores = {name: evaluate(data.task, data.val.labels, found, groups).scalars for name, found in logits.items()}
    order = sorted(logits, key=lambda name: -scores[name][metric])
    bootstrap = Bootstrap(metric, data.task, data.val.labels, data.val.groups)
    ranked = []
    for name in order:
        gap = bootstrap.paired_difference(logits[order[0]], logits[name])
        best = summaries[name].best
        ranked.append(
            RankedRow(
                row=name,
                finished=len(summaries[name].of_state("finished")),
                value=scores[name][metric],
                standard_error=best.standard_error if best else None,
                behind=gap.difference,
                low=gap.interval.low,
                high=gap.interval.high,
                scalars=scores[name],
            )
        )
    return ranked


def _checked_rows(
    options: SpecOptions, run_options: RunOptions, inputs: SearchInputs, say: Callable[[str], None]
) -> dict[str, SpecOptions]:
    """The options of every row; raises `UserError` for all mistakes in any of them, before the first one trains."""
    rows = {name: replace(options, row=name) for name in inputs.space.rows}
    gpu, problems = gpu_available(run_options), Problems()
    for row in rows.values():
        problems.collect(partial(_resolve, row, inputs, gpu))
    if run_options.name is not None and inputs.storage.exists(run_options.name):
        path = inputs.storage.path(run_options.name)
        problems.add("--name", f"{path} exists", f"resume it with: {resume_command(path)}; or give another name")
    problems.raise_if_any()
    say(f"comparing {len(rows)} rows: {', '.join(rows)}")
    return rows


def _create(options: SpecOptions, run_options: RunOptions, rows: list[str], storage: FolderStore) -> FolderStore:
    """Makes the folder of a new comparison."""
    folder = (
        claim(storage, run_options.name) if run_options.name else claim_numbered(storage, numbered_stem(options.space))
    )
    if folder is None:
        what = f"{storage.path(str(run_options.name))} was made by another process"
        raise UserError(Problem("--name", what, "give another name"))
    content = {"options": kept_options(options), "rows": rows}
    kept = {**content, DIGEST: spec_digest(content)}
    folder.write(COMPARISON, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    return folder


def _open(
    options: SpecOptions, run_options: RunOptions, say: Callable[[str], None]
) -> tuple[FolderStore, dict[str, SpecOptions]]:
    """An existing comparison, with the options of its rows."""
    folder = comparison_folder(Path(run_options.storage), str(run_options.resume))
    content = _read(folder)
    if options.row is not None:
        fix = f"leave it out, or resume that run with: {resume_command(folder.path(options.row))}"
        raise UserError(Problem("--row", "is for a new search, and --resume resumes all rows", fix))
    check_same_options(content["options"], options)
    kept = SpecOptions(**content["options"])
    say(f"resuming {folder.root.name}: {', '.join(content['rows'])}")
    return folder, {name: replace(kept, **moved_data(options), row=name) for name in content["rows"]}


def _resolve(row: SpecOptions, inputs: SearchInputs, gpu: bool) -> None:
    """Raises `UserError` for all mistakes in a row, its weights included."""
    resolve_resources(resolve_spec(row, inputs.dataset, gpu=gpu, space=inputs.space), lambda text: None)


def _read(folder: FolderStore) -> dict[str, Any]:
    path = str(folder.path(COMPARISON))
    content = read_yaml(folder.read(COMPARISON), path)
    try:
        found: dict[str, Any] = {"options": dict(content["options"]), "rows": [str(row) for row in content["rows"]]}
        SpecOptions(**found["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(Problem(path, "is damaged", "restore it from a copy, or start a new comparison")) from error
    check_digest(found, content, path)
    return found


def _metric(folder: FolderStore, rows: list[str]) -> str:
    for name in rows:
        if folder.exists(f"{name}/{SPEC}"):
            return open_run(folder, name)[1].metric
    raise UserError(Problem(str(folder.root), "has no run yet", f"resume it with: {resume_command(folder.root)}"))

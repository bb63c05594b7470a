"""Several methods side by side: every row of a space searched by itself, with equal trials, and ranked.

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

from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.space import load_space
from lt_search.data.registry import load_dataset
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
from lt_search.tuning.progress import show_value
from lt_search.tuning.search import (
    check_places,
    check_same_options,
    gpu_available,
    resume_command,
    search,
    where_the_data_is,
)

RANKING = "ranking.csv"


@dataclass(frozen=True)
class RankedRow:
    """The winner of one row, scored on the validation split."""

    row: str
    finished: int
    """Trials that were trained to their end."""
    value: float
    standard_error: float | None
    """Bootstrap standard error of `value` over patients or groups."""
    behind: float
    """How much the first row is better; 0 for the first."""
    low: float
    high: float
    """95 % interval of `behind`, paired over the same patients or groups."""
    scalars: Mapping[str, float]
    """All validation metrics."""


def comparison_folder(storage: str, name: str) -> FolderStore:
    """The folder of a comparison, by its name or its path; it may be none."""
    return find_folder(FolderStore(Path(storage)), name, COMPARISON)


def is_comparison(options: SpecOptions, how: RunOptions) -> bool:
    """Whether these options ask for a comparison: a space of rows with none chosen, or a comparison to go on with."""
    if how.resume is not None:
        return comparison_folder(how.storage, how.resume).exists(COMPARISON)
    try:
        return options.row is None and bool(load_space(options.space).rows)
    except UserError:
        return False  # a search says what is wrong


def compare(options: SpecOptions, how: RunOptions, console: Console) -> ExitCode:
    """Searches every row in turn, or goes on where that was left, then ranks them.

    Args:
        options: what is compared; the space names the rows.
        how: how each row's search is carried out; `trials` are per row, `time_budget` is for all.
        console: where the person looks.

    Returns:
        The exit code.

    Raises:
        UserError: with every mistake found in any row; nothing was written then.
    """
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    with ExitStack() as stack:
        if how.address is not None:
            stack.enter_context(ray_cluster(how.address))  # the budget asks what the cluster has
        folder, rows = _open(options, how, say) if how.resume else _start(options, how, say)
        if folder is None:
            return search(next(iter(rows.values())), how, console)
        stack.enter_context(sole_driver(folder.root))
        if not how.plan:
            stack.enter_context(ray_cluster(how.address))
        code = _search_rows(folder, rows, options, how, console)
    if code != ExitCode.INTERRUPTED and not how.plan:
        show_ranking(folder, console, options)
    return code


def _search_rows(
    folder: FolderStore, rows: Mapping[str, SpecOptions], options: SpecOptions, how: RunOptions, console: Console
) -> ExitCode:
    """Searches the rows in turn; the worst exit code of them."""
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    deadline = None if how.time_budget is None else time.monotonic() + how.time_budget
    worst = ExitCode.DONE
    for number, (name, row_options) in enumerate(rows.items(), start=1):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            say(f"the time budget is used up; go on with: {resume_command(folder)}")
            break
        say(f"\nrow {number} of {len(rows)}: {name}")
        known = folder.exists(f"{name}/{SPEC}")
        place = {"resume": name, "name": None} if known else {"resume": None, "name": name}
        row_how = replace(how, storage=str(folder.root), time_budget=left, **place)  # type: ignore[arg-type]
        code = search(options if known else row_options, row_how, console)
        if code == ExitCode.INTERRUPTED:
            say(f"the comparison goes on with: {resume_command(folder)}")
            return code
        worst = max(worst, code)
    return worst


def show_ranking(folder: FolderStore, console: Console, moved: SpecOptions | None = None) -> None:
    """Ranks the rows of a comparison by their winners' validation value, prints that and keeps it in `ranking.csv`.

    `moved` may say where the data is now.
    """
    rows = _read(folder)["rows"]
    ranked = rank(folder, rows, moved)
    metric = _metric(folder, rows)
    table = Table(title=f"Rows by validation {metric}", title_justify="left", box=None, pad_edge=False)
    for column in ("row", f"{metric} ± s.e.", "behind the first [95 %]", "head", "medium", "tail"):
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
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say("Winners were chosen on this split, so their values are a little too high; the test split is not looked at.")
    say(f"the table is in {folder.path(RANKING)}")
    say(f"a row's winner on the test split: lt-search evaluate {folder.root}/ROW/{FOLDER} --split test")


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
            data = _data_of({**export.spec.options, **where_the_data_is(moved)}, export.spec.data.name)
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


def _start(
    options: SpecOptions, how: RunOptions, say: Callable[[str], None]
) -> tuple[FolderStore | None, dict[str, SpecOptions]]:
    """Checks all rows, then makes the comparison's folder; None where only a plan was asked for."""
    storage, dataset = check_places(options, how)
    rows = {name: replace(options, row=name) for name in load_space(options.space).rows}
    gpu, problems = gpu_available(how), Problems()
    for row in rows.values():
        # A mistake in the last row is said before the first one trains; rows share most of theirs.
        problems.collect(partial(_resolve, row, dataset, gpu))
    if how.name is not None and storage.exists(how.name):
        fix = f"go on with it: --resume {how.name}, or give another name"
        problems.add("--name", f"{storage.path(how.name)} exists", fix)
    problems.raise_if_any()
    say(f"comparing {len(rows)} rows: {', '.join(rows)}")
    if how.plan:
        say(f"the plan of each is that of {next(iter(rows))}, but for its own parameters:")
        return None, rows
    folder = claim(storage, how.name) if how.name else claim_numbered(storage, Path(options.space).stem)
    if folder is None:
        raise UserError(Problem("--name", f"{storage.path(str(how.name))} was made by another process", "give another"))
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
    content = {"options": kept, "rows": list(rows)}
    folder.write(COMPARISON, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder, rows


def _open(
    options: SpecOptions, how: RunOptions, say: Callable[[str], None]
) -> tuple[FolderStore, dict[str, SpecOptions]]:
    """A comparison that was begun, with the options of its rows."""
    folder = comparison_folder(how.storage, str(how.resume))
    content = _read(folder)
    if options.row is not None:
        fix = f"leave it out, or go on with that run: --resume {folder.root}/{options.row}"
        raise UserError(Problem("--row", "goes with a new search, and --resume goes on with all rows", fix))
    check_same_options(content["options"], options)
    kept = {key: tuple(v) if isinstance(v, list) else v for key, v in content["options"].items()}
    say(f"going on with {folder.root.name}: {', '.join(content['rows'])}")
    return folder, {
        name: SpecOptions(**{**kept, **where_the_data_is(options), "row": name}) for name in content["rows"]
    }


def _resolve(row: SpecOptions, dataset: Dataset, gpu: bool) -> None:
    """Raises `UserError` for all that is wrong with a row, its weights included."""
    resolve_resources(resolve_spec(row, dataset, gpu=gpu), lambda text: None)


def _read(folder: FolderStore) -> dict[str, Any]:
    try:
        content = yaml.safe_load(folder.read(COMPARISON))
        SpecOptions(**content["options"])
        return {"options": dict(content["options"]), "rows": [str(row) for row in content["rows"]]}
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise UserError(Problem(str(folder.path(COMPARISON)), f"cannot be read: {error}")) from error


def _metric(folder: FolderStore, rows: list[str]) -> str:
    for name in rows:
        if folder.exists(f"{name}/{SPEC}"):
            return open_run(folder, name)[1].metric
    raise UserError(Problem(str(folder.root), "has no run yet", "go on with it: --resume"))


def _data_of(options: Mapping[str, Any], name: str) -> Dataset:
    root = options["data_root"]
    return load_dataset(options["dataset"] or name, Path(root) if root else None, options["split_seed"])

"""What the tables of methods share: their rows trained and searched over several seeds, and scored on the test split.

The default of a row is the first trial of its search, which has the first values of the space, searched alone, so that
no peer can stop it; the search then goes on to its other trials. Every trial of a seed trains with that seed, and rows
whose stage 1 is the same, such as methods on one cross-entropy model, share it as in any storage.
"""

from __future__ import annotations

import argparse
import atexit
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.shared import whole_search
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.data.registry import load_dataset
from lt_search.data.table import Dataset
from lt_search.data.workers import usable_cores
from lt_search.metrics.bootstrap import Bootstrap
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import evaluate
from lt_search.results.export import BEST, FOLDER, export_best, read_export
from lt_search.results.predict import predict
from lt_search.results.summary import summarise
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.storage.run_folder import JOURNAL, SPEC, open_run
from lt_search.tuning.cluster import ray_cluster

DEFAULT = "default"
"""Folder of a run with the export of its first trial."""

SEARCHES = 2
"""Searches at a time, each in a process of its own, with its share of the cores."""

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """A data set as the command line names it."""

    name: str
    dataset: str
    data_root: str | None = None
    image_size: int | None = None

    def load(self) -> Dataset:
        """The data set, read."""
        return load_dataset(self.dataset, Path(self.data_root) if self.data_root else None)

    def options(self, row: Row, seed: int) -> SpecOptions:
        """What `run_search.py` would be asked for."""
        return SpecOptions(
            row.space,
            self.dataset,
            self.data_root,
            image_size=self.image_size,
            budget="small",
            seed=seed,
            row=row.row,
        )


@dataclass(frozen=True)
class Row:
    """A method of a table."""

    name: str
    space: str
    row: str | None = None
    """Which of the space's rows, where it has any."""
    searched: bool = True
    """Whether it is also there after a search."""


def arguments(description: str, rows: Sequence[Row]) -> argparse.ArgumentParser:
    """The options that every table has."""
    names = [row.name for row in rows]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--trials", type=positive, default=8, help="of each search, the default included")
    parser.add_argument("--rows", nargs="+", default=names, choices=names, help=f"{names[0]} is always one of them")
    parser.add_argument("--storage", type=Path, help="folder that keeps the runs; an interrupted table goes on there")
    return parser


def positive(given: str) -> int:
    """A whole number from 1 on, as the command line gives it."""
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is not an integer from 1 on")
    return int(given)


def labels_folder(given: str) -> Path:
    """A folder with a `labels.csv`, as the command line gives it."""
    folder = Path(given).expanduser().absolute()
    if not (folder / "labels.csv").is_file():
        raise argparse.ArgumentTypeError(f"{folder} has no labels.csv")
    return folder


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows of these names, and the first one, to which differences are taken."""
    return [row for row in rows if row is rows[0] or row.name in names]


@contextmanager
def storage_folder(given: Path | None) -> Iterator[Path]:
    """The folder that was given, made if need be; or one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def run_rows(data: Data, rows: Iterable[Row], seeds: int, trials: int, storage: Path) -> dict[str, list[Logits]]:
    """Test logits (N, C) of every row, default and tuned, by the row's name; one for each seed."""
    # Rows one after another: the first that has a stage 1 trains it, and the others find it in the storage.
    jobs = [(row, seed) for row in rows for seed in range(seeds)]
    run = partial(run_row, data, trials=trials, storage=storage)
    found: dict[str, list[Logits]] = {}
    searches, context = min(SEARCHES, usable_cores()), get_context("spawn")
    with ProcessPoolExecutor(searches, mp_context=context, initializer=start_ray) as pool:
        done = pool.map(run, *zip(*jobs, strict=True))
        for (row, seed), (logits, seconds) in zip(jobs, done, strict=True):
            print(f"{data.name}: {row.name}, seed {seed}: {seconds:.0f} s", flush=True)
            for name, of_seed in logits.items():
                found.setdefault(name, []).append(of_seed)
    return found


def start_ray() -> None:
    """Starts Ray for all searches of this process, until it ends."""
    stack = ExitStack()
    stack.enter_context(ray_cluster(None))
    atexit.register(stack.close)


_interrupted = False
"""Whether this process was told to stop; a pool may still hand it the next job."""


def run_row(data: Data, row: Row, seed: int, *, trials: int, storage: Path) -> tuple[dict[str, Logits], float]:
    """Trains a row's default and searches the row, or goes on where that was left.

    Returns:
        Test logits (N, C) as `name` and, of a row that is searched, `name tuned`; and the seconds that it took.

    Raises:
        KeyboardInterrupt: the search was interrupted.
        RuntimeError: no trial could be trained.
    """
    global _interrupted  # noqa: PLW0603 (the state of a pool's process)
    if _interrupted:
        raise KeyboardInterrupt
    started = time.monotonic()
    store = FolderStore(storage)
    name = f"{data.name.split(',')[0]}-{row.name}-seed{seed}" + (f"-{trials}trials" if row.searched else "")
    options = data.options(row, seed)
    try:
        if not store.exists(f"{name}/{DEFAULT}/{BEST}"):
            search_to(store, name, options, 1)
            run, spec = open_run(store, name)
            export_best(spec, run, summarise(spec, Journal.reader(run.path(JOURNAL))), DEFAULT)
        if row.searched:
            search_to(store, name, options, trials)
        dataset = data.load()
        exports = {row.name: DEFAULT} | ({f"{row.name} tuned": FOLDER} if row.searched else {})
        logits = {
            title: predict(read_export(store.path(f"{name}/{folder}")), dataset, dataset.test).numpy()
            for title, folder in exports.items()
        }
    except KeyboardInterrupt:
        _interrupted = True
        raise
    return logits, time.monotonic() - started


def search_to(store: FolderStore, name: str, options: SpecOptions, trials: int) -> None:
    """Searches until a run has so many trials; for the errors see `run_row`."""
    how = RunOptions(
        storage=str(store.root), name=name, trials=trials, max_concurrent=max(1, usable_cores() // SEARCHES)
    )
    if store.exists(f"{name}/{SPEC}"):
        how = replace(how, name=None, resume=name)
    whole_search(options, how)


def show(data: Data, found: Mapping[str, Sequence[Logits]], columns: Mapping[str, str]) -> None:
    """Prints the table of one data set.

    Args:
        data: the data set.
        found: test logits (N, C) of each seed, by row; the first row is the baseline.
        columns: metric by title, `_tail` and the like included; the first is compared with the baseline's.
    """
    dataset = data.load()
    test, counts = dataset.test, dataset.train_counts().tolist()
    groups = class_groups(counts)
    (title, metric), (baseline, first) = next(iter(columns.items())), next(iter(found.items()))
    sizes = ", ".join(f"{len(part)} {part.name}" for part in dataset.parts())
    positives = test.counts(len(dataset.classes))
    tail = ", ".join(f"{dataset.classes[index]} {counts[index]} / {positives[index]}" for index in groups.tail)
    print(f"\n{data.name}: {sizes}; {len(dataset.classes)} classes; {len(first)} seeds")
    print(f"images of the tail classes, train / test: {tail}")
    print(f"{'row':18}" + "".join(f"{name:>18}" for name in columns) + f"   {title} - {baseline} [95 %]")
    # The same resamples for all rows and seeds, so that scores can be averaged over seeds draw by draw.
    bootstrap = Bootstrap(metric, dataset.task, test.labels, test.groups)
    drawn = {row: np.mean([bootstrap.replicates(x, 1000) for x in logits], axis=0) for row, logits in found.items()}
    scores = {
        row: [evaluate(dataset.task, test.labels, x, groups).scalars for x in logits] for row, logits in found.items()
    }
    for row, seeds in scores.items():
        cells = "".join(f"{_spread([s[name] for s in seeds]):>18}" for name in columns.values())
        gap = float(np.mean([s[metric] for s in seeds]) - np.mean([s[metric] for s in scores[baseline]]))
        low, high = centred_interval(drawn[row] - drawn[baseline], gap)
        shown = "" if row == baseline else f"   {gap:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"{row:18}{cells}{shown}", flush=True)


def centred_interval(drawn: npt.NDArray[np.float64], value: float) -> tuple[float, float]:
    """95 % percentile interval of resampled values (B,), less their bias against the value on the images themselves.

    As `lt_search.metrics.bootstrap.Bootstrap.interval` does for one model.
    """
    low, high = np.percentile(drawn, [2.5, 97.5]) - (drawn.mean() - value)
    return float(low), float(high)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")

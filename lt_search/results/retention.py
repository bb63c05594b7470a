"""Retention of what ended trials leave behind: their checkpoints are trimmed, and `trials.csv` is written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lt_search.results.callbacks import SearchCallback
from lt_search.results.summary import summarise, trials_csv
from lt_search.storage.checkpoints import checkpoint_files, remove_checkpoints

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.results.summary import RunSummary
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal

TIDY_SECONDS = 2.0
"""Tidying takes longer the more trials a run has, so it is done at once for all that ended within this time."""


class Retention(SearchCallback):
    """Removes checkpoints that are no longer needed.

    Args:
        spec: the run.
        journal: the run's journal.
        store: the run's files.
        keep_gb: disk for the models of finished trials, in GB.
    """

    def __init__(self, spec: RunSpec, journal: Journal, store: FolderStore, keep_gb: float) -> None:
        self._spec = spec
        self._journal = journal
        self._store = store
        self._keep_gb = keep_gb
        self._done: set[int] = set()
        self._last = time.monotonic()

    def on_trial_end(self, number: int) -> None:
        """Tidies where the last time is long enough ago."""
        if time.monotonic() - self._last > TIDY_SECONDS:
            self.tidy()

    def on_search_end(self) -> None:
        """Tidies after the last trials."""
        self.tidy()

    def tidy(self) -> None:
        """Tidies up after all trials that have ended since, those of an earlier driver included."""
        summary = summarise(self._spec, self._journal)
        for trial in summary.trials:
            if trial.state in {"pruned", "failed"} and trial.number not in self._done:
                self._done.add(trial.number)
                remove_checkpoints(self._store, trial.number)
        trim_checkpoints(self._store, summary, self._keep_gb)
        self._store.write("trials.csv", trials_csv(summary.trials))
        self._last = time.monotonic()


def trim_checkpoints(store: FolderStore, summary: RunSummary, keep_gb: float) -> None:
    """Keeps the final checkpoints of the best finished trials, as many as fit; the best one always."""
    left = keep_gb * 1e9
    for rank, trial in enumerate(summary.leaderboard):
        left -= sum(store.path(name).stat().st_size for name in checkpoint_files(store, trial.number))
        if rank > 0 and left < 0:
            remove_checkpoints(store, trial.number)

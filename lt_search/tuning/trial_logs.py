"""Per-trial step logs as the driver keeps them: how far each trial has come, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lt_search.pruning.rungs import Rung
from lt_search.storage.records import StepReport, last_step, read_reports
from lt_search.storage.run_folder import trial_folder

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore


class TrialLogs:
    """The `metrics.jsonl` files of a run, with a cache of what the driver asks of them at every report.

    Args:
        store: the run's files.
    """

    def __init__(self, store: FolderStore) -> None:
        self._store = store
        self._last: dict[int, Rung] = {}
        self._seconds: dict[int, dict[str, float]] = {}

    def append(self, report: StepReport) -> None:
        """Adds a report to its trial's log."""
        seconds = self.seconds(report.number)
        seconds[f"stage{report.stage}"] = seconds.get(f"stage{report.stage}", 0.0) + report.seconds
        self._store.append_line(f"{trial_folder(report.number)}/metrics.jsonl", report.to_json())
        self._last[report.number] = report.rung

    def forget(self, number: int) -> None:
        """Drops what is cached of a trial whose log was set aside."""
        self._last.pop(number, None)
        self._seconds.pop(number, None)

    def last_step(self, number: int) -> Rung:
        """How far a trial has come; stage 0 before its first step."""
        if number not in self._last:
            self._last[number] = last_step(self._store, number)
        return self._last[number]

    def seconds(self, number: int) -> dict[str, float]:
        """Seconds a trial has spent in each stage, `stage1` and `stage2`."""
        if number not in self._seconds:
            seconds: dict[str, float] = {}
            for report in read_reports(self._store, number):
                seconds[f"stage{report.stage}"] = seconds.get(f"stage{report.stage}", 0.0) + report.seconds
            self._seconds[number] = seconds
        return self._seconds[number]

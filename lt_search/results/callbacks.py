"""Callbacks of a search: hooks that are called as trials start, report and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lt_search.storage.records import StepReport
    from lt_search.training.inputs import TrialJob


class SearchCallback:
    """Base class whose hooks do nothing. All of them are called in the driver."""

    def on_trial_start(self, job: TrialJob) -> None:
        """Called when a trial is handed to a worker."""

    def on_step(self, report: StepReport) -> None:
        """Called with every report that is new; a step that is reported again after a restart is not."""

    def on_trial_end(self, number: int) -> None:
        """Called after a trial has finished, was pruned or failed."""

    def on_loop_end(self) -> None:
        """Called at the end of each iteration of the search loop, some ten times a second."""

    def on_search_end(self) -> None:
        """Called once, however the search ends."""


class CallbackList(SearchCallback):
    """Several callbacks as one, called in order."""

    def __init__(self) -> None:
        self._callbacks: list[SearchCallback] = []

    def add(self, *callbacks: SearchCallback) -> None:
        """Adds callbacks behind those that are there."""
        self._callbacks.extend(callbacks)

    def on_trial_start(self, job: TrialJob) -> None:
        """See `SearchCallback`."""
        for callback in self._callbacks:
            callback.on_trial_start(job)

    def on_step(self, report: StepReport) -> None:
        """See `SearchCallback`."""
        for callback in self._callbacks:
            callback.on_step(report)

    def on_trial_end(self, number: int) -> None:
        """See `SearchCallback`."""
        for callback in self._callbacks:
            callback.on_trial_end(number)

    def on_loop_end(self) -> None:
        """See `SearchCallback`."""
        for callback in self._callbacks:
            callback.on_loop_end()

    def on_search_end(self) -> None:
        """See `SearchCallback`."""
        for callback in self._callbacks:
            callback.on_search_end()

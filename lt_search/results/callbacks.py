"""Callbacks of a search: hooks that are called as trials start, report and end."""

from __future__ import annotations

from functools import partialmethod
from typing import TYPE_CHECKING, Any

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
    """Several callbacks as one: each hook calls that of all of them, in order."""

    def __init__(self) -> None:
        self._callbacks: list[SearchCallback] = []

    def add(self, *callbacks: SearchCallback) -> None:
        """Adds callbacks behind those that are there."""
        self._callbacks.extend(callbacks)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, hook)(*arguments)

    on_trial_start = partialmethod(_call, "on_trial_start")
    on_step = partialmethod(_call, "on_step")
    on_trial_end = partialmethod(_call, "on_trial_end")
    on_loop_end = partialmethod(_call, "on_loop_end")
    on_search_end = partialmethod(_call, "on_search_end")

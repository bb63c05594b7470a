"""Ending trials: as finished, pruned or failed, and giving up a search whose first trials all fail."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from lt_search.pruning.rungs import Decision, Rung
from lt_search.samplers import REUSE_COST, STAGE2_COST
from lt_search.storage.schema import (
    COST,
    FAILURE,
    FINAL,
    TrialRecord,
    records_of,
    stopped_attributes,
    target_trials,
)

if TYPE_CHECKING:
    from lt_search.storage.journal import Journal
    from lt_search.tuning.run_context import RunContext

FAILURES_TO_GIVE_UP = 3
"""A search stops after this many failed trials, if no trial has got further than they."""


class TrialEnding:
    """Writes the end of trials into the journal."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._started: dict[int, float] = {}

    def time_reuse(self, number: int) -> None:
        """Starts the clock of a trial that reuses a stage-1 artefact; its end notes what such a trial costs in all."""
        self._started[number] = time.monotonic()

    def finish(self, number: int, value: float | None, standard_error: float | None) -> None:
        """Ends a trial as finished, with its final objective."""
        self._end(number, TrialState.COMPLETE, {FINAL: [value, standard_error]}, value)

    def prune(self, number: int, rung: Rung) -> None:
        """Ends a trial as pruned at a rung."""
        self._end(number, TrialState.PRUNED, stopped_attributes(rung))

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial as failed, unless it has ended already."""
        if not self._run.journal.trial(number).state.is_finished():
            self._end(number, TrialState.FAIL, {FAILURE: reason})

    def _end(self, number: int, state: TrialState, attributes: Mapping[str, Any], value: float | None = None) -> None:
        """Ends a trial. Its attributes are written first, so that a later driver can end it if this one is killed."""
        self._run.stage1.finished(number)
        seconds = self._run.logs.seconds(number)
        self._run.journal.set(number, COST, seconds)
        if state == TrialState.COMPLETE:
            self._run.journal.set(number, STAGE2_COST, seconds.get("stage2", 0.0))
            if number in self._started and TrialRecord.of(self._run.journal.trial(number)).reused_from:
                self._run.journal.set(number, REUSE_COST, time.monotonic() - self._started.pop(number))
        for name, attribute in attributes.items():
            self._run.journal.set(number, name, attribute)
        self._run.journal.tell(number, state, value)
        self._run.callback.on_trial_end(number)


def end_decided_trials(journal: Journal, rungs: Iterable[Rung]) -> None:
    """Ends trials whose outcome is in the journal, but whose driver was killed before it could end them."""
    points = tuple(rungs)
    for trial in records_of(journal.unfinished()):
        stopped = [rung for rung in points if rung in trial.rungs and trial.rungs[rung].decision is Decision.STOP]
        if trial.failure is not None:
            journal.tell(trial.number, TrialState.FAIL)
        elif trial.final is not None:
            journal.tell(trial.number, TrialState.COMPLETE, trial.final[0])
        elif stopped:
            for name, value in stopped_attributes(stopped[0]).items():
                journal.set(trial.number, name, value)
            journal.tell(trial.number, TrialState.PRUNED)


class GiveUpRule:
    """Decides whether a search is hopeless, because its first trials all fail.

    Failures that the journal already holds do not count: the user may have corrected their cause.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._ended_before = {trial.number for trial in run.journal.started() if trial.state.is_finished()}
        self._any_finished = False

    def reason(self) -> str | None:
        """The reason of the first failure if the search is to be given up; None otherwise.

        It is given up when enough trials have failed, all that were handed out before the last of these have ended,
        and no other trial got further. Trials that were pruned before the point of failure are no evidence.
        """
        if self._any_finished:
            return None
        trials = self._run.journal.started()
        self._any_finished = any(trial.state == TrialState.COMPLETE for trial in trials)
        if self._any_finished:
            return None
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        new = [trial for trial in failed if trial.number not in self._ended_before]
        enough = min(FAILURES_TO_GIVE_UP, (target_trials(self._run.journal) or 0) - len(self._ended_before))
        if not new or len(new) < enough:
            return None
        first = new[: max(enough, 1)]
        if any(trial.state == TrialState.RUNNING and trial.number < first[-1].number for trial in trials):
            return None
        reached = sorted(self._run.logs.last_step(trial.number) for trial in new)[-len(first)]
        if any(self._run.logs.last_step(trial.number) > reached for trial in trials if trial.state != TrialState.FAIL):
            return None
        return TrialRecord.of(first[0]).failure or "no reason was given"

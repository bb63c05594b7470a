"""The controller of a search: the one place through which trials are handed out, judged and ended.

Ray's searcher and scheduler share one controller, because Ray reports some results to only one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lt_search.pruning.rungs import Decision, Rung
from lt_search.results.callbacks import SearchCallback
from lt_search.storage.files import STORAGE_ERRORS
from lt_search.tuning.ending import GiveUpRule, TrialEnding, end_decided_trials
from lt_search.tuning.handing_out import TrialQueue
from lt_search.tuning.judging import ReportJudge
from lt_search.tuning.run_context import RunContext
from lt_search.tuning.run_log import RunLog
from lt_search.tuning.stage1_scheduling import Stage1Scheduler
from lt_search.tuning.trial_logs import TrialLogs

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal
    from lt_search.storage.records import StepReport
    from lt_search.training.inputs import TrialJob

T = TypeVar("T")


class Controller:
    """The only writer of a run's journal and of its trials' logs.

    Args:
        spec: the run.
        journal: the run's journal, opened with its sampler.
        store: the run's files.
        callback: called as trials start, report and end.
        stage_storage: the storage whose stage-1 artefacts the trials share; None: each trains its own.
        compute: on what trials are computed, see `lt_search.storage.addresses.compute_kind`.
        log: the run's log.
    """

    def __init__(
        self,
        spec: RunSpec,
        journal: Journal,
        store: FolderStore,
        callback: SearchCallback | None = None,
        stage_storage: FolderStore | None = None,
        compute: str = "cpu:1",
        log: RunLog | None = None,
    ) -> None:
        self.journal = journal
        self.storage_failure: str | None = None
        """Why the run's folder or a checkpoint could not be written; the search is to end then, its trials stay
        resumable."""
        end_decided_trials(journal, spec.rung_list)
        self._run = RunContext(
            spec=spec,
            journal=journal,
            store=store,
            logs=TrialLogs(store),
            stage1=Stage1Scheduler(stage_storage),
            callback=callback or SearchCallback(),
            log=log or RunLog(store),
        )
        self._ending = TrialEnding(self._run)
        self._judge = ReportJudge(self._run, self._ending)
        self._queue = TrialQueue(self._run, self._judge, self._ending, compute)
        self._give_up = GiveUpRule(self._run)

    def next_job(self, free: int = 1) -> TrialJob | None:
        """The next trial to train; None if none may start now, or the run's folder cannot be written.

        Args:
            free: trials that could start now; so many may wait for stage-1 runs of others.
        """
        job = self._unless_full(lambda: self._queue.next_job(free), None)
        if job is not None:
            self._run.callback.on_trial_start(job)
        return job

    def observe(self, report: StepReport) -> Decision:
        """Records a report and decides whether its trial goes on.

        Where the run's folder cannot be written this is noted, and the trial stays resumable.
        """
        return self._unless_full(lambda: self._observe(report), Decision.STOP)

    def _observe(self, report: StepReport) -> Decision:
        if self.journal.trial(report.number).state.is_finished():
            return Decision.STOP
        if report.storage_failure is not None:
            self.storage_failure = report.storage_failure
            return Decision.STOP
        return self._judge.record(report)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial as failed, unless it has ended already."""
        self._ending.fail(number, reason)

    @property
    def exhausted(self) -> bool:
        """Whether all trials were handed out; else some wait for a stage-1 run of another trial."""
        return self._queue.exhausted

    def progress(self) -> dict[int, Rung | None]:
        """How far each unfinished trial has come, by number; None for one that waits for its stage 1."""
        numbers = [trial.number for trial in self.journal.unfinished()]
        waiting = self._queue.awaited
        return {number: None if number in waiting else self._run.logs.last_step(number) for number in numbers}

    def hopeless(self) -> str | None:
        """The reason of the first failure if the first trials all failed; None otherwise, see `GiveUpRule`."""
        return self._give_up.reason()

    def _unless_full(self, act: Callable[[], T], otherwise: T) -> T:
        try:
            return act()
        except OSError as error:  # Ray would wrap it, and its user would be shown a traceback
            if error.errno not in STORAGE_ERRORS:
                raise
            self.storage_failure = f"{self._run.store.root}: {error.strerror}"
            return otherwise

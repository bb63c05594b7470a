"""Handing out trials: those that wait first, then new proposals; one trial trains a stage 1 that several share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lt_search.config.parameters import propose
from lt_search.config.values import flatten
from lt_search.pruning.rungs import Decision, Rung
from lt_search.storage.addresses import stage1_address
from lt_search.storage.checkpoints import checkpoint_files, trainer_of
from lt_search.storage.records import StepReport, read_reports
from lt_search.storage.schema import ADDRESS, ATTEMPT, TrialRecord, records_of, target_trials
from lt_search.storage.trial_config import claim_trial_folder
from lt_search.training.inputs import TrialJob

if TYPE_CHECKING:
    from lt_search.tuning.ending import TrialEnding
    from lt_search.tuning.judging import ReportJudge
    from lt_search.tuning.run_context import RunContext

INVALID = "invalid"
"""Address of a stage 1 whose fields exclude each other."""


class TrialQueue:
    """The trials of a run that are to be trained.

    Args:
        run: the running search.
        judge: records reports, also those of a trial that ends without training.
        ending: notes when trials that reuse an artefact began.
        compute: on what trials are computed, see `lt_search.storage.addresses.compute_kind`.
    """

    def __init__(self, run: RunContext, judge: ReportJudge, ending: TrialEnding, compute: str) -> None:
        self._run = run
        self._judge = judge
        self._ending = ending
        self._compute = compute
        spec = run.spec
        self._base = flatten(spec.config)
        self._end_of_stage1 = Rung(1, spec.stage_lengths[0])
        self._searches_stage1 = any(parameter.stage == "stage1" for parameter in spec.parameters.values())
        self._waiting = [trial.number for trial in run.journal.unfinished()]
        """Trials that were proposed and are not being trained: by number, the first to be handed out first."""
        self.awaited: dict[int, str] = {}
        """Addresses of those among them that wait for a stage-1 run of another trial, by number."""
        if spec.search:
            run.journal.study.enqueue_trial(spec.first_values(), skip_if_exists=True)

    @property
    def exhausted(self) -> bool:
        """Whether all trials were handed out; else some wait for a stage-1 run of another trial."""
        return not self._waiting and self._all_proposed

    def next_job(self, free: int = 1) -> TrialJob | None:
        """The next trial to train: one that waits first, then a new one; None if none may start now.

        Args:
            free: trials that could start now; so many may wait for stage-1 runs of others.
        """
        for number in tuple(self._waiting):
            job = self._start(number)
            if job is not None:
                return job
        while not self._all_proposed and self._may_propose(free):
            job = self._start(self._run.journal.study.ask().number)
            if job is not None:
                return job
        return None

    @property
    def _all_proposed(self) -> bool:
        return len(self._run.journal.started()) >= (target_trials(self._run.journal) or 0)

    def _may_propose(self, free: int) -> bool:
        """Whether another proposal may find work, where those that wait did not.

        Not where stage 1 is the same for all, nor where the last proposal wanted what another one waits for.
        """
        awaited = set(self.awaited.values())
        return not self.awaited or (self._searches_stage1 and len(awaited) == len(self.awaited) <= free)

    def _start(self, number: int) -> TrialJob | None:
        """Hands a trial out, lets it wait for its stage 1, or ends it where that stage-1 run was stopped before."""
        drawn = propose(self._run.journal.live_trial(number), self._run.spec.parameters, self._base)
        config = self._run.spec.resolve(drawn)
        if claim_trial_folder(self._run.store, number, config):
            self._run.logs.forget(number)
        record = TrialRecord.of(self._run.journal.trial(number))
        today = self._address(drawn)
        if record.address is None:
            self._run.journal.set(number, ADDRESS, today)
        address = record.address or today
        # A run may go on with other threads or code than it proposed a trial with: it shares no stage 1 then.
        shared = self._run.stage1.shares and address == today != INVALID
        if not shared:
            self._judge.unshared.add(number)
        needs_stage1 = self._run.logs.last_step(number) < self._end_of_stage1 or not checkpoint_files(
            self._run.store, number
        )
        stopped = self._reports_until_stopped(record, address) if shared else []
        if shared and needs_stage1 and not stopped and not self._run.stage1.admit(number, address):
            self.awaited[number] = address
            if number not in self._waiting:
                self._waiting.append(number)
            return None
        self.awaited.pop(number, None)
        if number in self._waiting:
            self._waiting.remove(number)
        for report in stopped:
            self._judge.record_step(TrialRecord.of(self._run.journal.trial(number)), report)
        if stopped:
            return None
        attempt = record.attempts + 1
        self._run.journal.set(number, ATTEMPT, attempt)
        stored = shared and (bool(record.reused_from) or self._run.stage1.stored(address))
        if stored and attempt == 1:
            self._ending.time_reuse(number)
        return TrialJob(number, attempt, config, address if shared else "", self._compute, stored)

    def _reports_until_stopped(self, trial: TrialRecord, address: str) -> list[StepReport]:
        """What a trial would report until it is stopped, where its stage-1 run was stopped before; else nothing.

        Trained again, it would come to the same rungs with the same values and get the same decisions.
        """
        rungs = [rung for rung in self._run.spec.rung_list if rung < self._end_of_stage1]
        decisions = self._judge.first_decisions
        ahead = (rung for rung in rungs if rung not in trial.rungs)
        at = next((rung for rung in ahead if decisions.get((rung, address)) is Decision.STOP), None)
        if at is None or self._run.stage1.stored(address):
            return []
        first = next(other.number for other in records_of(self._run.journal.trials()) if _first_at(other, at, address))
        known = {report.rung: report for report in read_reports(self._run.store, first) if report.value is not None}
        passed = [rung for rung in rungs if rung <= at]
        if not known.keys() >= set(passed):
            return []  # a line of its log was cut off by a kill
        self._run.log.write(
            f"trial {trial.number} ends at {at} untrained: trial {first} was stopped there with the same stage 1"
        )
        trainer = trainer_of(self._run.store, first)
        reports = [
            replace(known[rung], number=trial.number, attempt=trial.attempts, seconds=0.0, warning=None)
            for rung in passed
        ]
        return [replace(report, reused_from=report.reused_from or trainer) for report in reports]

    def _address(self, drawn: Mapping[str, Any]) -> str:
        try:
            return stage1_address(self._run.spec, drawn, self._compute)
        except ValueError:
            return INVALID  # the trial reports it as its failure


def _first_at(trial: TrialRecord, rung: Rung, address: str) -> bool:
    """Whether a trial is the one whose value counts for an address at a rung."""
    return rung in trial.rungs and trial.rungs[rung].key == address and trial.rungs[rung].counts

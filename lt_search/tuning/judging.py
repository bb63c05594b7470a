"""Recording and judging reports: they go into the journal, and rungs decide whether a trial goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lt_search.config.durations import show_duration
from lt_search.pruning.rungs import Decision, Record, Rung, RungMachine
from lt_search.samplers import STAGE1_COST
from lt_search.storage.checkpoints import shown_trainer, was_trained_by
from lt_search.storage.schema import (
    REUSED,
    RungEntry,
    TrialRecord,
    first_decisions,
    records_of,
    rung_attribute,
    rung_records,
)

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.storage.records import StepReport
    from lt_search.tuning.ending import TrialEnding
    from lt_search.tuning.run_context import RunContext


class ReportJudge:
    """Records reports and decides at the rungs.

    A report that the journal already has is not written twice, so that a driver that was killed at any point can be
    followed by another one.

    Args:
        run: the running search.
        ending: ends trials.
    """

    def __init__(self, run: RunContext, ending: TrialEnding) -> None:
        self._run = run
        self._ending = ending
        spec = run.spec
        self._end_of_stage1 = Rung(1, spec.stage_lengths[0])
        trials = records_of(run.journal.trials())
        self._machine = RungMachine(spec.rung_list, spec.eta, enabled=spec.prune)
        self._machine.restore(rung_records(trials, spec.rung_list))
        self.first_decisions = first_decisions(trials)
        """The decision about a key at a rung when it came there first. A later trial with the same stage 1 gets the
        same decision, so that a stage-1 run that was let through and paid for is not stopped by later peers."""
        self.unshared: set[int] = set()
        """Trials whose stage-1 runs are their own: not shared, and not waited for."""
        self._warned: set[str] = set()
        """Stage-1 addresses whose damage was reported, until they are stored again."""

    def record(self, report: StepReport) -> Decision:
        """Records a worker's report of a trial that has not ended, with the steps that it brings along."""
        trial = TrialRecord.of(self._run.journal.trial(report.number))
        if report.warning is not None:
            self._warn_once(trial.address or "", report.warning)
        if report.failure is not None:
            self._ending.fail(report.number, report.failure)
            return Decision.STOP
        if report.stage1_seconds is not None and trial.stage1_cost is None:
            self._note_reuse(report)
            self._run.journal.set(report.number, STAGE1_COST, report.stage1_seconds)
        for step in (*report.history, replace(report, history=[])):
            if self.record_step(trial, step) is Decision.STOP:
                return Decision.STOP
        return Decision.CONTINUE

    def record_step(self, trial: TrialRecord, report: StepReport) -> Decision:
        """Records one step, and ends its trial where a rung stops it or the step was the last."""
        number = report.number
        if report.rung > self._run.logs.last_step(number):
            self._run.logs.append(report)
            self._run.callback.on_step(report)
        step = optuna_step(self._run.spec, report.rung)
        if report.value is not None and step not in trial.values:
            self._run.journal.report(number, step, report.value)
        self._note_stage1(trial, report)
        decision = self._judge(trial, report)
        if decision is Decision.STOP:
            self._ending.prune(number, report.rung)
        elif report.final:
            self._ending.finish(number, report.value, report.standard_error)
        return decision

    def _judge(self, trial: TrialRecord, report: StepReport) -> Decision:
        rung = report.rung
        if rung not in self._machine.rungs or report.value is None:
            return Decision.CONTINUE
        if rung in trial.rungs:
            return trial.rungs[rung].decision
        key = str(trial.address) if rung.stage == 1 else str(trial.number)
        verdict = self._machine.cross(Record(rung, key, report.value, report.standard_error))
        entry = RungEntry(
            key=key,
            value=report.value,
            standard_error=report.standard_error,
            decision=self.first_decisions.setdefault((rung, key), verdict.decision),
            peers=verdict.peers,
            cut=verdict.cut,
            counts=verdict.first,
            head_value=report.scalars.get(self._run.spec.metric) if rung.stage == 1 else None,
        )
        self._run.journal.set(trial.number, rung_attribute(rung), entry.to_attribute())
        return entry.decision

    def _note_reuse(self, report: StepReport) -> None:
        """Notes whose artefact a trial uses, unless it is its own, published just before its worker was killed."""
        trainer = report.reused_from or ""
        if was_trained_by(trainer, self._run.store, report.number):
            return
        self._run.journal.set(report.number, REUSED, shown_trainer(trainer))
        saved = f"{show_duration(report.stage1_seconds or 0.0)} saved"
        self._run.log.write(
            f"trial {report.number} starts at stage 2: it reuses stage 1 of {shown_trainer(trainer)}, {saved}"
        )

    def _note_stage1(self, trial: TrialRecord, report: StepReport) -> None:
        """Reports the progress of a stage-1 run to its scheduler, and its cost to the journal when it has ended."""
        number, address = report.number, str(trial.address)
        if report.rung < self._end_of_stage1:
            if report.reused_from is None and number not in self.unshared:
                self._run.stage1.training(number, address)
            return
        self._run.stage1.finished(number)
        if report.rung == self._end_of_stage1 and report.reused_from is None and report.warning is None:
            self._warned.discard(address)
        if trial.stage1_cost is None and report.stage1_seconds is None:
            self._run.journal.set(number, STAGE1_COST, self._run.logs.seconds(number).get("stage1", 0.0))

    def _warn_once(self, address: str, text: str) -> None:
        """Passes a warning about a stage-1 artefact on; of several trials that met the same damage, the first one's."""
        if address not in self._warned:
            self._warned.add(address)
            self._run.log.warn(text)


def optuna_step(spec: RunSpec, rung: Rung) -> int:
    """The step under which Optuna knows a point: s in stage 1, S1 + s in stage 2."""
    return rung.step + (spec.stage_lengths[0] if rung.stage == 2 else 0)

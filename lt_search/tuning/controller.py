"""Between the trials and the journal: hands out trials, records what they report, decides who goes on.

Both of Ray's interfaces, searcher and scheduler, share one referee, because Ray tells some results to only one of
them. Every method may be called again with the same news: what the journal already has is not written twice, so that
a driver that was killed at any point can be followed by another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from optuna.trial import FrozenTrial, TrialState

from lt_search.config.durations import show_duration
from lt_search.config.parameters import propose
from lt_search.config.values import flatten
from lt_search.pruning.rungs import Decision, Record, Rung, RungMachine
from lt_search.samplers import REUSE_COST, STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1
from lt_search.storage.addresses import stage1_address
from lt_search.storage.checkpoints import checkpoint_files, shown_trainer, trainer_of, was_trained_by
from lt_search.storage.files import STORAGE_ERRORS
from lt_search.storage.records import StepReport, last_step, read_reports
from lt_search.storage.run_folder import trial_folder
from lt_search.storage.schema import (
    ADDRESS,
    ATTEMPT,
    COST,
    FAILURE,
    FINAL,
    REUSED,
    STOPPED,
    TRIALS,
    first_decisions,
    journal_records,
    off_attribute,
    rung_attribute,
    stage1_evidence,
    turned_off,
)
from lt_search.training.inputs import TrialJob
from lt_search.tuning.stage1_scheduling import Stage1Scheduler

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.storage.files import FolderStore
    from lt_search.storage.journal import Journal

T = TypeVar("T")

FAILURES_TO_GIVE_UP = 3
"""A search stops after this many failed trials, if no trial has got further than they."""


INVALID = "invalid"
"""Address of a stage 1 whose fields exclude each other."""


class Referee:
    """The only writer of a run's journal and of its trials' logs.

    Args:
        spec: the run.
        journal: the run's journal, opened with its sampler.
        store: the run's files.
        on_report: called with every report that is news.
        on_end: called after a trial has ended.
        stage_storage: the storage whose stage 1s the trials share; None: each trains its own.
        compute: on what trials are computed, see `lt_search.storage.addresses.compute_kind`.
        warn: called with what the user should know.
        log: called with what is worth a line in the run's log.
    """

    def __init__(
        self,
        spec: RunSpec,
        journal: Journal,
        store: FolderStore,
        on_report: Callable[[StepReport], None] = lambda report: None,
        on_end: Callable[[], None] = lambda: None,
        stage_storage: FolderStore | None = None,
        compute: str = "cpu:1",
        warn: Callable[[str], None] = lambda text: None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.spec = spec
        self.journal = journal
        self._store = store
        self._on_report = on_report
        self._on_end = on_end
        self.storage_failure: str | None = None
        """Why a worker could not write its checkpoint; the search is to end then, and its trials stay resumable."""
        self._machine = RungMachine(spec.rung_list, spec.eta, enabled=spec.prune)
        self._logged: dict[int, Rung] = {}
        self._costs: dict[int, dict[str, float]] = {}
        self._handed_out: dict[int, float] = {}
        """When the first attempts of trials with a stored stage 1 were handed out by this driver."""
        self._machine.restore(journal_records(journal.trials(), spec.rung_list))
        self._first_decisions = first_decisions(journal.trials(), spec.rung_list)
        """What a stage 1 was told at a rung when it came there first; a later trial that uses it is told the same, so
        that what was let through and paid for is not stopped by peers that came after."""
        self._end_decided_trials()
        self._hopeful = False
        """Whether a trial has finished, so that the search is not given up any more."""
        self._compute = compute
        self._warn = warn
        self._log_line = log
        self._warned: set[str] = set()
        """Addresses of stage 1s that were found damaged, until they are there again."""
        self._alone: set[int] = set()
        """Trials that train a stage 1 of their own, and share it with none."""
        self.gate = Stage1Scheduler(stage_storage)
        self._waiting = [trial.number for trial in journal.unfinished()]
        """Trials that were proposed and are not being trained: by number, the first to be handed out first."""
        self._wanted: dict[int, str] = {}
        """Addresses of those among them that wait for a stage 1 which another trial trains."""
        self._evidence = stage1_evidence(journal.trials(), spec.rung_list)
        for rung in turned_off(journal, spec.rung_list):
            self._machine.turn_off(rung)
        self._weigh_probes()
        self._ended_before = {trial.number for trial in journal.started() if trial.state.is_finished()}
        if spec.search:
            journal.study.enqueue_trial(spec.first_values(), skip_if_exists=True)

    # --- handing out -------------------------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """Trials to propose in all."""
        return int(self.journal.study.user_attrs.get(TRIALS, 0))

    def next_job(self, free: int = 1) -> TrialJob | None:
        """The next trial to train: one that waits first, then a new one; None if there is none that may start now.

        Args:
            free: trials that could start now; so many may wait for stage 1s that others train.
        """
        for number in tuple(self._waiting):
            job = self._start(number)
            if job is not None:
                return job
        while len(self.journal.started()) < self.target and self._may_propose(free):
            job = self._start(self.journal.study.ask().number)
            if job is not None:
                return job
        return None

    @property
    def exhausted(self) -> bool:
        """Whether all trials were handed out; else some wait for a stage 1 that another trial trains."""
        return not self._waiting and len(self.journal.started()) >= self.target

    def _may_propose(self, free: int) -> bool:
        """Whether another proposal may find work, where those that wait did not.

        Not where stage 1 is the same for all, nor where the last proposal wanted what another one waits for.
        """
        searched = any(parameter.stage == "stage1" for parameter in self.spec.parameters.values())
        wanted = set(self._wanted.values())
        return not self._wanted or (searched and len(wanted) == len(self._wanted) <= free)

    def _start(self, number: int) -> TrialJob | None:
        """Hands a trial out, lets it wait for its stage 1, or ends it where that stage 1 was stopped before."""
        live = self.journal.live_trial(number)
        drawn = propose(live, self.spec.parameters, flatten(self.spec.config))
        attributes = self.journal.trial(number).user_attrs
        today = self._address(drawn)
        if ADDRESS not in attributes:
            self.journal.set(number, ADDRESS, today)
        address = self.journal.trial(number).user_attrs[ADDRESS]
        # A run may go on with other threads or code than it proposed a trial with: no stage 1 of that address then.
        shared = self.gate.shares and address == today != INVALID
        if not shared:
            self._alone.add(number)
        end = Rung(1, self.spec.stage_lengths[0])
        needs_stage1 = self._last_logged(number) < end or not checkpoint_files(self._store, number)
        stopped = self._until_stopped(number, address) if shared else []
        if shared and needs_stage1 and not stopped and not self.gate.admit(number, address):
            self._wanted[number] = address
            if number not in self._waiting:
                self._waiting.append(number)
            return None
        self._wanted.pop(number, None)
        if number in self._waiting:
            self._waiting.remove(number)
        config = self.spec.resolve(drawn)
        self._store.write(f"{trial_folder(number)}/config.yaml", yaml.safe_dump(config, sort_keys=False))
        for report in stopped:
            self._take_in(self.journal.trial(number), report)
        if stopped:
            return None
        attempt = attributes.get(ATTEMPT, 0) + 1
        self.journal.set(number, ATTEMPT, attempt)
        stored = shared and (REUSED in attributes or self.gate.stored(address))
        if stored and attempt == 1:
            self._handed_out[number] = time.monotonic()
        return TrialJob(number, attempt, config, address if shared else "", self._compute, stored)

    def _until_stopped(self, number: int, address: str) -> list[StepReport]:
        """What a trial would report until it is stopped, where its stage 1 was stopped before its end; else nothing.

        Trained again, it would come to the same rungs with the same values, and be told what was said there first.
        """
        attributes = self.journal.trial(number).user_attrs
        rungs = [rung for rung in self._machine.rungs if rung < Rung(1, self.spec.stage_lengths[0])]
        ahead = [rung for rung in rungs if rung_attribute(rung) not in attributes and not self._machine.is_off(rung)]
        at = next((rung for rung in ahead if self._first_decisions.get((rung, address)) is Decision.STOP), None)
        if at is None or self.gate.stored(address):
            return []
        entries = {trial.number: trial.user_attrs.get(rung_attribute(at), {}) for trial in self.journal.trials()}
        first = next(n for n, entry in entries.items() if entry.get("key") == address and entry["counts"])
        known = {report.rung: report for report in read_reports(self._store, first) if report.value is not None}
        passed = [rung for rung in rungs if rung <= at]
        if not known.keys() >= set(passed):
            return []  # a line of its log was cut off by a kill
        self._log_line(f"trial {number} ends at {at} untrained: trial {first} was stopped there with the same stage 1")
        attempt, trainer = attributes.get(ATTEMPT, 0), trainer_of(self._store, first)
        reports = [replace(known[rung], number=number, attempt=attempt, seconds=0.0, warning=None) for rung in passed]
        return [replace(report, reused_from=report.reused_from or trainer) for report in reports]

    def _address(self, drawn: Mapping[str, Any]) -> str:
        try:
            return stage1_address(self.spec, drawn, self._compute)
        except ValueError:
            return INVALID  # the trial reports it as its failure

    # --- hearing -----------------------------------------------------------------------------------------------

    def observe(self, report: StepReport) -> Decision:
        """Records a report and decides whether its trial goes on."""
        number = report.number
        trial = self.journal.trial(number)
        if trial.state.is_finished():
            return Decision.STOP
        if report.storage_failure is not None:
            self.storage_failure = report.storage_failure
            return Decision.STOP
        if report.warning is not None:
            self._warn_of(trial.user_attrs.get(ADDRESS, ""), report.warning)
        if report.failure is not None:
            self.fail(number, report.failure)
            return Decision.STOP
        if report.stage1_seconds is not None and STAGE1_COST not in trial.user_attrs:
            self._note_reuse(report)
            self.journal.set(number, STAGE1_COST, report.stage1_seconds)
        for step in (*report.history, replace(report, history=[])):
            if self._take_in(trial, step) is Decision.STOP:
                return Decision.STOP
        return Decision.CONTINUE

    def _note_reuse(self, report: StepReport) -> None:
        """Notes whose stage 1 a trial uses, unless it is its own, published just before its worker was killed."""
        trainer = report.reused_from or ""
        if was_trained_by(trainer, self._store, report.number):
            return
        self.journal.set(report.number, REUSED, shown_trainer(trainer))
        saved = f"{show_duration(report.stage1_seconds or 0.0)} saved"
        self._log_line(f"trial {report.number} starts at stage 2: stage 1 is that of {shown_trainer(trainer)}, {saved}")

    def _take_in(self, trial: FrozenTrial, report: StepReport) -> Decision:
        """Records one step and judges it."""
        number = report.number
        news = report.rung > self._last_logged(number)
        if news:
            self._log(report)
            self._on_report(report)
        step = self.optuna_step(report.rung)
        if report.value is not None and step not in trial.intermediate_values:
            self.journal.report(number, step, report.value)
        self._note_stage1(trial, report)
        decision = self._judge(trial, report)
        if decision is Decision.STOP:
            self._end(number, TrialState.PRUNED, _why_stopped(report.rung))
        elif report.final:
            self._end(number, TrialState.COMPLETE, {FINAL: [report.value, report.standard_error]})
        return decision

    def _note_stage1(self, trial: FrozenTrial, report: StepReport) -> None:
        """Tells the gate what becomes of a stage 1, and the journal what a finished one cost."""
        number = report.number
        if report.rung < Rung(1, self.spec.stage_lengths[0]):
            if report.reused_from is None and number not in self._alone:
                self.gate.training(number, trial.user_attrs[ADDRESS])
            return
        self.gate.finished(number)
        is_end = report.rung == Rung(1, self.spec.stage_lengths[0])
        if is_end and report.reused_from is None and report.warning is None:
            self._warned.discard(trial.user_attrs[ADDRESS])
        if STAGE1_COST not in trial.user_attrs and report.stage1_seconds is None:
            self.journal.set(number, STAGE1_COST, self._cost(number).get("stage1", 0.0))

    def _warn_of(self, address: str, text: str) -> None:
        """Passes a warning about a stage 1 on; of several trials that met the same damage, the first one's."""
        if address not in self._warned:
            self._warned.add(address)
            self._warn(text)

    def offer(self, free: int = 1) -> TrialJob | None:
        """As `next_job`; None also where the run's folder cannot be written, which is noted."""
        return self._unless_full(lambda: self.next_job(free), None)

    def hear(self, report: StepReport) -> Decision:
        """As `observe`; where the run's folder cannot be written this is noted, and the trial stays resumable."""
        return self._unless_full(lambda: self.observe(report), Decision.STOP)

    def _unless_full(self, act: Callable[[], T], otherwise: T) -> T:
        try:
            return act()
        except OSError as error:  # Ray would wrap it, and its user would be shown a traceback
            if error.errno not in STORAGE_ERRORS:
                raise
            self.storage_failure = f"{self._store.root}: {error.strerror}"
            return otherwise

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial as failed, unless it has ended already."""
        if not self.journal.trial(number).state.is_finished():
            self._end(number, TrialState.FAIL, {FAILURE: reason})

    def optuna_step(self, rung: Rung) -> int:
        """The step under which Optuna knows a point: s in stage 1, S1 + s in stage 2."""
        return rung.step + (self.spec.stage_lengths[0] if rung.stage == 2 else 0)

    def progress(self) -> dict[int, Rung | None]:
        """How far each trial that still runs has come, by number; None for one that waits for its stage 1."""
        numbers = [trial.number for trial in self.journal.unfinished()]
        return {number: None if number in self._wanted else self._last_logged(number) for number in numbers}

    def hopeless(self) -> str | None:
        """The reason of the first failure if the first trials all failed; None otherwise.

        Given up is when enough trials have failed, all that were handed out before the last of these have ended, and
        no other trial got as far as they or further. Trials that were pruned before the point of failure say nothing
        about it. Failures before a resume do not count: the user may have mended their cause since.
        """
        if self._hopeful:
            return None
        trials = self.journal.started()
        self._hopeful = any(trial.state == TrialState.COMPLETE for trial in trials)
        if self._hopeful:
            return None
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        new = [trial for trial in failed if trial.number not in self._ended_before]
        enough = min(FAILURES_TO_GIVE_UP, self.target - len(self._ended_before))
        if not new or len(new) < enough:
            return None
        first = new[: max(enough, 1)]
        if any(trial.state == TrialState.RUNNING and trial.number < first[-1].number for trial in trials):
            return None
        reached = sorted(self._last_logged(trial.number) for trial in new)[-len(first)]
        if any(self._last_logged(trial.number) > reached for trial in trials if trial.state != TrialState.FAIL):
            return None
        return str(first[0].user_attrs.get(FAILURE, "no reason was given"))

    def _judge(self, trial: FrozenTrial, report: StepReport) -> Decision:
        rung, name = report.rung, rung_attribute(report.rung)
        if rung not in self._machine.rungs or report.value is None:
            return Decision.CONTINUE
        if name in trial.user_attrs:
            return Decision(trial.user_attrs[name]["decision"])
        key = str(trial.user_attrs[ADDRESS]) if rung.stage == 1 else str(trial.number)
        verdict = self._machine.cross(Record(rung, key, report.value, report.standard_error))
        decision = self._first_decisions.setdefault((rung, key), verdict.decision)
        if self._machine.is_off(rung):
            decision = Decision.CONTINUE
        head = report.scalars.get(self.spec.metric) if rung.stage == 1 else None
        entry = {
            "key": key,
            "value": report.value,
            "standard_error": report.standard_error,
            "decision": str(decision),
            "peers": verdict.peers,
            "cut": verdict.cut,
            "counts": verdict.first,
            "head_value": head,
            "off": self._machine.is_off(rung),
        }
        self.journal.set(trial.number, name, entry)
        if rung.stage == 1:
            self._evidence.record(rung, key, report.value, head)
        return decision

    def _weigh_probes(self) -> None:
        """Turns off, for good, each stage-1 rung whose probe was found not to foretell the final value."""
        for found in self._evidence.foresight() if self.spec.prune else ():
            if found.fails and not self._machine.is_off(found.rung):
                self.journal.study.set_user_attr(off_attribute(found.rung), found.to_json())
                self._machine.turn_off(found.rung)

    # --- writing -----------------------------------------------------------------------------------------------

    def _end(self, number: int, state: TrialState, attributes: Mapping[str, Any]) -> None:
        """Ends a trial. Its attributes are written first, so that a later driver can end it if this one is killed."""
        self.gate.finished(number)
        self.journal.set(number, COST, self._cost(number))
        if state == TrialState.COMPLETE:
            self.journal.set(number, STAGE2_COST, self._cost(number).get("stage2", 0.0))
            if number in self._handed_out and REUSED in self.journal.trial(number).user_attrs:
                self.journal.set(number, REUSE_COST, time.monotonic() - self._handed_out.pop(number))
        for name, value in attributes.items():
            self.journal.set(number, name, value)
        self.journal.tell(number, state, attributes[FINAL][0] if state == TrialState.COMPLETE else None)
        if state == TrialState.COMPLETE:
            self._evidence.finish(self.journal.trial(number).user_attrs[ADDRESS], attributes[FINAL][0])
            self._weigh_probes()
        self._on_end()

    def _end_decided_trials(self) -> None:
        """Ends trials whose fate is in the journal, but whose driver was killed before it could tell."""
        for trial in self.journal.unfinished():
            attributes = trial.user_attrs
            at = {rung: attributes.get(rung_attribute(rung), {}) for rung in self.spec.rung_list}
            stops = [rung for rung, entry in at.items() if entry.get("decision") == Decision.STOP]
            if FAILURE in attributes:
                self.journal.tell(trial.number, TrialState.FAIL)
            elif FINAL in attributes:
                self.journal.tell(trial.number, TrialState.COMPLETE, attributes[FINAL][0])
            elif stops:
                for name, value in _why_stopped(stops[0]).items():
                    self.journal.set(trial.number, name, value)
                self.journal.tell(trial.number, TrialState.PRUNED)

    def _log(self, report: StepReport) -> None:
        cost = self._cost(report.number)
        cost[f"stage{report.stage}"] = cost.get(f"stage{report.stage}", 0.0) + report.seconds
        self._store.append_line(f"{trial_folder(report.number)}/metrics.jsonl", report.to_json())
        self._logged[report.number] = report.rung

    def _last_logged(self, number: int) -> Rung:
        if number not in self._logged:
            self._logged[number] = last_step(self._store, number)
        return self._logged[number]

    def _cost(self, number: int) -> dict[str, float]:
        """Seconds a trial spent in each stage."""
        if number not in self._costs:
            cost: dict[str, float] = {}
            for report in read_reports(self._store, number):
                cost[f"stage{report.stage}"] = cost.get(f"stage{report.stage}", 0.0) + report.seconds
            self._costs[number] = cost
        return self._costs[number]


def _why_stopped(rung: Rung) -> dict[str, Any]:
    """Attributes of a trial that was stopped at a rung."""
    return {STOPPED: str(rung)} | ({STOPPED_IN_STAGE1: True} if rung.stage == 1 else {})

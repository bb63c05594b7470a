"""Run summary: the state of a run and of its trials, read from its journal alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

import pandas as pd

from lt_search.pruning.probe_audit import ProbeAudit
from lt_search.pruning.rungs import Decision, Rung
from lt_search.storage.schema import RungEntry, TrialRecord, records_of, stage1_scores, target_trials

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.storage.journal import Journal

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
"""Optuna's word for a state, and ours."""


@dataclass(frozen=True)
class TrialSummary:
    """One trial."""

    number: int
    state: str
    """finished, pruned, failed, running, or interrupted: unfinished, and no driver holds the run."""
    value: float | None
    """Objective on the validation split; only of a finished trial."""
    standard_error: float | None
    """Bootstrap standard error of `value` over patients or groups."""
    params: Mapping[str, Any]
    seconds: Mapping[str, float]
    """Time spent in each stage."""
    note: str = ""
    """Where it was stopped, or why it failed."""
    attempts: int = 1
    """How often it was handed to a worker; 0 where its stage 1 was known to be stopped."""
    reused_from: str = ""
    """Run and trial whose stage 1 it took from the stage store; empty where it trained its own."""
    full_seconds: Mapping[str, float] = field(default_factory=dict)
    """What each of its finished stages costs when it is trained, by whomever that was."""
    rungs: Mapping[Rung, RungEntry] = field(default_factory=dict)
    """The rungs that it reached."""

    @property
    def total_seconds(self) -> float:
        """Time spent in all stages."""
        return sum(self.seconds.values())

    @property
    def saved_by_reuse(self) -> float:
        """Seconds of stage 1 that it did not train."""
        if not self.reused_from:
            return 0.0
        return max(0.0, self.full_seconds.get("stage1", 0.0) - self.seconds.get("stage1", 0.0))


@dataclass(frozen=True)
class RungSummary:
    """How many trials reached a rung, and how many it stopped."""

    rung: Rung
    reached: int
    stopped: int


@dataclass(frozen=True)
class RunSummary:
    """A whole run."""

    target: int
    """Trials to propose in all."""
    trials: tuple[TrialSummary, ...]
    rungs: tuple[RungSummary, ...]
    probe_audit: tuple[ProbeAudit, ...] = ()
    """Rank correlation between probe score and final objective at each stage-1 rung, as far as is known now."""

    @property
    def best(self) -> TrialSummary | None:
        """The finished trial with the largest value; a stopped trial is never best."""
        return next(iter(self.leaderboard), None)

    @property
    def leaderboard(self) -> list[TrialSummary]:
        """Finished trials, best first; of equals the earlier one."""
        return sorted(self.of_state("finished"), key=lambda t: (-(t.value or 0.0), t.number))

    def of_state(self, state: str) -> list[TrialSummary]:
        """The trials of one state, by number."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def reused(self) -> int:
        """Trials that reuse a stage-1 artefact."""
        return sum(bool(trial.reused_from) for trial in self.trials)

    @property
    def stage1_trained(self) -> int:
        """Stage-1 runs that this run trained to their end."""
        return sum("stage1" in trial.full_seconds and not trial.reused_from for trial in self.trials)

    @property
    def saved_by_reuse(self) -> float:
        """Seconds of stage 1 that were not trained again, over all trials."""
        return sum(trial.saved_by_reuse for trial in self.trials)

    @property
    def saved_by_pruning(self) -> float:
        """Seconds that stopped trials did not train, had their stages cost what finished ones cost on average."""
        costs = [trial.full_seconds for trial in self.of_state("finished")]
        usual = {stage: mean([cost.get(stage, 0.0) for cost in costs] or [0.0]) for stage in ("stage1", "stage2")}
        return sum(
            max(0.0, usual[stage] - trial.seconds.get(stage, 0.0))
            for trial in self.of_state("pruned")
            for stage in usual
            if stage not in trial.full_seconds
        )

    @property
    def ended(self) -> int:
        """Trials that are finished, pruned or failed."""
        return len(self.trials) - len(self.unfinished)

    @property
    def unfinished(self) -> list[TrialSummary]:
        """Trials that were handed out and have not ended, by number."""
        return [trial for trial in self.trials if trial.state in {"running", "interrupted"}]

    def seconds_left(self, concurrent: int) -> float | None:
        """A guess from the mean time of ended trials; None before the first one ended."""
        times = [trial.total_seconds for trial in self.trials if trial.state in {"finished", "pruned"}]
        if not times:
            return None
        return max(0, self.target - self.ended) * mean(times) / max(1, concurrent)


def summarise(spec: RunSpec, journal: Journal, *, driven: bool = True) -> RunSummary:
    """Reads a run's journal.

    Args:
        spec: the run.
        journal: its journal.
        driven: whether a driver holds the run; without one, unfinished trials are interrupted.
    """
    trials = records_of(journal.started())
    return RunSummary(
        target=target_trials(journal) or 0,
        trials=tuple(_trial_summary(trial, driven) for trial in trials),
        rungs=tuple(_rung_summary(rung, trials) for rung in spec.rung_list),
        probe_audit=stage1_scores(trials, spec.rung_list).audit(),
    )


def _rung_summary(rung: Rung, trials: Iterable[TrialRecord]) -> RungSummary:
    entries = [trial.rungs[rung] for trial in trials if rung in trial.rungs]
    return RungSummary(rung, len(entries), sum(entry.decision is Decision.STOP for entry in entries))


def _trial_summary(trial: TrialRecord, driven: bool) -> TrialSummary:
    state = STATES[trial.state.name]
    value, error = trial.final if trial.final is not None and state == "finished" else (None, None)
    costs = {"stage1": trial.stage1_cost, "stage2": trial.stage2_cost}
    return TrialSummary(
        number=trial.number,
        state="interrupted" if state == "running" and not driven else state,
        value=value,
        standard_error=error,
        params=dict(trial.params),
        seconds=trial.seconds,
        note=trial.stopped or trial.failure or "",
        attempts=trial.attempts,
        reused_from=trial.reused_from,
        full_seconds={stage: cost for stage, cost in costs.items() if cost is not None},
        rungs=trial.rungs,
    )


def trials_csv(trials: Iterable[TrialSummary]) -> str:
    """All trials as CSV text, one row each, parameters as columns."""
    rows = [
        {
            "number": trial.number,
            "state": trial.state,
            "value": trial.value,
            "standard_error": trial.standard_error,
            "stage1_seconds": trial.seconds.get("stage1"),
            "stage2_seconds": trial.seconds.get("stage2"),
            "stage1_reused_from": trial.reused_from,
            "attempts": trial.attempts,
            "note": trial.note,
            **trial.params,
        }
        for trial in trials
    ]
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g")
    return text.getvalue()

"""What a run has come to, read from its journal alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

import pandas as pd

from lt_search.pruning.probe_audit import Foresight, foresight_line, why_off
from lt_search.pruning.rungs import Decision, Rung
from lt_search.samplers import STAGE1_COST, STAGE2_COST
from lt_search.storage.schema import (
    ATTEMPT,
    COST,
    FAILURE,
    FINAL,
    REUSED,
    STOPPED,
    TRIALS,
    rung_attribute,
    stage1_evidence,
    turned_off,
)

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from lt_search.config.spec import RunSpec
    from lt_search.storage.journal import Journal

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
"""Optuna's word for a state, and ours."""


@dataclass(frozen=True)
class TrialSummary:
    """One trial."""

    number: int
    state: str
    """finished, pruned, failed or running (also: interrupted, and resumable)."""
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

    @property
    def saved_by_reuse(self) -> float:
        """Seconds of stage 1 that it did not train."""
        if not self.reused_from:
            return 0.0
        return max(0.0, self.full_seconds.get("stage1", 0.0) - self.seconds.get("stage1", 0.0))


@dataclass(frozen=True)
class RungSummary:
    """How many trials came to a rung, and how many went on."""

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
    foresight: tuple[Foresight, ...] = ()
    """How well each stage-1 rung foretells the final value, as far as is known now."""
    turned_off: Mapping[Rung, Foresight] = field(default_factory=dict)
    """The rungs that stop no more trials, with what that was decided on."""

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
        """Trials that took their stage 1 from the stage store."""
        return sum(bool(trial.reused_from) for trial in self.trials)

    @property
    def stage1_trained(self) -> int:
        """Stage 1s that were trained to their end by this run."""
        return sum("stage1" in trial.full_seconds and not trial.reused_from for trial in self.trials)

    @property
    def saved_by_reuse(self) -> float:
        """Seconds of stage 1 that were not trained, over all trials."""
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
        return len(self.trials) - len(self.of_state("running"))

    @property
    def probe_lines(self) -> list[str]:
        """One line of `name=value` pairs per stage-1 rung."""
        return [foresight_line(found, off=found.rung in self.turned_off) for found in self.foresight]

    @property
    def notices(self) -> list[str]:
        """What a person has to be told once: the rungs that were turned off, and why."""
        return [why_off(found) for found in self.turned_off.values()]

    def seconds_left(self, concurrent: int) -> float | None:
        """A guess from the mean time of ended trials; None before the first one ended."""
        times = [sum(trial.seconds.values()) for trial in self.trials if trial.state in {"finished", "pruned"}]
        if not times:
            return None
        return max(0, self.target - self.ended) * mean(times) / max(1, concurrent)


def summarise(spec: RunSpec, journal: Journal) -> RunSummary:
    """Reads a run's journal."""
    trials = journal.started()
    rungs = []
    for rung in spec.rung_list:
        entries = [t.user_attrs[rung_attribute(rung)] for t in trials if rung_attribute(rung) in t.user_attrs]
        stopped = sum(entry["decision"] == Decision.STOP for entry in entries)
        rungs.append(RungSummary(rung, len(entries), stopped))
    target = int(journal.study.user_attrs.get(TRIALS, 0))
    return RunSummary(
        target,
        tuple(_trial_summary(trial) for trial in trials),
        tuple(rungs),
        stage1_evidence(trials, spec.rung_list).foresight(),
        turned_off(journal, spec.rung_list),
    )


def _trial_summary(trial: FrozenTrial) -> TrialSummary:
    attributes = trial.user_attrs
    state = STATES[trial.state.name]
    value, error = attributes.get(FINAL, (None, None)) if state == "finished" else (None, None)
    return TrialSummary(
        number=trial.number,
        state=state,
        value=value,
        standard_error=error,
        params=dict(trial.params),
        seconds=attributes.get(COST, {}),
        note=attributes.get(STOPPED) or attributes.get(FAILURE, ""),
        attempts=attributes.get(ATTEMPT, 0),
        reused_from=attributes.get(REUSED, ""),
        full_seconds={
            stage: attributes[name]
            for stage, name in (("stage1", STAGE1_COST), ("stage2", STAGE2_COST))
            if name in attributes
        },
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

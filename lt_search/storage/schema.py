"""Schema of the journal: what a run writes into user attributes of Optuna's trials and study, as typed records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from lt_search.pruning.probe_audit import Stage1Scores
from lt_search.pruning.rungs import Decision, Record, Rung
from lt_search.samplers import STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1

if TYPE_CHECKING:
    from lt_search.storage.journal import Journal

ADDRESS, ATTEMPT, FAILURE, FINAL, STOPPED, COST = "stage1_address", "attempt", "failure", "final", "stopped", "cost"
REUSED = "stage1_reused_from"
"""User attributes of a trial, beside one per rung (`rung_attribute`) and those that the sampler reads (`samplers`)."""

TRIALS = "trials"
"""User attribute of the study: how many trials to propose in all."""

_RUNG_PREFIX = "rung:"


def rung_attribute(rung: Rung) -> str:
    """Name of a trial's user attribute that holds its `RungEntry`."""
    return f"{_RUNG_PREFIX}{rung.stage}:{rung.step}"


def target_trials(journal: Journal) -> int | None:
    """Trials to propose in all; None where the run has not begun."""
    target = journal.study.user_attrs.get(TRIALS)
    return None if target is None else int(target)


@dataclass(frozen=True)
class RungEntry:
    """A trial at a rung: its value, the decision, and what the decision was based on."""

    key: str
    """What is compared: the stage-1 address in stage 1, the trial's number in stage 2."""
    value: float
    standard_error: float | None
    """Bootstrap standard error of `value`; None where it is not known."""
    decision: Decision
    peers: int
    """Other keys recorded at the rung at the time of the decision."""
    cut: float | None
    """The value to reach; None while the rung did not decide yet."""
    counts: bool
    """Whether this is the first record of its key at the rung; later ones do not count as peers."""
    head_value: float | None = None
    """In stage 1, the objective of the model's own head; journals of early versions lack it."""

    def to_attribute(self) -> dict[str, Any]:
        """The entry as plain values."""
        return {**asdict(self), "decision": str(self.decision)}

    @classmethod
    def from_attribute(cls, content: Mapping[str, Any]) -> RungEntry:
        """Reads the output of `to_attribute`; keys that only earlier versions wrote are ignored."""
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        return cls(**{**known, "decision": Decision(content["decision"])})


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the journal holds it."""

    number: int
    state: TrialState
    params: Mapping[str, Any]
    """Values that were drawn, by flat name; inactive parameters are absent."""
    values: Mapping[int, float]
    """Intermediate values by Optuna's step."""
    rungs: Mapping[Rung, RungEntry]
    address: str | None
    """Address of its stage 1; None before the trial was first handed out."""
    attempts: int
    """How often it was handed to a worker; 0 where its stage 1 was known to be stopped."""
    final: tuple[float, float | None] | None
    """Objective and its standard error; None until the trial has finished."""
    failure: str | None
    stopped: str | None
    """The rung that stopped it."""
    reused_from: str
    """Run and trial whose stage-1 artefact it uses; empty where it trains its own."""
    seconds: Mapping[str, float]
    """Time spent in each stage, `stage1` and `stage2`."""
    stage1_cost: float | None
    """Seconds that training its stage 1 takes, whoever trained it; None before stage 1 has ended."""
    stage2_cost: float | None
    """Seconds of its stage 2; None before it has ended."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> TrialRecord:
        """Reads a trial of the journal."""
        attributes = trial.user_attrs
        final = attributes.get(FINAL)
        return cls(
            number=trial.number,
            state=trial.state,
            params=trial.params,
            values=trial.intermediate_values,
            rungs={
                _rung(name): RungEntry.from_attribute(content)
                for name, content in attributes.items()
                if name.startswith(_RUNG_PREFIX)
            },
            address=attributes.get(ADDRESS),
            attempts=attributes.get(ATTEMPT, 0),
            final=None if final is None else (final[0], final[1]),
            failure=attributes.get(FAILURE),
            stopped=attributes.get(STOPPED),
            reused_from=attributes.get(REUSED, ""),
            seconds=attributes.get(COST, {}),
            stage1_cost=attributes.get(STAGE1_COST),
            stage2_cost=attributes.get(STAGE2_COST),
        )

    @property
    def finished_value(self) -> float | None:
        """The final objective of a finished trial; None of any other."""
        return self.final[0] if self.final is not None and self.state == TrialState.COMPLETE else None


def stopped_attributes(rung: Rung) -> dict[str, Any]:
    """Attributes of a trial that was stopped at a rung."""
    return {STOPPED: str(rung)} | ({STOPPED_IN_STAGE1: True} if rung.stage == 1 else {})


def records_of(trials: Iterable[FrozenTrial]) -> list[TrialRecord]:
    """The records of trials, in their order."""
    return [TrialRecord.of(trial) for trial in trials]


def rung_records(trials: Iterable[TrialRecord], rungs: Iterable[Rung]) -> list[Record]:
    """The records that count at the rungs: the state of a `RungMachine`."""
    points = tuple(rungs)
    return [
        Record(rung, entry.key, entry.value, entry.standard_error)
        for trial in trials
        for rung in points
        if (entry := trial.rungs.get(rung)) is not None and entry.counts
    ]


def first_decisions(trials: Iterable[TrialRecord]) -> dict[tuple[Rung, str], Decision]:
    """The decision about each key at each rung when it was first recorded there."""
    return {
        (rung, entry.key): entry.decision for trial in trials for rung, entry in trial.rungs.items() if entry.counts
    }


def stage1_scores(trials: Iterable[TrialRecord], rungs: Iterable[Rung]) -> Stage1Scores:
    """Probe scores of stage-1 addresses at the rungs, and the best final objective of each."""
    scores = Stage1Scores(rungs)
    for trial in trials:
        for rung, entry in trial.rungs.items():
            if entry.counts:
                scores.record(rung, entry.key, entry.value, entry.head_value)
        if trial.finished_value is not None and trial.address is not None:
            scores.finish(trial.address, trial.finished_value)
    return scores


def _rung(name: str) -> Rung:
    stage, step = name.removeprefix(_RUNG_PREFIX).split(":")
    return Rung(int(stage), int(step))

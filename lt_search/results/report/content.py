"""What a report about a run shows, as plain values: whoever owns a run fills them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lt_search.pruning.probe_audit import ProbeAudit

TrialState = Literal["finished", "pruned", "failed", "running", "interrupted"]


@dataclass(frozen=True)
class StepValue:
    """What one step of one trial gave."""

    stage: int
    """1 or 2."""
    step: int
    """Steps of this stage that are done, from 1."""
    value: float
    """The objective on the validation split: of the probe in stage 1, of the model in stage 2."""
    head: float | None = None
    """In stage 1, the objective of the model's own head."""


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    number: int
    state: TrialState
    params: Mapping[str, object]
    """Searched parameters that were active, by name: numbers, strings, booleans or None."""
    history: Sequence[StepValue] = ()
    """In the order of progress."""
    value: float | None = None
    """The final objective; only a finished trial has one."""
    standard_error: float | None = None
    """Bootstrap standard error of `value`."""
    seconds: float | None = None
    """Time it has trained and been evaluated."""
    reason: str = ""
    """Why it failed: the last lines of its error."""


@dataclass(frozen=True)
class RungEntry:
    """One trial's value at one rung."""

    trial: int
    value: float
    stopped: bool
    """False where the trial went on."""
    standard_error: float | None = None


@dataclass(frozen=True)
class RungRow:
    """A rung with everything recorded there."""

    stage: int
    step: int
    """Steps of the stage that are done, from 1."""
    entries: Sequence[RungEntry]
    """In order of arrival."""


@dataclass(frozen=True)
class Score:
    """A value with its bootstrap standard error."""

    value: float
    standard_error: float | None = None
    """None or NaN where it is not known."""


@dataclass(frozen=True)
class ClassScore:
    """One class of the winner's validation scores."""

    name: str
    group: str
    """`head`, `medium` or `tail`."""
    train_images: int
    score: Score | None
    """None where the split has too few images of the class to score it."""


@dataclass(frozen=True)
class Winner:
    """The best finished trial's validation scores."""

    trial: int
    overall: Score
    groups: Mapping[str, Score]
    """By `head`, `medium`, `tail`; those that have scored classes."""
    classes: Sequence[ClassScore]
    """In class order; empty where the metric has no per-class values."""
    class_title: str
    """What a class's score is, in words, such as `average precision`."""


@dataclass(frozen=True)
class Cost:
    """Where the time went, in seconds summed over trials."""

    spent: float
    saved_by_pruning: float
    """Estimated time that stopped trials would have taken to the end."""
    saved_by_reuse: float | None = None
    """Time of stage 1 that trials did not train again; None where reuse is off."""


@dataclass(frozen=True)
class ReportData:
    """All that the report shows."""

    title: str
    """Such as the run's name."""
    facts: Mapping[str, str]
    """Run facts in the order to print: space, data set, split, seeds, trainer, versions, start, end, ..."""
    metric: str
    """The objective's name, such as `mAP`."""
    metric_title: str
    """The objective in words, such as `mean average precision`."""
    trials: Sequence[TrialRow]
    rungs: Sequence[RungRow]
    """In the order a trial meets them."""
    winner: Winner | None
    """None while no trial has finished."""
    importances: Mapping[str, float]
    """By parameter, summing to 1; empty where they cannot be computed."""
    cost: Cost
    probe_audit: Sequence[ProbeAudit] = ()
    """Rank correlation between probe score and final objective at each stage-1 rung."""
    default_trial: int | None = None
    """The trial with the paper's values, if the run has one."""
    log_parameters: frozenset[str] = frozenset()
    """Parameters that are searched on a log scale."""
    notes: Sequence[str] = field(default=())
    """Sentences the reader should know first: bundled data, an interrupted run, classes not counted, ..."""

    def finished(self) -> list[TrialRow]:
        """Finished trials, best first; equal values in order of number."""
        done = [trial for trial in self.trials if trial.state == "finished" and trial.value is not None]
        return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))

    def searched(self) -> list[str]:
        """All searched parameters, in order of first appearance."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.params))

"""Contents of a run's report as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lt_search.pruning.probe_audit import ProbeAudit
from lt_search.results.report.text import known, parameter_text

TrialState = Literal["finished", "pruned", "failed", "running", "interrupted"]
"""An interrupted trial is unfinished while no driver holds the run: `--resume` continues it."""


@dataclass(frozen=True)
class StepValue:
    """Scores of one trial after one step."""

    stage: int
    """1 or 2."""
    step: int
    """Completed steps of this stage, from 1."""
    value: float
    """The objective on the validation split: of the probe in stage 1, of the model in stage 2."""
    head: float | None = None
    """In stage 1, the objective of the stage-1 head."""


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
    """Time spent on training and evaluation."""
    reason: str = ""
    """Why it failed: the last lines of its error."""


@dataclass(frozen=True)
class RungEntry:
    """One trial's value at one rung."""

    trial: int
    value: float
    stopped: bool
    """False where the trial continued."""
    standard_error: float | None = None


@dataclass(frozen=True)
class RungRow:
    """One rung with its records."""

    stage: int
    step: int
    """Completed steps of the stage, from 1."""
    entries: Sequence[RungEntry]
    """In order of arrival."""


@dataclass(frozen=True)
class Score:
    """A value with its bootstrap standard error."""

    value: float
    standard_error: float | None = None
    """None or NaN where unknown."""


@dataclass(frozen=True)
class ClassScore:
    """One class of the winner's validation scores."""

    name: str
    group: str
    """`head`, `medium` or `tail`."""
    train_images: int
    score: Score | None
    """None where the split has too few images of the class."""


@dataclass(frozen=True)
class Winner:
    """The best finished trial's validation scores."""

    trial: int
    overall: Score
    groups: Mapping[str, Score]
    """By `head`, `medium`, `tail`; groups without scored classes are absent."""
    classes: Sequence[ClassScore]
    """In class order; empty where the metric has no per-class values."""
    class_title: str
    """Name of a class's score, such as `average precision`."""

    def by_frequency(self) -> list[ClassScore]:
        """Classes from most to fewest training images, as the class groups rank them."""
        return sorted(self.classes, key=lambda score: -score.train_images)


@dataclass(frozen=True)
class Cost:
    """Time spent and saved, in seconds summed over trials."""

    spent: float
    saved_by_pruning: float
    """Estimated time that pruned trials would have taken to the end."""
    saved_by_reuse: float | None = None
    """Stage-1 training time of reused artefacts; None where reuse is off."""

    @property
    def saved(self) -> float:
        """Time saved by pruning and by reuse."""
        return self.saved_by_pruning + (self.saved_by_reuse or 0.0)

    @property
    def total(self) -> float:
        """Time that the search would have taken with neither."""
        return self.spent + self.saved


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows."""

    title: str
    """The run's name."""
    facts: Mapping[str, str]
    """Facts about the run by name, in the order to show: space, data set, split, seed, versions, ..."""
    metric: str
    """The objective's name, such as `mAP`."""
    metric_title: str
    """The objective in words, such as `mean average precision`."""
    trials: Sequence[TrialRow]
    rungs: Sequence[RungRow]
    """In the order in which a trial reaches them."""
    winner: Winner | None
    """None while no trial has finished, or where the last step of the best one cannot be read."""
    importances: Mapping[str, float]
    """By parameter, summing to 1; empty where they cannot be computed."""
    cost: Cost
    probe_audit: Sequence[ProbeAudit] = ()
    """For each stage-1 rung, the rank correlation between probe score and final objective."""
    default_trial: int | None = None
    """Number of the trial with the paper's values, if the run has one."""
    log_parameters: frozenset[str] = frozenset()
    """Parameters searched on a log scale."""
    notes: Sequence[str] = ()
    """Sentences to show first: bundled data, interrupted trials, damaged logs, ..."""

    def finished(self) -> list[TrialRow]:
        """Finished trials, best first; equal values in order of number."""
        done = [trial for trial in self.trials if trial.state == "finished" and trial.value is not None]
        return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))

    def finished_default(self) -> TrialRow | None:
        """The trial with the paper's values, once it has finished."""
        return next((trial for trial in self.finished() if trial.number == self.default_trial), None)

    def counts(self) -> dict[TrialState, int]:
        """Number of trials by state, without states that no trial is in."""
        counts = Counter(trial.state for trial in self.trials)
        return {state: counts[state] for state in get_args(TrialState) if counts[state]}

    def searched(self) -> list[str]:
        """All searched parameters, in order of first appearance."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.params))

    def varying(self) -> list[str]:
        """Searched parameters that differ between trials; all of them where there is one trial."""
        names = self.searched()
        if len(self.trials) < 2:
            return names
        return [name for name in names if len({parameter_text(t.params.get(name, "–")) for t in self.trials}) > 1]

    def reached_rungs(self) -> list[RungRow]:
        """Rungs that a trial has reached."""
        return [rung for rung in self.rungs if rung.entries]

    def has_curve(self, stage: int) -> bool:
        """Whether a trial has a value of this stage."""
        return any(step.stage == stage and known(step.value) for trial in self.trials for step in trial.history)

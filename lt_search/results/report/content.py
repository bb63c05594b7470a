"""Contents of a run's report as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lt_search.results.report.text import known, parameter_text
from lt_search.results.summary import RungSummary, RunSummary, TrialSummary
from lt_search.storage.records import StepReport

STATES = ("finished", "pruned", "failed", "running", "interrupted")
"""States of a trial in the order to show. `--resume` continues an interrupted one, which no driver holds."""


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
    summary: RunSummary
    history: Mapping[int, Sequence[StepReport]]
    """Logged steps that have a score, by trial; trials without any may be absent."""
    winner: Winner | None
    """None while no trial has finished, or where the last step of the best one cannot be read."""
    importances: Mapping[str, float]
    """By parameter, summing to 1; empty where they cannot be computed."""
    cost: Cost
    default_trial: int | None = None
    """Number of the trial with the paper's values, if the run has one."""
    log_parameters: frozenset[str] = frozenset()
    """Parameters searched on a log scale."""
    notes: Sequence[str] = ()
    """Sentences to show first: bundled data, interrupted trials, damaged logs, ..."""

    def finished_default(self) -> TrialSummary | None:
        """The trial with the paper's values, once it has finished."""
        return next((trial for trial in self.summary.leaderboard if trial.number == self.default_trial), None)

    def counts(self) -> dict[str, int]:
        """Number of trials by state, without states that no trial is in."""
        counts = Counter(trial.state for trial in self.summary.trials)
        return {state: counts[state] for state in STATES if counts[state]}

    def searched(self) -> list[str]:
        """All searched parameters, in order of first appearance."""
        return list(dict.fromkeys(name for trial in self.summary.trials for name in trial.params))

    def varying(self) -> list[str]:
        """Searched parameters that differ between trials; all of them where there is one trial."""
        names, trials = self.searched(), self.summary.trials
        if len(trials) < 2:
            return names
        return [name for name in names if len({parameter_text(t.params.get(name, "–")) for t in trials}) > 1]

    def reached_rungs(self) -> list[RungSummary]:
        """Rungs that a trial has reached."""
        return [rung for rung in self.summary.rungs if rung.reached]

    def head_value(self, step: StepReport) -> float | None:
        """The objective of the stage-1 head after a step of stage 1; None in stage 2."""
        return step.scalars.get(self.metric) if step.stage == 1 else None

    def has_curve(self, stage: int) -> bool:
        """Whether a trial has a value of this stage."""
        return any(step.stage == stage and known(step.value) for steps in self.history.values() for step in steps)

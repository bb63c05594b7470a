"""What the driver and a trial tell each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lt_search.rungs import Rung

if TYPE_CHECKING:
    from pathlib import Path

    from lt_search.data.table import Dataset, Part
    from lt_search.spec import RunSpec
    from trainers.base import Task, Weights


@dataclass(frozen=True)
class TrialJob:
    """One trial, as handed to a worker."""

    number: int
    attempt: int
    """Raised each time the trial is handed out; names its checkpoints, so that a left-over worker does no harm."""
    config: Mapping[str, Any]
    """The full trainer config, nested."""


@dataclass(frozen=True)
class RunInputs:
    """What all trials of a run share. Holds no test image, label or path."""

    trainer: str
    task: Task
    n_classes: int
    train_counts: tuple[int, ...]
    """Training images per class."""
    train: Part
    val: Part
    image_size: int
    metric: str
    seed: int
    stage_lengths: tuple[int, int]
    rungs: tuple[Rung, ...]
    resources: Mapping[str, Weights]
    """Resolved tensor files by key."""
    run_folder: str
    """Absolute path of the run, for checkpoints."""

    @classmethod
    def of(cls, spec: RunSpec, dataset: Dataset, weights: Mapping[str, Weights], run_folder: Path) -> RunInputs:
        """The inputs of a run: train and val, never test."""
        return cls(
            trainer=spec.trainer,
            task=dataset.task,
            n_classes=len(dataset.classes),
            train_counts=tuple(spec.data.train_counts),
            train=dataset.train,
            val=dataset.val,
            image_size=spec.data.image_size,
            metric=spec.metric,
            seed=spec.seed,
            stage_lengths=spec.stage_lengths,
            rungs=spec.rung_list,
            resources=weights,
            run_folder=str(run_folder),
        )


@dataclass(frozen=True)
class StepReport:
    """One finished step of a trial, or its failure."""

    number: int
    attempt: int
    stage: int
    step: int
    """Steps of the stage that are done."""
    final: bool = False
    """Whether this was the last step of stage 2."""
    value: float | None = None
    """Objective: the probe's in stage 1 (at rungs and at the stage's end), the head's in stage 2."""
    standard_error: float | None = None
    """Bootstrap standard error of `value`; only at rungs and at the end."""
    seconds: float = 0.0
    """Time this step took, evaluation included."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Losses and validation metrics by name."""
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    """Validation metrics of every class by metric name."""
    score_errors: dict[str, Any] = field(default_factory=dict)
    """At the end: bootstrap standard errors of the objective's `groups` (by name) and `per_class` (in class order)."""
    device: str = "cpu"
    """Where it was computed."""
    threads: int = 1
    """Threads that torch used; another number can move the last bits of a sum."""
    failure: str | None = None
    """Why the trial failed, with the last lines of its traceback; None if it did not."""
    storage_failure: str | None = None
    """Why a checkpoint could not be written (a full disk); no fault of the trial, which stays resumable."""

    @property
    def rung(self) -> Rung:
        """The point this report stands at."""
        return Rung(self.stage, self.step)

    @property
    def ended(self) -> bool:
        """Whether the trial has nothing more to do."""
        return self.final or self.failure is not None or self.storage_failure is not None

    def to_json(self) -> str:
        """The report as one line of JSON (NaN is written as NaN, which Python reads back)."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StepReport:
        """Reads `to_json`'s output."""
        return cls(**json.loads(text))

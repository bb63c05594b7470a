"""What the driver and a trial tell each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lt_search.rungs import Rung
from lt_search.spec import trainer_type
from lt_search.trainer_source import source_digest

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
    address: str = ""
    """Of its stage 1, see `lt_search.address`; empty where stage 1 is not shared."""
    compute: str = ""
    """What that address says it is computed on, see `lt_search.address.compute_kind`."""
    stage1_stored: bool = False
    """Whether the driver saw that stage 1 in the stage store."""


@dataclass(frozen=True)
class RunInputs:
    """What all trials of a run share. Holds no test image, label or path."""

    trainer: str
    task: Task
    n_classes: int
    train_counts: tuple[int, ...]
    """Training images per class."""
    train: Part
    extra: tuple[Part, ...]
    """Further training images, whose labels may be unknown (-1); `train_counts` does not count them."""
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
    stage_storage: str | None = None
    """Absolute path of the storage whose stage 1s the run shares; None: each trial trains its own."""
    source: str | None = None
    """The trainer's code that addresses are made with, see `lt_search.trainer_source`."""

    @classmethod
    def of(
        cls,
        spec: RunSpec,
        dataset: Dataset,
        weights: Mapping[str, Weights],
        run_folder: Path,
        stage_storage: Path | None = None,
    ) -> RunInputs:
        """The inputs of a run: train, with the data set's further training data, and val; never test."""
        return cls(
            trainer=spec.trainer,
            task=dataset.task,
            n_classes=len(dataset.classes),
            train_counts=tuple(spec.data.train_counts),
            train=dataset.train,
            extra=tuple(extra.train for extra in dataset.extra),
            val=dataset.val,
            image_size=spec.data.image_size,
            metric=spec.metric,
            seed=spec.seed,
            stage_lengths=spec.stage_lengths,
            rungs=spec.rung_list,
            resources=weights,
            run_folder=str(run_folder),
            stage_storage=None if stage_storage is None else str(stage_storage),
            source=source_digest(trainer_type(spec.trainer)),
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
    reused_from: str | None = None
    """Run and trial that trained this stage-1 step, where this trial took it from the stage store (see
    `lt_search.checkpoints.trainer_of`)."""
    stage1_seconds: float | None = None
    """At the end of a stage 1 from the store: what training it cost."""
    history: list[StepReport] = field(default_factory=list)
    """At the end of a stage 1 from the store: the reports of its earlier steps that stand at rungs."""
    warning: str | None = None
    """What the user should know, though the trial goes on."""

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
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StepReport:
        """Reads what `dataclasses.asdict` made of a report."""
        earlier = [cls.from_dict(report) for report in content.get("history", ())]
        return cls(**{**content, "history": earlier})

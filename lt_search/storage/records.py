"""Reports of trial steps, and the per-trial log that keeps them (`metrics.jsonl`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lt_search.pruning.rungs import Rung
from lt_search.storage.run_folder import trial_folder

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore


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
    `lt_search.storage.checkpoints.trainer_of`)."""
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


def read_reports(store: FolderStore, number: int) -> list[StepReport]:
    """The logged reports of a trial, one per step, in order. A line cut off by a kill is left out."""
    name = f"{trial_folder(number)}/metrics.jsonl"
    if not store.exists(name):
        return []
    reports: dict[Rung, StepReport] = {}
    for line in store.read(name).decode().splitlines():
        try:
            report = StepReport.from_json(line)
        except (json.JSONDecodeError, TypeError):
            continue
        reports.setdefault(report.rung, report)
    return [reports[rung] for rung in sorted(reports)]


def last_step(store: FolderStore, number: int) -> Rung:
    """How far a trial has come; stage 0 before its first step."""
    return max((report.rung for report in read_reports(store, number)), default=Rung(0, 0))

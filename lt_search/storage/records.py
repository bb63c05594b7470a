"""Step reports of a trial, and the log that holds them (`metrics.jsonl`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from lt_search.errors import Problem, UserError
from lt_search.pruning.rungs import Rung
from lt_search.storage.run_folder import repair_command, trial_folder
from lt_search.storage.strict_json import dumps, finite

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
    """Kind of device it was computed on."""
    threads: int = 1
    """Threads that torch used; another number can change the last bits of a sum."""
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
    """At the end of a stage 1 from the store: the reports of its earlier steps at rungs."""
    warning: str | None = None
    """What the user should know, though the trial continues."""

    @property
    def rung(self) -> Rung:
        """The stage and step of this report."""
        return Rung(self.stage, self.step)

    @property
    def ended(self) -> bool:
        """Whether the trial has nothing more to do."""
        return self.final or self.failure is not None or self.storage_failure is not None

    def to_plain(self) -> dict[str, Any]:
        """The report as JSON values; NaN and infinities become None."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def to_json(self) -> str:
        """The report as one line of standard JSON."""
        return dumps(asdict(self))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> StepReport:
        """The report that `to_plain` was called on; scalars that are None become NaN again.

        Raises:
            ValueError, TypeError: if a value has another type than its field, or a field is missing or unknown.
        """
        content = dict(plain)
        if unknown := content.keys() - cls.__dataclass_fields__.keys():
            raise ValueError(f"a step report has no {', '.join(sorted(unknown))}")
        scalars = dict(content.get("scalars", {})).items()
        content["scalars"] = {name: math.nan if value is None else value for name, value in scalars}
        content["history"] = [cls.from_plain(report) for report in content.get("history", ())]
        return _validator().validate_python(content)

    @classmethod
    def from_json(cls, text: str | bytes) -> StepReport:
        """The report that `to_json` was called on; raises as `from_plain` does."""
        return cls.from_plain(json.loads(text))


@cache
def _validator() -> TypeAdapter[StepReport]:
    return TypeAdapter(StepReport)


def log_name(number: int) -> str:
    """Name of a trial's log in the run's store."""
    return f"{trial_folder(number)}/metrics.jsonl"


def read_reports(store: FolderStore, number: int) -> list[StepReport]:
    """The logged reports of a trial, one per step, in order. A line that was cut off by a kill is skipped.

    Raises:
        UserError: if another line is not a report.
    """
    reports: dict[Rung, StepReport] = {}
    try:
        lines = store.read(log_name(number)).splitlines()
    except FileNotFoundError:
        return []
    for line_number, line in enumerate(lines, start=1):
        try:
            report = StepReport.from_json(line)
        except (ValueError, TypeError, RecursionError) as error:
            if is_torn(line):
                continue
            place = f"{store.path(log_name(number))}, line {line_number}"
            raise UserError(Problem(place, "is damaged", repair_command(store.root))) from error
        reports.setdefault(report.rung, report)
    return [reports[rung] for rung in sorted(reports)]


def is_torn(line: bytes) -> bool:
    """Whether a line that is not a report may be the beginning of one, cut off by a kill or a power cut."""
    begun = line.rstrip(b"\0")
    return begun.isascii() and (begun.startswith(_BEGIN) or _BEGIN.startswith(begun))


_BEGIN = b'{"number": '


def last_step(store: FolderStore, number: int) -> Rung:
    """The last step in a trial's log; stage 0 before its first step."""
    return max((report.rung for report in read_reports(store, number)), default=Rung(0, 0))

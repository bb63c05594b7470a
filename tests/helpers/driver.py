"""A controller over a folder, which can be killed and started again, and reports to give it."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial

from lt_search.config.spec import RunSpec
from lt_search.samplers import ReseededSampler
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, sole_driver
from lt_search.storage.records import StepReport
from lt_search.storage.schema import TRIALS
from lt_search.training.inputs import TrialJob
from lt_search.tuning.controller import Controller
from lt_search.tuning.run_log import LOG

WARNING = "warning: "


class Driver:
    """A controller over a folder, that can be killed and started again."""

    def __init__(
        self, spec: RunSpec, folder: Path, trials: int = 20, storage: Path | None = None, compute: str = "cpu:1"
    ) -> None:
        with sole_driver(folder):
            self.journal = Journal(folder / "journal.log", ReseededSampler(spec.seed))
        self.journal.study.set_user_attr(TRIALS, trials)
        self.store = FolderStore(folder)
        self.controller = Controller(
            spec,
            self.journal,
            self.store,
            stage_storage=None if storage is None else FolderStore(storage),
            compute=compute,
        )

    @property
    def log(self) -> list[str]:
        """The lines of the run's log, without their times; warnings left out."""
        return [line for line in self._lines() if not line.startswith(WARNING)]

    @property
    def warnings(self) -> list[str]:
        return [line.removeprefix(WARNING) for line in self._lines() if line.startswith(WARNING)]

    def _lines(self) -> list[str]:
        if not self.store.exists(LOG):
            return []
        return [line.split(" ", 1)[1] for line in self.store.read(LOG).decode().splitlines()]

    def job(self) -> TrialJob:
        job = self.controller.next_job()
        assert job is not None
        return job

    def trial(self, number: int) -> FrozenTrial:
        return self.journal.trial(number)


def report(number: int, stage: int, step: int, value: float | None = 0.5, **more: object) -> StepReport:
    return StepReport(number, 1, stage, step, value=value, standard_error=0.0, seconds=1.0, **more)  # type: ignore[arg-type]

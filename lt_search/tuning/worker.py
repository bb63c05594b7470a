"""The Ray worker of a trial: a thin shell around `TrialSession` whose process serves many trials."""

from __future__ import annotations

from typing import Any

import torch
from ray import tune

from lt_search.storage.records import StepReport
from lt_search.training.inputs import LoadedInputs, RunInputs, TrialJob
from lt_search.training.session import TrialSession, failed_report
from lt_search.tuning.adapters import JOB, REPORT


class StagedTrial(tune.Trainable):
    """Trains one trial after another in a warm process.

    Starting a process with torch costs more than many a stage 2, so `reset_config` takes the next trial. Errors are
    reported as results, since a trial that raises would take its warm process with it.
    """

    def setup(
        self, config: dict[str, Any], inputs: RunInputs | None = None, threads: int = 1, device: str = "cpu"
    ) -> None:
        """Takes the run's inputs (once per process) and the first job."""
        assert inputs is not None
        torch.set_num_threads(threads)
        self._loaded = LoadedInputs(inputs, torch.device(device))
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next job in the same process."""
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self._job = TrialJob(**config[JOB])
        self._session: TrialSession | None = None

    def step(self) -> dict[str, Any]:
        """One step of training, as a result for the driver."""
        report = self._advance()
        return {REPORT: report.to_json(), "done": report.ended}

    def _advance(self) -> StepReport:
        if self._session is None:
            try:
                self._session = TrialSession(self._job, self._loaded)
            except Exception as error:  # a config that cannot be built fails its trial, not the search
                return failed_report(self._job, 1, 0, error)
        report = self._session.advance()
        if report.ended:
            self._session = None  # frees the model before the next trial builds its own
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing through Ray: the session keeps its own checkpoints in the run's store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Loads nothing through Ray, see `save_checkpoint`."""

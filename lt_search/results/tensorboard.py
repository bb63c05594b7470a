"""TensorBoard scalars of every trial, written by the driver so that no step appears twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_search.results.callbacks import SearchCallback
from lt_search.storage.run_folder import trial_folder

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore
    from lt_search.storage.records import StepReport


class TensorBoardLog(SearchCallback):
    """Writes the scalars of reports under `trials/<number>/tensorboard`.

    Args:
        store: the run's files.
        stage1_length: steps of stage 1; stage 2 continues the count.
    """

    def __init__(self, store: FolderStore, stage1_length: int) -> None:
        self._store = store
        self._stage1_length = stage1_length
        self._writers: dict[int, Any] = {}

    def on_step(self, report: StepReport) -> None:
        """Writes one step's scalars."""
        writer = self._writer(report.number)
        step = report.step + (self._stage1_length if report.stage == 2 else 0)
        for name, value in report.scalars.items():
            writer.add_scalar(f"stage{report.stage}/{name}", value, step)
        if report.value is not None:
            writer.add_scalar("objective", report.value, step)
        writer.flush()

    def on_trial_end(self, number: int) -> None:
        """Closes the trial's file."""
        writer = self._writers.pop(number, None)
        if writer is not None:
            writer.close()

    def on_search_end(self) -> None:
        """Closes all files."""
        for number in list(self._writers):
            self.on_trial_end(number)

    def _writer(self, number: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if number not in self._writers:
            folder = self._store.path(f"{trial_folder(number)}/tensorboard")
            self._writers[number] = SummaryWriter(str(folder))
        return self._writers[number]

"""The journal of a run: an Optuna journal file that one driver writes and anybody may read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_search.errors import Problem, UserError
from lt_search.locks import held, is_held

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, TrialState

STUDY_NAME = "lt-search"
DRIVER_LOCK = "driver.lock"


@contextmanager
def sole_driver(run_folder: Path) -> Iterator[None]:
    """Holds the run for this process, see `held`, and mends what a killed driver left behind.

    Raises:
        UserError: if another process drives the run.
    """

    def taken(holder: str) -> Problem:
        fix = f"wait for it, stop it, or look on with `lt-search status {run_folder}`"
        return Problem("--resume", f"the run {run_folder.name} is being driven by {holder}", fix)

    with held(run_folder / DRIVER_LOCK, taken):
        _mend(run_folder / "journal.log")
        yield


def is_driven(run_folder: Path) -> bool:
    """Whether a process drives the run now."""
    return is_held(run_folder / DRIVER_LOCK)


class NoTrialsYetError(UserError):
    """A run whose journal was not begun."""

    def __init__(self, path: Path) -> None:
        super().__init__(Problem(str(path.parent), "has no trials yet", f"go on with it: --resume {path.parent.name}"))


def _damaged_line(journal: Path) -> int:
    """The number of the first line that is no entry of a journal, from 1."""
    lines = journal.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)["op_code"]
        except (ValueError, KeyError, TypeError):
            return number
    return len(lines)


def _mend(journal: Path) -> None:
    """Cuts a line that was being written when its driver was killed, and drops that driver's lock file.

    Either would make the journal unreadable or slow to open (Optuna waits 30 s for a stale lock).
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logging.getLogger(__name__).warning(
                "the journal's last line was cut off by a kill: %d bytes dropped", len(content) - whole
            )
            file.truncate(whole)


class Journal:
    """A run's study: the only truth about its trials. Larger values are better.

    Args:
        path: the journal file; created if needed.
        sampler: proposes; None for readers.
    """

    def __init__(self, path: Path, sampler: optuna.samplers.BaseSampler | None = None) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._waiting, self._running = optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING
        try:
            self._storage = JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
        except (ValueError, KeyError, TypeError) as error:  # JSONDecodeError is a ValueError
            fix = "bring it back from a copy; what stands before the damaged line is whole"
            raise UserError(Problem(str(path), f"line {_damaged_line(path)} is damaged", fix)) from error
        if sampler is None:
            try:
                self.study = optuna.load_study(study_name=STUDY_NAME, storage=self._storage)
            except KeyError as error:
                raise NoTrialsYetError(path) from error
        else:
            self.study = optuna.create_study(
                study_name=STUDY_NAME,
                storage=self._storage,
                direction="maximize",
                sampler=sampler,
                load_if_exists=True,
            )
        self._study_id = self._storage.get_study_id_from_name(STUDY_NAME)

    @classmethod
    def reader(cls, path: Path) -> Journal:
        """Opens a journal that another process may be writing, to look on.

        Raises:
            NoTrialsYetError: if there is no journal yet.
        """
        if not path.exists():
            raise NoTrialsYetError(path)
        return cls(path)

    def trials(self) -> list[FrozenTrial]:
        """All trials by number; read only."""
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def started(self) -> list[FrozenTrial]:
        """All trials that were ever handed out, by number; read only."""
        return [trial for trial in self.trials() if trial.state != self._waiting]

    def unfinished(self) -> list[FrozenTrial]:
        """Trials that were proposed and did not end, by number."""
        return [trial for trial in self.trials() if trial.state == self._running]

    def trial(self, number: int) -> FrozenTrial:
        """One trial; read only."""
        return self._storage.get_trial(self._id(number))

    def live_trial(self, number: int) -> optuna.Trial:
        """A trial that can still draw parameters, such as one whose driver was killed while it was proposed."""
        import optuna

        return optuna.Trial(self.study, self._id(number))

    def set(self, number: int, name: str, value: Any) -> None:
        """Writes a user attribute of a trial."""
        self._storage.set_trial_user_attr(self._id(number), name, value)

    def report(self, number: int, step: int, value: float) -> None:
        """Writes an intermediate value of a trial."""
        self._storage.set_trial_intermediate_value(self._id(number), step, value)

    def tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        """Ends a trial."""
        self.study.tell(number, value, state=state)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

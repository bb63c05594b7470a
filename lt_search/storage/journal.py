"""The journal of a run: an Optuna journal file with one writer and any number of readers, verified when opened."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_search.config.hints import resume_command
from lt_search.errors import Problem, UserError
from lt_search.locks import held, is_held
from lt_search.storage.files import sync_folder
from lt_search.storage.prefix_digests import PrefixRecorder, Verified, side_file, verify
from lt_search.storage.run_folder import JOURNAL, repair_command, trial_numbers

if TYPE_CHECKING:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial, TrialState

STUDY_NAME = "lt-search"
DRIVER_LOCK = "driver.lock"


@contextmanager
def sole_driver(run_folder: Path) -> Iterator[None]:
    """Holds the run for this process, see `held`, and removes what a killed driver left behind.

    Raises:
        UserError: if another process drives the run.
    """

    def taken(holder: str) -> Problem:
        fix = f"wait for it, stop it, or watch it with `lt-search status {shlex.quote(str(run_folder))}`"
        return Problem("--resume", f"the run {run_folder.name} is being driven by {holder}", fix)

    with held(run_folder / DRIVER_LOCK, taken):
        _cut_torn_line(run_folder / JOURNAL)
        yield


def is_driven(run_folder: Path) -> bool:
    """Whether a process drives the run now."""
    return is_held(run_folder / DRIVER_LOCK)


class NoTrialsYetError(UserError):
    """A run whose journal was not begun, and that has no trials."""

    def __init__(self, path: Path) -> None:
        super().__init__(Problem(str(path.parent), "has no trials yet", f"resume it: {resume_command(path.parent)}"))


class DamagedJournalError(UserError):
    """A journal that is not as it was written, or is behind the trials of its run."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(Problem(str(path), what, repair_command(path.parent)))


def unparsable_line(content: bytes) -> int | None:
    """The number of the first line that is not an entry of a journal, from 1; None if there is none."""
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            json.loads(line)["op_code"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return number
    return None


def _cut_torn_line(journal: Path) -> None:
    """Cuts a line that was being written when its driver was killed, and removes that driver's lock file.

    Either would make the journal unreadable or slow to open (Optuna waits 30 s for a stale lock).
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.is_file():
        return
    with journal.open("r+b") as file:
        content = file.read()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            logging.getLogger(__name__).warning(
                "the journal's last line was cut off by a kill: %d bytes dropped", len(content) - complete
            )
            file.truncate(complete)


def open_verified(path: Path) -> tuple[JournalStorage, Verified]:
    """Opens a journal file, created if needed.

    Raises:
        DamagedJournalError: if it is not as it was written.
        UserError: if it cannot be read or created.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    try:
        verified = verify(path)
        _check_prefixes(path, verified)
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
        if not verified.size:
            sync_folder(path.parent)
    except (UserError, MemoryError):
        raise
    except OSError as error:
        file = Path(error.filename or path)
        fix = "make it readable, and its folder writable" if file.is_file() else repair_command(path.parent)
        raise UserError(Problem(str(file), f"cannot be opened: {error.strerror}", fix)) from error
    except Exception as error:  # whatever a damaged entry makes Optuna raise
        line = unparsable_line(path.read_bytes())
        place = f"line {line}" if line is not None else f"an entry ({type(error).__name__}: {error})"
        raise DamagedJournalError(path, f"{place} is damaged") from error
    return storage, verified


def _check_prefixes(path: Path, verified: Verified) -> None:
    if verified.changed_before is None:
        return
    content = path.read_bytes() if path.exists() else b""
    first, last = (content[:end].count(b"\n") for end in (verified.length, verified.changed_before))
    if len(content) < verified.changed_before:
        what = f"has {len(content)} bytes, and had {verified.changed_before}: it was cut or is an older copy"
    else:
        what = f"lines {first + 1} to {last} are not as they were written: one was changed, removed or added"
    raise DamagedJournalError(path, what)


def count_trials(storage: JournalStorage) -> int:
    """How many trials a run's study has; 0 where there is no study."""
    try:
        return storage.get_n_trials(storage.get_study_id_from_name(STUDY_NAME))
    except KeyError:
        return 0


def shown_numbers(numbers: Collection[int]) -> str:
    """Numbers of trials as text, such as `3, 4, 5 and 12 more`."""
    shown = [str(number) for number in sorted(numbers)[:10]]
    more = len(numbers) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


class Journal:
    """A run's study: the single source of truth for the state of its trials. Larger values are better.

    Args:
        path: the journal file; created if needed.
        sampler: proposes; None for readers.

    Raises:
        DamagedJournalError: if the journal is not as it was written, or has fewer trials than the run.
        UserError: if it cannot be read or created.
    """

    def __init__(self, path: Path, sampler: optuna.samplers.BaseSampler | None = None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._waiting, self._running = optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING
        folders = trial_numbers(path.parent)  # first: a driver that is writing adds a trial to the journal before
        if folders and not path.exists():
            raise DamagedJournalError(path, f"is missing, and the run has {len(folders)} trials")
        self._storage, verified = open_verified(path)
        self._recorder = PrefixRecorder(path, verified)
        if beyond := {number for number in folders if number >= count_trials(self._storage)}:
            what = f"lacks trials {shown_numbers(beyond)}, which have folders: it was cut or is an older copy"
            raise DamagedJournalError(path, what)
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
        """Opens a journal that another process may be writing, and changes nothing.

        Raises:
            NoTrialsYetError: if there is no journal, and no trial.
        """
        if not path.exists() and not trial_numbers(path.parent) and not side_file(path).exists():
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
        """Ends a trial, and records what the journal is now."""
        self.study.tell(number, value, state=state)
        self._recorder.record()

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

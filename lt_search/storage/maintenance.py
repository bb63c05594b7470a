"""Commands `lt-search store list`, `verify` and `prune`: inspect, check and shrink the store of stage-1 artefacts."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lt_search.config.durations import show_duration
from lt_search.console import printer
from lt_search.errors import ExitCode, Problem, UserError
from lt_search.storage.checkpoints import shown_trainer
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, NoTrialsYetError, is_driven
from lt_search.storage.run_folder import COMPARISON, JOURNAL, run_names
from lt_search.storage.schema import ADDRESS
from lt_search.storage.stage_store import FOLDER, StageStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

SHOWN_DIGITS = 12
"""Digits of an address that a list shows."""


def list_stages(storage: FolderStore, console: Console) -> ExitCode:
    """Lists the artefacts, the most recently used first."""
    stages, say = StageStore(storage), printer(console)
    addresses = _addresses(stages)
    found = stages.stored()
    table = Table(title=f"Stage-1 artefacts in {storage.path(FOLDER)}", title_justify="left")
    for name in ("address", "trainer", "trained by", "probe", "cost", "size", "used"):
        right = name in {"cost", "size", "used"}
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "trained by", overflow="fold")
    now = time.time()
    for stage in found:
        probe = "-" if stage.probe is None else f"{stage.metric} {stage.probe:.4f}"
        cost, age = show_duration(stage.seconds), show_duration(max(0.0, now - stage.last_used))
        address = stage.address[:SHOWN_DIGITS]
        trained_by = shown_trainer(stage.trained_by)
        cells = (address, stage.trainer, trained_by, probe, cost, _size(stage.n_bytes), f"{age} ago")
        table.add_row(*map(Text, cells))  # names may look like markup
    console.print(table)
    say(f"{len(found)} stage-1 artefacts, {_size(sum(stage.n_bytes for stage in found))}")
    machines = Counter(", ".join(f"{key} {value}" for key, value in stage.trained_on.items()) for stage in found)
    for machine, count in machines.most_common():
        say(f"{count} trained on {machine or 'a machine that was not recorded'}")
    if len(addresses) > len(found):
        say(f"{len(addresses) - len(found)} more cannot be read; `lt-search store verify` names them")
    return ExitCode.DONE


def verify_stages(storage: FolderStore, console: Console) -> ExitCode:
    """Verifies every artefact; names those that cannot be used, and fails if there are any."""
    stages, say = StageStore(storage), printer(console)
    addresses = _addresses(stages)
    faults = {address: fault for address in addresses if (fault := stages.fault(address)) is not None}
    for address, fault in faults.items():
        say(f"{address}: {fault}")
    say(f"{len(addresses) - len(faults)} of {len(addresses)} stage-1 artefacts are intact")
    if faults:
        say("a damaged one is never used, but trained again; `lt-search store prune` removes it now")
    return ExitCode.FAILED if faults else ExitCode.DONE


def prune_stages(storage: FolderStore, keep_gb: float, console: Console) -> ExitCode:
    """Removes the least recently used artefacts until `keep_gb` GB are left, except those that running searches use.

    None is removed while it cannot be read which ones a running search uses. Fails where one cannot be removed.
    """
    stages, in_use, say = StageStore(storage), StagesInUse(storage), printer(console)
    before = len(_addresses(stages))
    try:
        in_use()
        pruned = stages.prune(keep_gb * 1e9, in_use)
        used = in_use()
    except UserError as error:
        for problem in error.problems:
            say(str(problem))
        say("the search is running, and which stage-1 artefacts it uses cannot be read: no more are removed")
        return ExitCode.FAILED
    left = stages.stored()
    freed, kept = sum(stage.n_bytes for stage in pruned.removed), sum(stage.n_bytes for stage in left)
    say(f"removed {before - len(_addresses(stages))} stage-1 artefacts, {_size(freed)}")
    count = sum(stage.address in used for stage in left)
    say(f"{len(left)} are left, {_size(kept)}; {count} of them are in use by running searches")
    if pruned.errors:
        say(f"{len(pruned.errors)} could not be removed; the first one: {pruned.errors[0]}")
        say("prune as a user, and on a machine, that may write to the storage")
        return ExitCode.FAILED
    return ExitCode.DONE


class StagesInUse:
    """The addresses of the stage-1 artefacts that running searches use: those of all trials in their journals.

    Each call checks all runs, and reads only the journals that have changed since the last one.

    Args:
        storage: the storage of the runs.
    """

    def __init__(self, storage: FolderStore) -> None:
        self._storage = storage
        self._read: dict[Path, tuple[tuple[int, int], set[str]]] = {}

    def __call__(self) -> set[str]:
        """The addresses now; raises `UserError` if the journal of a running search cannot be read."""
        found: set[str] = set()
        for folder in _runs(self._storage):
            if is_driven(folder.root) and folder.exists(JOURNAL):
                found |= self._of(folder.path(JOURNAL))
        return found

    def _of(self, journal: Path) -> set[str]:
        try:
            status = journal.stat()
            version = status.st_size, status.st_mtime_ns
            if self._read.get(journal, (None,))[0] != version:
                trials = Journal.reader(journal).trials()
                addresses = {str(trial.user_attrs[ADDRESS]) for trial in trials if ADDRESS in trial.user_attrs}
                self._read[journal] = version, addresses
        except (FileNotFoundError, NoTrialsYetError):  # not begun, or removed meanwhile
            return set()
        except OSError as error:
            raise UserError(Problem(str(journal), f"cannot be read: {error.strerror}")) from error
        return self._read[journal][1]


def stage_storage(folder: str) -> FolderStore:
    """The storage of `--storage`; raises `UserError` if the folder does not exist."""
    if not Path(folder).is_dir():
        raise UserError(Problem("--storage", f"there is no folder {folder}", "give the folder that holds the runs"))
    return FolderStore(Path(folder))


def _addresses(stages: StageStore) -> list[str]:
    try:
        return stages.addresses()
    except OSError as error:
        what = f"{stages.storage.path(FOLDER)} cannot be read: {error.strerror}"
        raise UserError(Problem("--storage", what, "give a storage that you may read")) from error


def _runs(storage: FolderStore) -> Iterator[FolderStore]:
    """The runs of a storage, those of comparisons included."""
    yield from (FolderStore(storage.path(name)) for name in run_names(storage))
    for name in storage.list(".", f"*/{COMPARISON}"):
        yield from _runs(FolderStore(storage.path(name).parent))


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"

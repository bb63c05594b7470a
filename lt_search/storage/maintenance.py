"""`lt-search store`: what stage 1s a storage holds, whether they are sound, and making room."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lt_search.config.durations import show_duration
from lt_search.errors import ExitCode, Problem, UserError
from lt_search.storage.checkpoints import shown_trainer
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, NoTrialsYetError, is_driven
from lt_search.storage.run_folder import COMPARISON, JOURNAL, run_names
from lt_search.storage.schema import ADDRESS
from lt_search.storage.stage_claims import claimed_addresses, drop_abandoned_claims
from lt_search.storage.stage_store import FOLDER, StageStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

SHOWN_DIGITS = 12
"""Digits of an address that a list shows."""


def list_stages(storage: FolderStore, console: Console) -> ExitCode:
    """Shows every stage 1, the one used last first."""
    stages = StageStore(storage)
    found = stages.stored()
    table = Table(title=f"Stage 1s in {stages.storage.path(FOLDER)}", title_justify="left")
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
    _say(console, f"{len(found)} stage 1s, {_size(sum(stage.n_bytes for stage in found))}")
    damaged = len(stages.addresses()) - len(found)
    if damaged:
        _say(console, f"{damaged} more cannot be read; `lt-search store verify` names them")
    return ExitCode.DONE


def verify_stages(storage: FolderStore, console: Console) -> ExitCode:
    """Reads every stage 1 whole; names those that are damaged, and fails if there are any."""
    stages = StageStore(storage)
    addresses = stages.addresses()
    damaged = 0
    for address in addresses:
        damage = stages.damage(address)
        if damage is not None:
            damaged += 1
            _say(console, f"{address}: {damage}")
    _say(console, f"{len(addresses) - damaged} of {len(addresses)} stage 1s are sound")
    if damaged:
        _say(console, "a damaged one is trained again when a trial wants it; `lt-search store prune` removes it now")
    return ExitCode.FAILED if damaged else ExitCode.DONE


def prune_stages(storage: FolderStore, keep_gb: float, console: Console) -> ExitCode:
    """Removes the stage 1s used least lately until `keep_gb` GB are left; those of runs that go on now stay.

    None is removed while it is not known which ones a run that goes on now uses.
    """
    stages, in_use = StageStore(storage), StagesInUse(storage)
    before = len(stages.addresses())
    drop_abandoned_claims(storage)
    try:
        in_use()
        removed = stages.prune(keep_gb * 1e9, in_use)
        used = in_use()
    except UserError as error:
        for problem in error.problems:
            _say(console, str(problem))
        _say(console, "the run goes on now, and which stage 1s it uses cannot be read: no more are removed")
        return ExitCode.FAILED
    left = stages.stored()
    freed, kept = sum(stage.n_bytes for stage in removed), sum(stage.n_bytes for stage in left)
    _say(console, f"removed {before - len(stages.addresses())} stage 1s, {_size(freed)}")
    count = sum(stage.address in used for stage in left)
    _say(console, f"{len(left)} are left, {_size(kept)}; {count} of them are in use by runs that go on now")
    return ExitCode.DONE


class StagesInUse:
    """The addresses of the stage 1s of runs that are being driven, and of those that are being trained.

    Each call looks again, but reads only the journals that have changed since the last one.

    Args:
        storage: where the runs are.
    """

    def __init__(self, storage: FolderStore) -> None:
        self._storage = storage
        self._read: dict[Path, tuple[tuple[int, int], set[str]]] = {}

    def __call__(self) -> set[str]:
        """The addresses now; raises `UserError` if the journal of a run that is being driven is damaged."""
        found = claimed_addresses(self._storage)
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
        return self._read[journal][1]


def stage_storage(folder: str) -> FolderStore:
    """The storage of `--storage`; raises `UserError` if there is no such folder."""
    if not Path(folder).is_dir():
        raise UserError(Problem("--storage", f"there is no folder {folder}", "give the folder in which runs are kept"))
    return FolderStore(Path(folder))


def _runs(storage: FolderStore) -> Iterator[FolderStore]:
    """The runs of a storage, those of comparisons included."""
    yield from (FolderStore(storage.path(name)) for name in run_names(storage))
    for name in storage.list(".", f"*/{COMPARISON}"):
        yield from _runs(FolderStore(storage.path(name).parent))


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)

"""Scheduling of shared stage-1 runs: one trial trains a configuration, the others that need it wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lt_search.storage.stage_store import StageStore

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore


class Stage1Scheduler:
    """Tracks which stage-1 artefacts exist, and which are being trained by a trial of this run.

    Two runs that share a storage may both train one address; they produce the same artefact, and the first one that is
    published stays.

    Args:
        storage: the storage whose stage-1 artefacts are shared; None: every trial trains its own.
    """

    def __init__(self, storage: FolderStore | None) -> None:
        self._store = None if storage is None else StageStore(storage)
        self._trained_by: dict[str, int] = {}
        self._reusing: dict[int, str] = {}
        """Addresses of trials that were admitted to a stored artefact and have not reported the end of stage 1."""
        self._seen: set[str] = set()

    @property
    def shares(self) -> bool:
        """Whether stage-1 artefacts are shared at all."""
        return self._store is not None

    def stored(self, address: str) -> bool:
        """Whether a trial of this address will start at stage 2; stays true where the artefact disappears later."""
        if self._store is not None and address not in self._seen and self._store.has(address):
            self._seen.add(address)
        return address in self._seen

    def admit(self, number: int, address: str) -> bool:
        """Whether a trial may start now; it becomes the one that trains its stage 1 if there is no artefact of it."""
        if self._store is None:
            return True
        if self._store.has(address):
            self._seen.add(address)
            self._reusing[number] = address
            return True
        # A stored artefact that is gone may have been damaged: a trial admitted to it before trains it again, and
        # reports that one step later.
        for earlier, wanted in self._reusing.items():
            if wanted == address:
                self.training(earlier, address)
        return self._trained_by.setdefault(address, number) == number

    def training(self, number: int, address: str) -> None:
        """Records that a trial trains this stage 1, such as one whose artefact was damaged."""
        if self._store is not None:
            self._trained_by.setdefault(address, number)

    def finished(self, number: int) -> None:
        """Records that a trial has finished its stage 1, or has ended."""
        self._reusing.pop(number, None)
        self._trained_by = {address: trainer for address, trainer in self._trained_by.items() if trainer != number}

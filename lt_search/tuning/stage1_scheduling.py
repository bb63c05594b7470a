"""Lets one trial train a stage 1, while the others that want the same one do other work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lt_search.storage.stage_claims import StageClaims
from lt_search.storage.stage_store import StageStore

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore


class StageGate:
    """Knows which stage 1s are finished, and which are being trained by this run or by another one.

    Args:
        storage: the storage whose stage 1s are shared; None where every trial trains its own.
        run: the run, by the path of its folder.
    """

    def __init__(self, storage: FolderStore | None, run: str) -> None:
        self._stages = None if storage is None else StageStore(storage)
        self._claims = None if storage is None else StageClaims(storage, run)
        self._trained_by: dict[str, int] = {}
        self._let_in: dict[int, str] = {}
        """Addresses of the trials that were let in to a stored stage 1 and have not got past it yet."""
        self._seen: set[str] = set()

    @property
    def shares(self) -> bool:
        """Whether stage 1s are shared at all."""
        return self._stages is not None

    def stored(self, address: str) -> bool:
        """Whether a trial of this address will start at stage 2; also where the artefact has vanished since."""
        if self._stages is not None and address not in self._seen and self._stages.has(address):
            self._seen.add(address)
        return address in self._seen

    def admit(self, number: int, address: str) -> bool:
        """Whether a trial may start. If its stage 1 is not there yet, it is the one that trains it."""
        if self._stages is None or self._claims is None:
            return True
        if self._stages.has(address):
            self._seen.add(address)
            self._let_in[number] = address
            return True
        # A stored one that is gone may have been damaged: who was let in before trains it, and says so a step later.
        for earlier, wanted in self._let_in.items():
            if wanted == address:
                self.training(earlier, address)
        if self._trained_by.get(address, number) != number or not self._claims.take(address):
            return False
        if self._stages.has(address):  # published by its holder just before the claim was given back
            self._claims.release(address)
            self._let_in[number] = address
            return True
        self._trained_by[address] = number
        return True

    def training(self, number: int, address: str) -> None:
        """Hears that a trial trains a stage 1, which may be one that was damaged."""
        if self._stages is not None and self._claims is not None and address not in self._trained_by:
            self._trained_by[address] = number
            self._claims.take(address)

    def finished(self, number: int) -> None:
        """Hears that a trial has finished its stage 1, or has ended."""
        self._let_in.pop(number, None)
        for address, holder in tuple(self._trained_by.items()):
            if holder == number:
                del self._trained_by[address]
                if self._claims is not None:
                    self._claims.release(address)

    def renew(self) -> None:
        """Called often while the run is driven: keeps its claims alive."""
        if self._claims is not None:
            self._claims.renew()

    def close(self) -> None:
        """Gives all claims back."""
        if self._claims is not None:
            self._claims.release_all()

"""Who trains a stage 1 just now, told between runs that share a storage.

A claim only saves work. Results never depend on it: where two runs train one stage 1 all the same, they make the same
artefact, and the first one to be published stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lt_search.storage.stage_store import ABANDONED_SECONDS, FOLDER, is_address

if TYPE_CHECKING:
    from lt_search.storage.files import FolderStore

SUFFIX = ".claim"

RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A claim that its holder did not renew for this long, as seen from here, is void: the holder is gone."""


FORGOTTEN_SECONDS = 3600.0
"""A claim of this age, by clocks that may differ between nodes, keeps nothing from being pruned."""


class StageClaims:
    """The claims of one run on addresses of the stage store.

    Args:
        storage: the storage that the runs share.
        run: the run, by the path of its folder. A run that goes on takes up the claims of its killed driver.
        clock: seconds that only grow; another node's clock is never compared with this one's.
    """

    def __init__(self, storage: FolderStore, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._own = {"run": run, "host": socket.gethostname(), "pid": os.getpid()}
        self._held: set[str] = set()
        self._renewed = clock()
        self._seen: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> bool:
        """Claims an address, unless another run that is alive holds it.

        Where claims cannot be written, nobody holds any.
        """
        if address in self._held:
            return True
        try:
            return self._take(address)
        except OSError:
            return True

    def _take(self, address: str) -> bool:
        name = _name(address)
        holder = _holder(self._storage, name)
        if holder is not None and holder.get("run") != self._own["run"] and not self._gone(name, holder):
            return False
        if holder is not None and not self._take_away(name, holder):
            return False
        if not self._storage.create(name, json.dumps(self._own)):
            return False
        self._held.add(address)
        return True

    def _take_away(self, name: str, holder: dict[str, Any]) -> bool:
        """Removes a void claim; False if another run was faster, whose fresh claim may be there now."""
        try:
            aside = self._storage.put_aside(name)
        except FileNotFoundError:
            return False
        found = _holder(self._storage, aside)
        self._storage.remove(aside)
        if found != holder:
            self._storage.create(name, json.dumps(found))
        return found == holder

    def release(self, address: str) -> None:
        """Gives a claim back; nothing happens if it is not held."""
        if address in self._held:
            self._held.remove(address)
            with contextlib.suppress(OSError):
                if _holder(self._storage, _name(address)) == self._own:  # another run may have found this one too slow
                    self._storage.remove(_name(address))

    def release_all(self) -> None:
        """Gives all claims back."""
        for address in tuple(self._held):
            self.release(address)

    def renew(self) -> None:
        """Tells the others that this run is alive; called often, acts now and then."""
        if self._clock() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = self._clock()
        for address in self._held:
            with contextlib.suppress(OSError):
                if _holder(self._storage, _name(address)) == self._own:
                    os.utime(self._storage.path(_name(address)))

    def _gone(self, name: str, holder: dict[str, Any]) -> bool:
        if holder.get("host") == self._own["host"] and not _alive(holder.get("pid")):
            return True
        try:
            changed = self._storage.path(name).stat().st_mtime
        except FileNotFoundError:
            return True
        last_change, since = self._seen.get(name, (None, 0.0))
        if changed != last_change:
            self._seen[name] = (changed, self._clock())
            return False
        return self._clock() - since > STALE_SECONDS


def claimed_addresses(storage: FolderStore) -> set[str]:
    """The addresses that are claimed, but for claims that nobody has renewed for long."""
    found = set()
    for name in storage.list(FOLDER, f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - storage.path(name).stat().st_mtime < FORGOTTEN_SECONDS:
                found.add(name.rsplit("/", 1)[-1].removesuffix(SUFFIX))
    return found


def drop_abandoned_claims(storage: FolderStore) -> None:
    """Removes the claims that nobody has renewed for very long, but for those of processes that live on this machine.

    What keeps one from being removed is no reason to stop: it serves nobody, and harms nobody.
    """
    for name in storage.list(FOLDER, f"*{SUFFIX}"):
        path = storage.path(name)
        with contextlib.suppress(OSError):
            abandoned = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
            if abandoned and is_address(path.name.removesuffix(SUFFIX)) and not _lives_here(_holder(storage, name)):
                storage.remove(name)


def _holder(storage: FolderStore, name: str) -> dict[str, Any] | None:
    """What a claim says of its holder; None if there is no such claim."""
    try:
        content = json.loads(storage.read(name))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _lives_here(holder: dict[str, Any] | None) -> bool:
    """Whether a holder is a process of this machine that is alive."""
    return holder is not None and holder.get("host") == socket.gethostname() and _alive(holder.get("pid"))


def _name(address: str) -> str:
    return f"{FOLDER}/{address}{SUFFIX}"


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

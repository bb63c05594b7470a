"""Finished stage 1s by address: trained once, shared by trials, runs and nodes, verified whenever they are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lt_search.storage.records import StepReport
from trainers.features.cache import KEPT_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lt_search.storage.files import FolderStore
    from trainers.base import State

FOLDER = "stage1"
"""Where in a storage the artefacts lie, one folder each, named by its address."""

TENSORS, MANIFEST = "stage1.safetensors", "manifest.json"

ADDRESS = re.compile(r"[0-9a-f]{32}")
"""What an address looks like, see `trainers.hashing.content_hash`. Users may keep other things beside artefacts."""

FORMAT = 1
"""Raised when the layout of an artefact changes; others are not read."""


class DamagedArtefactError(Exception):
    """An artefact that is there and is not what was published."""


class OtherFormatError(DamagedArtefactError):
    """An artefact of another version of lt-search, which may be sound."""


@dataclass(frozen=True)
class StageOne:
    """A finished stage 1."""

    state: State
    """What the trainer's `finished_stage1` gave."""
    features: Mapping[str, Tensor]
    """Features of the splits (`train`, `val`), float32, where they were at hand and small enough."""
    history: tuple[StepReport, ...]
    """The reports of all its steps, in order: losses, validation scores, the probe's at rungs."""
    metric: str
    """The objective that `value` and `standard_error` of the history are of."""
    trained_by: str
    """Run and trial that paid for it, see `lt_search.storage.checkpoints.trainer_of`."""
    trainer: str

    @property
    def seconds(self) -> float:
        """What it cost: training and evaluation of all its steps."""
        return sum(report.seconds for report in self.history)


@dataclass(frozen=True)
class StoredStage:
    """What is known of an artefact without reading its tensors."""

    address: str
    n_bytes: int
    seconds: float
    """What training it cost."""
    trainer: str
    trained_by: str
    probe: float | None
    """The probe's value at the end of stage 1, of the objective `metric`."""
    metric: str
    last_used: float
    """Seconds since 1970."""


class StageStore:
    """The stage-1 artefacts of a storage.

    An artefact is a folder of two files: tensors as safetensors, and a manifest with the digest of both. It appears at
    once and whole, under the hash of all that decides its content (`lt_search.storage.addresses`), and never changes.

    Args:
        storage: the storage of the runs that share it.
    """

    def __init__(self, storage: FolderStore) -> None:
        self.storage = storage

    def has(self, address: str) -> bool:
        """Whether there is an artefact of that address, as far as can be seen; not whether it is sound."""
        try:
            return self.storage.exists(f"{_name(address)}/{MANIFEST}")
        except OSError:
            return False

    def publish(self, address: str, stage: StageOne) -> None:
        """Adds an artefact; nothing happens if it is there already. Raises `OSError` where it cannot be written."""
        if not self.has(address):
            self.storage.remove(_name(address))  # without its manifest it serves nobody
            self.storage.publish(_name(address), lambda folder: _write(folder, address, stage))

    def load(self, address: str) -> StageOne | None:
        """The artefact of an address; None if there is none.

        Raises:
            DamagedArtefactError: if it is there, but is not what was published (then it is removed), or cannot be read.
        """
        from safetensors.torch import load

        from trainers.state import unpack

        try:
            if not self.storage.exists(_name(address)):
                return None
            with _any_error_is_damage():
                manifest, content = self._files(address)
                # Clones: the last bits of a product depend on how its factors lie in memory, and a file's lie anyhow.
                tensors = {name: tensor.clone() for name, tensor in load(content).items()}
                state = unpack(tensors, manifest["state"])
                stage = StageOne(
                    state=state["stage1"],
                    features=state["features"],
                    history=_history(manifest),
                    metric=manifest["metric"],
                    trained_by=manifest["trained_by"],
                    trainer=manifest["trainer"],
                )
        except DamagedArtefactError:
            self.discard(address)
            raise
        except OSError as error:  # it may be sound, and the fault one of this node: it stays
            raise DamagedArtefactError(f"it cannot be read: {error}") from error
        self._touch(address)
        return stage

    def stored(self) -> list[StoredStage]:
        """All artefacts whose manifest is sound, the one that was used last first."""
        found = []
        for address in self.addresses():
            try:
                found.append(self._describe(address))
            except (DamagedArtefactError, OSError):
                continue
        return sorted(found, key=lambda stage: -stage.last_used)

    def addresses(self) -> list[str]:
        """The addresses of all artefacts, sound or not."""
        paths = map(self.storage.path, self.storage.list(FOLDER))
        return [path.name for path in paths if is_address(path.name) and path.is_dir() and not path.is_symlink()]

    def damage(self, address: str) -> str | None:
        """What is wrong with an artefact; None if it is sound. Changes nothing."""
        try:
            self._files(address)
        except DamagedArtefactError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None

    def discard(self, address: str) -> None:
        """Removes an artefact, where that is allowed."""
        with contextlib.suppress(OSError):
            self.storage.remove(_name(address))

    def prune(self, keep_bytes: float, in_use: Callable[[], Collection[str]]) -> list[StoredStage]:
        """Removes the artefacts that were used least lately, until the rest fits; returns those removed.

        Damaged ones and what killed processes left half written go first; to find them, all are read.

        Args:
            keep_bytes: what may stay.
            in_use: the addresses that stay, and count; asked about each, since runs go on meanwhile.
        """
        for name in self.storage.list(FOLDER, ".*.part"):
            path = self.storage.path(name)
            with contextlib.suppress(OSError):  # it may be published or removed meanwhile
                if _is_part(path.name) and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    self.storage.remove(name)
        for address in self.addresses():
            if self._is_damaged(address):
                self._take_away(address, in_use)
        stages = self.stored()
        total = sum(stage.n_bytes for stage in stages)
        removed = []
        for stage in reversed(stages):
            if total <= keep_bytes:
                break
            if self._take_away(stage.address, in_use):
                total -= stage.n_bytes
                removed.append(stage)
        return removed

    def _is_damaged(self, address: str) -> bool:
        """Whether an artefact serves nobody; what cannot be read now, or was made by another version, may be sound."""
        try:
            self._files(address)
        except DamagedArtefactError as error:
            return not isinstance(error, OtherFormatError)
        except OSError:
            return False
        return False

    def _take_away(self, address: str, in_use: Callable[[], Collection[str]]) -> bool:
        """Removes an artefact unless it is in use; returns whether it is gone.

        A trial may be let in to it at any moment: so it is put aside, where none is let in, before that is asked again.
        """
        if address in in_use():
            return False
        try:
            aside = self.storage.put_aside(_name(address))
        except OSError:
            return False
        try:
            wanted = address in in_use()
        except BaseException:  # whoever is in use cannot be read: it goes back, too
            self.storage.rename(aside, _name(address))
            raise
        if wanted:
            with contextlib.suppress(OSError):  # trained again and published meanwhile
                self.storage.rename(aside, _name(address))
                return False
        self.storage.remove(aside)
        return True

    def _files(self, address: str) -> tuple[dict[str, Any], bytes]:
        """The manifest and the tensors' file, both as they were published.

        Raises:
            DamagedArtefactError: if they are not.
            OSError: if they cannot be read.
        """
        with _any_error_is_damage():
            manifest = self._manifest(address)
            content = self.storage.read(f"{_name(address)}/{TENSORS}")
        if _digest(content) != manifest["tensors"]:
            raise DamagedArtefactError(f"{TENSORS} is not the file that was published")
        return manifest, content

    def _manifest(self, address: str) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(self.storage.read(f"{_name(address)}/{MANIFEST}"))
            whole = manifest.pop("manifest") == _digest(_canonical(manifest))
            fits = manifest["address"] == address
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DamagedArtefactError(f"{MANIFEST} cannot be read") from error
        if not whole or not fits:
            raise DamagedArtefactError(f"{MANIFEST} is not the file that was published")
        if manifest.get("format") != FORMAT:
            raise OtherFormatError(f"it has format {manifest.get('format')}, and {FORMAT} is read here")
        return manifest

    def _describe(self, address: str) -> StoredStage:
        files = [self.storage.path(f"{_name(address)}/{name}") for name in (TENSORS, MANIFEST)]
        with _any_error_is_damage():
            manifest = self._manifest(address)
            history = _history(manifest)
            return StoredStage(
                address=address,
                n_bytes=sum(path.stat().st_size for path in files),
                seconds=sum(report.seconds for report in history),
                trainer=str(manifest["trainer"]),
                trained_by=str(manifest["trained_by"]),
                probe=None if not history or history[-1].value is None else float(history[-1].value),
                metric=str(manifest["metric"]),
                last_used=files[1].stat().st_mtime,
            )

    def _touch(self, address: str) -> None:
        """Notes a use, for `prune`. A storage that may only be read does without."""
        try:
            os.utime(self.storage.path(f"{_name(address)}/{MANIFEST}"))
        except OSError:
            return


ABANDONED_SECONDS = 24 * 3600.0
"""What is still half written, or claimed and not renewed, after this time belongs to a process that was killed."""


@contextlib.contextmanager
def _any_error_is_damage() -> Iterator[None]:
    """Reading what somebody else may have written can fail in any way; only that of a file system is no damage."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedArtefactError("a file of it is gone") from error
    except (OSError, MemoryError, DamagedArtefactError):
        raise
    except Exception as error:
        raise DamagedArtefactError(f"its content makes no sense: {type(error).__name__}: {error}") from error


def _history(manifest: Mapping[str, Any]) -> tuple[StepReport, ...]:
    return tuple(StepReport.from_plain(report) for report in manifest["history"])


def is_address(name: str) -> bool:
    """Whether a folder of this name is an artefact."""
    return ADDRESS.fullmatch(name) is not None


def split_features(features: Iterator[tuple[str, Tensor | None]]) -> dict[str, Tensor]:
    """The features of splits that are at hand and small enough to be stored."""
    return {
        split: tensor.float() for split, tensor in features if tensor is not None and tensor.numel() * 4 <= KEPT_BYTES
    }


def _is_part(name: str) -> bool:
    """Whether a store made a hidden folder of this name, from an artefact or from another such folder."""
    return is_address(name.lstrip(".").partition(".")[0])


def _name(address: str) -> str:
    return f"{FOLDER}/{address}"


def _write(folder: Path, address: str, stage: StageOne) -> None:
    from safetensors.torch import save

    from trainers.state import pack

    tensors, text = pack({"stage1": stage.state, "features": dict(stage.features)})
    content = save(tensors)
    manifest = {
        "format": FORMAT,
        "address": address,
        "tensors": _digest(content),
        "state": text,
        "metric": stage.metric,
        "trainer": stage.trainer,
        "trained_by": stage.trained_by,
        "history": [report.to_plain() for report in stage.history],
    }
    (folder / TENSORS).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "manifest": _digest(_canonical(manifest))}))


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()

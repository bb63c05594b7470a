"""Store of finished stage-1 artefacts by address, shared by trials, runs and nodes and verified on every read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lt_search.storage.records import StepReport
from trainers.features.cache import KEPT_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lt_search.storage.files import FolderStore
    from trainers.base import State

FOLDER = "stage1"
"""Folder of a storage that holds the artefacts, one sub-folder each, named by its address."""

TENSORS, MANIFEST = "stage1.safetensors", "manifest.json"

ADDRESS = re.compile(r"[0-9a-f]{32}")
"""Form of an address, see `trainers.hashing.content_hash`. Users may keep other folders beside artefacts."""

FORMAT = 1
"""Raised when the layout of an artefact changes incompatibly; other formats are not read."""

ABANDONED_SECONDS = 24 * 3600.0
"""Age at which a half-written artefact belongs to a process that was killed."""


class ArtefactError(Exception):
    """An artefact that exists and cannot be used: damaged, of another format, or not readable on this node."""


class DamagedArtefactError(ArtefactError):
    """An artefact whose digests do not match its content, or of which a file is missing."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a stage-1 artefact was trained."""

    history: tuple[StepReport, ...]
    """The reports of all its steps, in order: losses, validation scores, probe scores at rungs."""
    metric: str
    """The objective that `value` and `standard_error` of the history are of."""
    trainer: str
    trained_by: str
    """Run and trial that trained it, see `lt_search.storage.checkpoints.trainer_of`."""
    trained_on: Mapping[str, str] = field(default_factory=dict)
    """Processor and library versions that it was finished with, see `lt_search.storage.provenance.machine`; empty in
    artefacts of earlier versions."""

    @property
    def seconds(self) -> float:
        """Its cost in seconds: training and evaluation of all its steps."""
        return sum(report.seconds for report in self.history)


@dataclass(frozen=True)
class StageOne(Training):
    """A finished stage 1."""

    state: State
    """What the trainer's `finished_stage1` returned."""
    features: Mapping[str, Tensor]
    """Features (N, D) of the splits `train` and `val`, float32, where they were cached and small enough."""


@dataclass(frozen=True)
class StoredStage(Training):
    """Metadata of an artefact, read without its tensors."""

    address: str
    n_bytes: int
    last_used: float
    """Seconds since 1970."""

    @property
    def probe(self) -> float | None:
        """The probe's score at the end of stage 1, of the objective `metric`."""
        return self.history[-1].value if self.history else None


@dataclass(frozen=True)
class Pruned:
    """Outcome of `StageStore.prune`."""

    removed: list[StoredStage]
    """Intact artefacts that were removed to make room."""
    errors: list[OSError]
    """Why other folders could not be removed."""


class StageStore:
    """The stage-1 artefacts of a storage.

    An artefact is a folder of two files: tensors as safetensors, and a manifest with the digest of both. It is
    published atomically, under the hash of everything that decides its content (`lt_search.storage.addresses`), and
    never changes. Where two processes publish one address, the first artefact stays.

    Only an artefact whose digest does not match is damaged, and removed when it is met. Anything else that goes wrong
    while one is read, such as memory running out, is a fault of this process or node and leaves it in place.

    Args:
        storage: the storage that the runs share.
    """

    def __init__(self, storage: FolderStore) -> None:
        self.storage = storage

    def has(self, address: str) -> bool:
        """Whether an artefact of that address exists; does not verify it. False where the storage cannot be read."""
        try:
            return self.storage.exists(f"{_name(address)}/{MANIFEST}")
        except OSError:
            return False

    def publish(self, address: str, stage: StageOne) -> bool:
        """Adds an artefact; returns False if the address exists already. Raises `OSError` if it cannot be written."""
        if self.has(address):
            return False
        self.storage.remove(_name(address))  # an artefact without its manifest cannot be read
        return self.storage.publish(_name(address), lambda folder: _write(folder, address, stage))

    def load(self, address: str) -> StageOne | None:
        """The artefact of an address; None if it does not exist.

        Raises:
            DamagedArtefactError: if its digests do not match; it is removed then.
            ArtefactError: if it has another format or cannot be read here.
            Exception: whatever decoding verified content may raise, such as `MemoryError`, a device's `RuntimeError`,
                or a `TypeError` for the fields of another version.
        """
        from safetensors.torch import load

        from trainers.state import unpack

        try:
            if not self.storage.exists(_name(address)):
                return None
            manifest, content = self._files(address)
        except DamagedArtefactError:
            self.discard(address)
            raise
        except OSError as error:
            raise ArtefactError(f"it cannot be read: {error}") from error
        # Clones: the last bits of a product depend on how its factors are aligned in memory, and a file's vary.
        tensors = {name: tensor.clone() for name, tensor in load(content).items()}
        state = unpack(tensors, manifest["state"])
        stage = StageOne(state["stage1"], state["features"], **_training(manifest))
        self._touch(address)
        return stage

    def stored(self) -> list[StoredStage]:
        """All artefacts whose manifest can be read, the most recently used first."""
        found = []
        for address in self.addresses():
            # A sealed manifest may still lack what this version reads.
            with contextlib.suppress(ArtefactError, OSError, ValueError, LookupError, TypeError, AttributeError):
                found.append(self._describe(address))
        return sorted(found, key=lambda stage: -stage.last_used)

    def addresses(self) -> list[str]:
        """The addresses of all artefacts, verified or not; raises `OSError` if their folder cannot be read."""
        try:
            paths = sorted(self.storage.path(FOLDER).iterdir())
        except FileNotFoundError:
            return []
        return [path.name for path in paths if ADDRESS.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]

    def fault(self, address: str) -> str | None:
        """Why an artefact cannot be read, or None if it is intact. Changes nothing."""
        error = self._error(address)
        if error is None:
            return None
        return str(error) if isinstance(error, ArtefactError) else f"cannot be read: {error}"

    def discard(self, address: str) -> None:
        """Removes an artefact, where that is allowed."""
        with contextlib.suppress(OSError):
            self.storage.remove(_name(address))

    def prune(self, keep_bytes: float, in_use: Callable[[], Collection[str]]) -> Pruned:
        """Removes the least recently used artefacts until the others fit.

        Damaged ones, and what killed processes left half written, are removed first; to find them, all are read.

        Args:
            keep_bytes: total size that may stay.
            in_use: returns the addresses to keep, which count; called before each removal, as runs continue meanwhile.
        """
        removed: list[StoredStage] = []
        errors: list[OSError] = []
        for path in map(self.storage.path, self.storage.list(FOLDER, ".*.part")):
            try:
                if _is_part(path.name) and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path)
            except FileNotFoundError:  # published or removed meanwhile
                continue
            except OSError as error:
                errors.append(error)
        for address in self.addresses():
            if isinstance(self._error(address), DamagedArtefactError):
                self._remove_unused(address, in_use, errors)
        stages = self.stored()
        total = sum(stage.n_bytes for stage in stages)
        for stage in reversed(stages):
            if total <= keep_bytes:
                break
            if self._remove_unused(stage.address, in_use, errors):
                total -= stage.n_bytes
                removed.append(stage)
        return Pruned(removed, errors)

    def _error(self, address: str) -> ArtefactError | OSError | MemoryError | None:
        """The error of reading an artefact, or None; only a `DamagedArtefactError` is a fault of the artefact."""
        try:
            self._files(address)
        except (ArtefactError, OSError, MemoryError) as error:
            return error
        return None

    def _remove_unused(self, address: str, in_use: Callable[[], Collection[str]], errors: list[OSError]) -> bool:
        """Removes an artefact unless it is in use; returns whether it is gone, and notes what prevented it.

        A trial may start to use it at any moment, so it is hidden from all trials before `in_use` is asked again.
        """
        if address in in_use():
            return False
        try:
            aside = self.storage.put_aside(_name(address))
        except FileNotFoundError:
            return False
        except OSError as error:
            errors.append(error)
            return False
        try:
            wanted = address in in_use()
        except BaseException:  # which ones are in use cannot be read
            self.storage.rename(aside, _name(address))
            raise
        if wanted:
            with contextlib.suppress(OSError):  # trained again and published meanwhile
                self.storage.rename(aside, _name(address))
                return False
        try:
            shutil.rmtree(self.storage.path(aside))
        except OSError as error:
            errors.append(error)
            return False
        return True

    def _files(self, address: str) -> tuple[dict[str, Any], bytes]:
        """The manifest and the bytes of the tensors' file, both verified against their digests.

        Raises:
            DamagedArtefactError: if a digest does not match, or a file is missing.
            ArtefactError: if it has another format.
            OSError: if a file cannot be read.
        """
        manifest = self._manifest(address)
        content = self._read(address, TENSORS)
        if _digest(content) != manifest.get("tensors"):
            raise DamagedArtefactError(f"{TENSORS} does not match its digest")
        return manifest, content

    def _manifest(self, address: str) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(self._read(address, MANIFEST))
            intact = manifest.pop("manifest") == _digest(_canonical(manifest)) and manifest["address"] == address
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DamagedArtefactError(f"{MANIFEST} cannot be read") from error
        if not intact:
            raise DamagedArtefactError(f"{MANIFEST} does not match its digest or address")
        if manifest.get("format") != FORMAT:
            raise ArtefactError(f"it has format {manifest.get('format')}, and this version reads {FORMAT}")
        return manifest

    def _read(self, address: str, name: str) -> bytes:
        try:
            return self.storage.read(f"{_name(address)}/{name}")
        except FileNotFoundError as error:
            raise DamagedArtefactError(f"{name} is missing") from error

    def _describe(self, address: str) -> StoredStage:
        files = [self.storage.path(f"{_name(address)}/{name}") for name in (TENSORS, MANIFEST)]
        size = sum(path.stat().st_size for path in files)
        return StoredStage(address, size, files[1].stat().st_mtime, **_training(self._manifest(address)))

    def _touch(self, address: str) -> None:
        """Records a use for `prune`, unless the storage is read-only."""
        with contextlib.suppress(OSError):
            os.utime(self.storage.path(f"{_name(address)}/{MANIFEST}"))


def _training(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Training` in a manifest."""
    return {
        "history": tuple(StepReport.from_plain(report) for report in manifest["history"]),
        **{name: str(manifest[name]) for name in ("metric", "trainer", "trained_by")},
        "trained_on": dict(manifest.get("trained_on", {})),
    }


def split_features(features: Iterator[tuple[str, Tensor | None]]) -> dict[str, Tensor]:
    """The features of splits that are cached and small enough to be stored."""
    return {
        split: tensor.float() for split, tensor in features if tensor is not None and tensor.numel() * 4 <= KEPT_BYTES
    }


def _is_part(name: str) -> bool:
    """Whether a hidden folder of this name is a half-written or removed artefact."""
    return ADDRESS.fullmatch(name.lstrip(".").partition(".")[0]) is not None


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
        "trained_on": dict(stage.trained_on),
        "history": [report.to_plain() for report in stage.history],
    }
    (folder / TENSORS).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "manifest": _digest(_canonical(manifest))}))


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()

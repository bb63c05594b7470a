from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from lt_search.errors import Problem, UserError
from lt_search.storage.files import FolderStore
from lt_search.storage.stage_store import (
    MANIFEST,
    TENSORS,
    ArtefactError,
    DamagedArtefactError,
    StageStore,
    split_features,
)
from tests.helpers.stages import LONG_AGO, A, B, C, D, E, F, stage
from trainers.hashing import content_hash


@pytest.fixture
def stages(tmp_path: Path) -> StageStore:
    return StageStore(FolderStore(tmp_path / "storage"))


def artefact(stages: StageStore, address: str, name: str) -> Path:
    return stages.storage.path(f"stage1/{address}/{name}")


def test_gives_back_what_was_published(stages: StageStore) -> None:
    assert stages.load(A) is None
    assert not stages.has(A)
    stages.publish(A, stage())
    found = stages.load(A)
    assert found is not None
    assert torch.equal(found.state["model"]["weight"], torch.ones(4))
    assert found.state["lr"] == 0.1
    assert found.state["optimizers"] is None
    assert torch.equal(found.features["val"], torch.arange(6.0).view(2, 3))
    assert found.history == stage().history
    assert found.seconds == 5.0
    assert found.trained_by == "run/7"


def test_the_first_artefact_of_an_address_stays(stages: StageStore) -> None:
    stages.publish(A, stage(1.0))
    stages.publish(A, stage(2.0))
    found = stages.load(A)
    assert found is not None
    assert found.state["model"]["weight"][0] == 1.0
    assert [path.name for path in stages.storage.path("stage1").iterdir()] == [A], "nothing half written is left"


def test_of_two_processes_that_publish_at_once_one_succeeds(stages: StageStore) -> None:
    def both(folder: Path) -> None:
        (folder / "mine").touch()
        assert stages.storage.publish("stage1/a", lambda other: (other / "theirs").touch())

    assert not stages.storage.publish("stage1/a", both)
    assert [path.name for path in stages.storage.path("stage1/a").iterdir()] == ["theirs"]


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_artefact_is_never_loaded_and_is_removed(stages: StageStore, name: str, harm: str) -> None:
    stages.publish(A, stage())
    path = artefact(stages, A, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(content), "truncate": content[:-5], "empty": b""}[harm])
    assert stages.fault(A) is not None
    with pytest.raises(DamagedArtefactError):
        stages.load(A)
    assert stages.load(A) is None, "trained again, it can be published again"
    stages.publish(A, stage())
    assert stages.fault(A) is None


def test_an_artefact_that_cannot_be_read_here_stays(stages: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.publish(A, stage())

    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(stages.storage, "read", stale)
        with pytest.raises(ArtefactError, match="Stale file handle"):
            stages.load(A)
        assert stages.prune(keep_bytes=1e9, in_use=set).removed == []
    assert stages.load(A) is not None


def edit_manifest(stages: StageStore, address: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes a manifest and seals it again, as somebody who means harm, or another version, may."""
    path = artefact(stages, address, MANIFEST)
    manifest = json.loads(path.read_text())
    manifest.pop("manifest")
    edit(manifest)
    digest = hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()
    path.write_text(json.dumps({**manifest, "manifest": digest}))


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.pop("address"),
        lambda manifest: manifest.pop("history"),
        lambda manifest: manifest.update(history=7),
        lambda manifest: manifest.update(history=["text"]),
        lambda manifest: manifest["history"][0].update(seconds="long"),
        lambda manifest: manifest["history"][-1].update(value={}),
        lambda manifest: manifest.pop("trainer"),
    ],
    ids=["address", "history", "number", "text", "seconds", "value", "trainer"],
)
def test_a_sealed_manifest_that_cannot_be_parsed_harms_no_other_artefact(
    stages: StageStore, edit: Callable[[dict[str, Any]], object]
) -> None:
    for address in (A, B):
        stages.publish(address, stage())
    edit_manifest(stages, A, edit)
    assert [entry.address for entry in stages.stored()] == [B]
    assert [entry.address for entry in stages.prune(keep_bytes=0, in_use=set).removed] == [B]


def test_a_manifest_that_is_nested_too_deep_is_damage(stages: StageStore) -> None:
    stages.publish(A, stage())
    artefact(stages, A, MANIFEST).write_text("[" * 100_000)
    assert stages.stored() == []
    assert stages.fault(A) is not None
    with pytest.raises(DamagedArtefactError):
        stages.load(A)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 16 bytes"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=str,
)
def test_an_error_of_memory_or_device_while_loading_leaves_a_sound_artefact(
    stages: StageStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    stages.publish(A, stage())

    def fail(*_: object) -> torch.Tensor:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", fail)
        with pytest.raises(type(error)):
            stages.load(A)
    assert stages.load(A) is not None


def test_too_little_memory_to_verify_an_artefact_is_no_damage(
    stages: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.publish(A, stage())

    read = stages.storage.read

    def fail(name: str) -> bytes:
        if name.endswith(TENSORS):
            raise MemoryError
        return read(name)

    with monkeypatch.context() as patch:
        patch.setattr(stages.storage, "read", fail)
        assert stages.fault(A) is not None
        stages.prune(keep_bytes=1e9, in_use=set)
    assert stages.load(A) is not None


def test_tensors_that_fit_their_digest_and_cannot_be_decoded_stay(stages: StageStore) -> None:
    stages.publish(A, stage())
    content = struct.pack("<Q", 2**62) + b"{}"
    artefact(stages, A, TENSORS).write_bytes(content)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    edit_manifest(stages, A, lambda manifest: manifest.update(tensors=digest))
    with pytest.raises(SafetensorError):
        stages.load(A)
    stages.prune(keep_bytes=1e9, in_use=set)
    assert stages.has(A)


def test_notes_what_a_stage_1_was_trained_on(stages: StageStore) -> None:
    stages.publish(A, replace(stage(), trained_on={"processor": "abacus", "torch": "0.1"}))
    found = stages.load(A)
    assert found is not None
    assert found.trained_on == {"processor": "abacus", "torch": "0.1"}
    assert stages.stored()[0].trained_on == found.trained_on


def test_reads_artefacts_of_earlier_versions_which_lack_what_they_were_trained_on(stages: StageStore) -> None:
    stages.publish(A, stage())
    edit_manifest(stages, A, lambda manifest: manifest.pop("trained_on"))
    found = stages.load(A)
    assert found is not None
    assert (found.trained_on, stages.stored()[0].trained_on) == ({}, {})


def test_a_storage_that_cannot_be_read_holds_nothing_or_raises(
    stages: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.publish(A, stage())

    def stale(*_: object) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(stages.storage, "exists", stale)
        assert not stages.has(A)
        with pytest.raises(ArtefactError, match="Stale file handle"):
            stages.load(A)
    assert stages.load(A) is not None


def test_a_manifest_with_fields_of_another_version_is_not_damage(stages: StageStore) -> None:
    stages.publish(A, stage())
    edit_manifest(stages, A, lambda manifest: manifest["history"][0].update(unheard_of=1))
    with pytest.raises(ValueError, match="unheard_of"):
        stages.load(A)
    assert stages.has(A)


def test_an_artefact_under_the_wrong_address_is_damaged(stages: StageStore) -> None:
    stages.publish(A, stage())
    artefact(stages, A, "").rename(artefact(stages, B, ""))
    with pytest.raises(DamagedArtefactError, match="does not match"):
        stages.load(B)


def test_publishing_replaces_what_has_lost_its_manifest(stages: StageStore) -> None:
    stages.publish(A, stage(1.0))
    artefact(stages, A, MANIFEST).unlink()
    stages.publish(A, stage(2.0))
    found = stages.load(A)
    assert found is not None
    assert found.state["model"]["weight"][0] == 2.0


def test_lists_what_is_there_the_one_used_last_first(stages: StageStore) -> None:
    for age, address in enumerate((A, B, C)):
        stages.publish(address, stage())
        os.utime(artefact(stages, address, MANIFEST), (1e9 - age, 1e9 - age))
    stages.load(B)
    found = stages.stored()
    assert [entry.address for entry in found] == [B, A, C]
    assert found[0].seconds == 5.0
    assert found[0].probe == 0.5
    files = [artefact(stages, B, name).stat().st_size for name in (TENSORS, MANIFEST)]
    assert found[0].n_bytes == sum(files)


def test_prune_removes_the_oldest_and_never_those_in_use(stages: StageStore) -> None:
    for age, address in enumerate((A, B, C, D)):
        stages.publish(address, stage(n=1000))
        os.utime(artefact(stages, address, MANIFEST), (1e9 - age, 1e9 - age))
    size = stages.stored()[0].n_bytes
    removed = stages.prune(keep_bytes=2.5 * size, in_use=lambda: {D})
    assert [entry.address for entry in removed.removed] == [C, B]
    assert sorted(stages.addresses()) == [A, D]
    assert stages.prune(keep_bytes=0, in_use=lambda: {A, D}).removed == []


def test_prune_keeps_what_comes_into_use_while_it_removes(stages: StageStore) -> None:
    for age, address in enumerate((A, B, C, D)):
        stages.publish(address, stage())
        os.utime(artefact(stages, address, MANIFEST), (1e9 - age, 1e9 - age))
    for address in (E, F):
        stages.publish(address, stage())
        artefact(stages, address, MANIFEST).write_text("{}")

    def in_use() -> set[str]:
        there = set(stages.addresses())
        return (there & {E, F} if len(there) < 6 else set()) | (there if len(there) < 5 else set())

    removed = stages.prune(keep_bytes=0, in_use=in_use)
    assert [entry.address for entry in removed.removed] == [D]
    assert len(set(stages.addresses()) & {E, F}) == 1, "so do damaged ones, which may be trained again"


def test_prune_removes_damaged_artefacts_and_old_half_written_ones(stages: StageStore) -> None:
    stages.publish(A, stage())
    stages.publish(B, stage())
    artefact(stages, A, MANIFEST).write_text(json.dumps({"manifest": "?"}))
    for name in (f".{C}.old.part", f"..{C}.old.part.aside.part", f".{C}.new.part", ".mine.part"):
        folder = stages.storage.path("stage1") / name
        folder.mkdir()
        if "new" not in name:
            os.utime(folder, (LONG_AGO, LONG_AGO))
    stages.prune(keep_bytes=1e9, in_use=set)
    left = sorted(path.name for path in stages.storage.path("stage1").iterdir())
    assert left == [f".{C}.new.part", ".mine.part", B], "a hidden folder of the user's stays, too"


@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_prune_removes_what_has_lost_its_tensors(stages: StageStore, harm: str) -> None:
    for address in (A, B):
        stages.publish(address, stage())
        path = artefact(stages, address, TENSORS)
        content = path.read_bytes()
        path.unlink()
        if harm == "flip":
            path.write_bytes(content[:-1] + b"x")
    assert stages.prune(keep_bytes=1e9, in_use=lambda: {B}).removed == []
    assert stages.addresses() == [B], "a run that uses it finds out by itself"


def test_prune_leaves_artefacts_of_another_version_alone(stages: StageStore) -> None:
    stages.publish(A, stage())
    edit_manifest(stages, A, lambda manifest: manifest.update(format=2))
    assert stages.prune(keep_bytes=0, in_use=set).removed == []
    assert stages.addresses() == [A]
    assert "format 2" in (stages.fault(A) or "")


def test_prune_puts_back_what_a_trial_was_admitted_to_at_the_last_moment(stages: StageStore) -> None:
    for age, address in enumerate((A, B)):
        stages.publish(address, stage())
        os.utime(artefact(stages, address, MANIFEST), (1e9 - age, 1e9 - age))
    asked: list[int] = []

    def in_use() -> set[str]:
        asked.append(len(asked))
        return {B} if len(asked) > 1 else set()

    assert [entry.address for entry in stages.prune(keep_bytes=0, in_use=in_use).removed] == [A]
    assert stages.load(B) is not None


def test_prune_puts_back_an_artefact_where_the_ones_in_use_cannot_be_read(stages: StageStore) -> None:
    stages.publish(A, stage())
    answers = iter([set[str]()])

    def in_use() -> set[str]:
        try:
            return next(answers)
        except StopIteration as error:
            raise UserError(Problem("journal.log", "is damaged")) from error

    with pytest.raises(UserError):
        stages.prune(keep_bytes=0, in_use=in_use)
    assert stages.load(A) is not None


@pytest.mark.parametrize("harm", ["none", "damaged", "half written"])
def test_prune_reports_what_it_cannot_remove(stages: StageStore, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    stages.publish(A, stage())
    if harm == "damaged":
        artefact(stages, A, TENSORS).write_bytes(b"x")
    if harm == "half written":
        artefact(stages, A, "").rename(part := stages.storage.path(f"stage1/.{A}.0.part"))
        os.utime(part, (LONG_AGO, LONG_AGO))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    found = stages.prune(keep_bytes=0, in_use=set)
    assert found.removed == []
    assert {error.errno for error in found.errors} == {errno.EROFS}


def test_a_link_that_looks_like_an_artefact_is_left_alone(stages: StageStore, tmp_path: Path) -> None:
    stages.publish(B, stage())
    outside = tmp_path / "outside"
    outside.mkdir()
    link = stages.storage.path(f"stage1/{A}")
    link.symlink_to(outside)
    os.utime(outside, (LONG_AGO, LONG_AGO))
    for _ in range(2):
        stages.prune(keep_bytes=0, in_use=set)
    assert link.is_symlink()
    assert outside.is_dir()


def test_prune_goes_on_where_a_half_written_folder_vanishes(stages: StageStore) -> None:
    class Vanishing(FolderStore):
        def list(self, folder: str, pattern: str = "*") -> list[str]:
            found = super().list(folder, pattern)
            for name in found if pattern == ".*.part" else ():
                self.path(name).rmdir()
            return found

    vanishing = StageStore(Vanishing(stages.storage.root))
    for address in (A, B):
        vanishing.publish(address, stage())
    half_written = stages.storage.path(f"stage1/.{C}.0.part")
    half_written.mkdir()
    removed = vanishing.prune(keep_bytes=0, in_use=lambda: {A})
    assert not half_written.exists()
    assert [entry.address for entry in removed.removed] == [B]


def test_folders_that_bear_no_address_are_not_artefacts(stages: StageStore) -> None:
    stages.publish(content_hash("an address"), stage())
    (address,) = stages.addresses()
    for name in ("my-notes", address[:-1], f"{address}0", address.upper(), f"{address}.claim"):
        (stages.storage.path("stage1") / name).mkdir()
    assert stages.addresses() == [address]
    stages.prune(keep_bytes=0, in_use=set)
    assert len(list(stages.storage.path("stage1").iterdir())) == 5


def test_features_that_are_too_large_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lt_search.storage.stage_store.KEPT_BYTES", 40)
    given = {"train": torch.zeros(11), "val": torch.zeros(10), "none": None}
    assert list(split_features(iter(given.items()))) == ["val"]

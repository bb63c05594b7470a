from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lt_search.cli import main
from lt_search.config.spec import RunSpec
from lt_search.samplers import ReseededSampler
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, is_driven, sole_driver
from lt_search.storage.maintenance import StagesInUse
from lt_search.storage.run_folder import JOURNAL, new_run
from lt_search.storage.schema import ADDRESS
from lt_search.storage.stage_store import MANIFEST, TENSORS, StageStore
from tests.helpers.stages import A, B, stage


@pytest.fixture
def stages(tmp_path: Path) -> StageStore:
    return StageStore(FolderStore(tmp_path))


def _run(stages: StageStore, *words: object) -> int:
    return main(["store", *map(str, words), "--storage", str(stages.storage.root)])


def _begin_trial(store: FolderStore, address: str) -> None:
    journal = Journal(store.path(JOURNAL), ReseededSampler(0))
    journal.set(journal.study.ask().number, ADDRESS, address)


def test_lists_what_is_there(stages: StageStore, capsys: pytest.CaptureFixture[str]) -> None:
    stages.publish("0123456789abcdef" * 2, replace(stage(), trained_by="run/7@0f3a"))
    assert _run(stages, "list") == 0
    shown = capsys.readouterr().out
    for word in ("0123456789ab", "run/7", "tiny", "mAP 0.5000", "5s", "1 stage-1 artefacts"):
        assert word in shown
    assert "@" not in shown, "the id of a run is not for people"
    assert "1 trained on a machine that was not recorded" in shown


def test_names_that_look_like_markup_are_shown_as_they_are(
    stages: StageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.publish(A, replace(stage(), trainer="[/x]"))
    assert _run(stages, "list") == 0
    assert "[/x]" in capsys.readouterr().out


def test_verify_names_what_is_damaged(stages: StageStore, capsys: pytest.CaptureFixture[str]) -> None:
    for address in (A, B):
        stages.publish(address, stage())
    assert _run(stages, "verify") == 0
    stages.storage.path(f"stage1/{B}/{TENSORS}").write_bytes(b"x")
    assert _run(stages, "verify") == 1
    assert f"{B}: {TENSORS} does not match its digest" in capsys.readouterr().out


def test_prune_keeps_what_a_running_search_uses(
    stages: StageStore, tiny_spec: RunSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    store = new_run(stages.storage, "run", tiny_spec, {})
    _begin_trial(store, B)
    for address in (A, B):
        stages.publish(address, stage())
    os.utime(stages.storage.path(f"stage1/{B}/{MANIFEST}"), (1, 1))
    with sole_driver(store.root):
        assert is_driven(store.root)
        assert _run(stages, "prune", "--keep-gb", 0) == 0
    assert stages.addresses() == [B]
    assert "1 of them are in use" in capsys.readouterr().out
    assert not is_driven(store.root)
    _run(stages, "prune", "--keep-gb", 0)
    assert stages.addresses() == []


def test_what_a_running_search_begins_to_use_is_seen(stages: StageStore, tiny_spec: RunSpec) -> None:
    store = new_run(stages.storage, "run", tiny_spec, {})
    in_use = StagesInUse(stages.storage)
    with sole_driver(store.root):
        assert in_use() == set()
        for count in (1, 2, 3):
            _begin_trial(store, f"{count}")
            assert in_use() == {str(number) for number in range(1, count + 1)}
    assert in_use() == set()


def test_nothing_is_removed_where_it_is_not_known_what_a_running_search_uses(
    stages: StageStore, tiny_spec: RunSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.publish(A, stage())
    store = new_run(stages.storage, "run", tiny_spec, {})
    with sole_driver(store.root):
        store.write(JOURNAL, "damaged\n{}\n")
        assert _run(stages, "prune", "--keep-gb", 0) == 1
    shown = capsys.readouterr().out
    assert "line 1 is damaged" in shown
    assert "which stage-1 artefacts it uses cannot be read" in shown
    assert stages.addresses() == [A]
    _run(stages, "prune", "--keep-gb", 0)
    assert stages.addresses() == [], "a run that is not driven uses none"


def test_nothing_is_removed_where_the_journal_of_a_running_search_is_a_folder(
    stages: StageStore, tiny_spec: RunSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.publish(A, stage())
    store = new_run(stages.storage, "run", tiny_spec, {})
    with sole_driver(store.root):
        store.path(JOURNAL).mkdir()
        assert _run(stages, "prune", "--keep-gb", 0) == 1
    assert "journal.log: cannot be opened" in capsys.readouterr().out
    assert stages.addresses() == [A]


@pytest.mark.parametrize("word", ["list", "verify", "prune"])
def test_a_store_that_cannot_be_read_is_not_shown_as_empty(
    stages: StageStore, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    stages.storage.write("stage1", "a file in place of the folder")
    assert _run(stages, word, *(["--keep-gb", 0] if word == "prune" else [])) == 2
    assert "cannot be read: Not a directory" in capsys.readouterr().err


def test_prune_on_read_only_storage_fails_and_says_so(
    stages: StageStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.publish(A, stage())

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    assert _run(stages, "prune", "--keep-gb", 0) == 1
    shown = capsys.readouterr().out
    assert "removed 0 stage-1 artefacts" in shown
    assert "1 could not be removed" in shown
    assert "Read-only file system" in shown
    assert _run(stages, "prune", "--keep-gb", 1) == 0, "there was nothing to remove"
    assert _run(stages, "list") == _run(stages, "verify") == 0


def test_a_run_that_is_removed_while_it_is_looked_at_uses_nothing(
    stages: StageStore, tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_run(stages.storage, "run", tiny_spec, {})
    _begin_trial(store, A)
    exists = FolderStore.exists

    def remove_after(folder: FolderStore, name: str) -> bool:
        there = exists(folder, name)
        if name == JOURNAL:
            shutil.rmtree(folder.root)
        return there

    with sole_driver(store.root):
        in_use = StagesInUse(stages.storage)
        assert in_use() == {A}
        monkeypatch.setattr(FolderStore, "exists", remove_after)
        assert in_use() == set()
    assert not store.root.exists()


def test_other_folders_that_users_keep_in_the_store_are_left_alone(
    stages: StageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.publish(A, stage())
    for name in ("my-notes", "backup", B.upper(), f"{B}-copy"):
        (stages.storage.path("stage1") / name).mkdir()
        stages.storage.write(f"stage1/{name}/notes.txt", "mine")
    before = sorted(stages.storage.path("stage1").rglob("*"))
    assert _run(stages, "list") == 0
    assert _run(stages, "verify") == 0
    assert _run(stages, "prune", "--keep-gb", 1) == 0
    assert sorted(stages.storage.path("stage1").rglob("*")) == before
    shown = capsys.readouterr().out
    assert "1 of 1 stage-1 artefacts are intact" in shown
    assert "removed 0 stage-1 artefacts" in shown
    assert "cannot be read" not in shown


def test_mistakes_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "prune", "--keep-gb", "-1", "--storage", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "--keep-gb" in said
    assert "--storage" in said

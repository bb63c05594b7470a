from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lt_search.errors import UserError
from lt_search.storage.files import FolderStore, open_storage


def test_writes_whole_files_and_leaves_no_parts(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "run")
    store.write("a/b.txt", "one")
    store.write("a/b.txt", "two")
    assert store.read("a/b.txt") == b"two"
    assert store.list("a") == ["a/b.txt"]
    assert os.listdir(store.path("a")) == ["b.txt"]


def test_files_have_the_users_usual_permissions(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    store = FolderStore(tmp_path)
    store.write_with("model", lambda path: save_file({"x": torch.zeros(1)}, str(path)))
    (tmp_path / "plain").touch()
    assert store.path("model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("x", "old")

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk pulled")

    with pytest.raises(OSError, match="disk pulled"):
        store.write_with("x", fails)
    assert store.read("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_appends_lines_and_removes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.append_line("log/x", "1")
    store.append_line("log/x", "2")
    assert store.read("log/x") == b"1\n2\n"
    store.remove("log")
    store.remove("log")
    assert not store.exists("log")


@pytest.mark.parametrize("text", ["s3://bucket/x", "gs://bucket"])
def test_object_stores_are_refused_in_words(text: str) -> None:
    with pytest.raises(UserError, match="only folders"):
        open_storage(text)


def test_a_storage_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_storage(str(file / "runs"))


def test_a_full_storage_is_refused() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(UserError, match="--storage"):
        open_storage("/dev/full")


def test_opening_a_storage_makes_nothing(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "runs" / "deep"))
    assert os.listdir(tmp_path) == []


def test_a_line_after_one_that_was_cut_off_stands_alone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.append_line("log", "whole")
    with (tmp_path / "log").open("a") as file:
        file.write("cut o")
    store.append_line("log", "next")
    assert store.read("log").decode().splitlines() == ["whole", "cut o", "next"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Syncs and renames of the file system, in their order."""
    seen: list[tuple[str, str]] = []
    sync, rename, replace = os.fsync, os.rename, os.replace

    def spy_sync(descriptor: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        sync(descriptor)

    def spy(real: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def rename(old: Path, new: Path) -> None:
            seen.append(("rename", Path(new).name))
            real(old, new)

        return rename

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "rename", spy(rename))
    monkeypatch.setattr(os, "replace", spy(replace))
    return seen


def _of(events: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The events, a hidden partial file being called `part`."""
    return [(what, "part" if name.startswith(".") else name) for what, name in events]


def test_a_file_is_durable_before_it_has_its_name_and_its_name_is_too(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    store = FolderStore(tmp_path / "run")
    store.write_with("trials/model", lambda path: path.write_text("x") and None)
    made = [("sync", tmp_path.name), ("sync", "run")]
    written = [("sync", "part"), ("rename", "model"), ("sync", "trials")]
    assert sorted(_of(events)[:2]) == sorted(made)
    assert _of(events)[2:] == written
    events.clear()
    store.write("trials/model", "y")
    assert _of(events) == written


def test_a_published_folder_is_durable_with_its_files(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("a")

    assert FolderStore(tmp_path).publish("it", fill)
    assert _of(events) == [("sync", "a"), ("sync", "part"), ("rename", "it"), ("sync", tmp_path.name)]


def test_a_line_is_durable(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    store = FolderStore(tmp_path)
    store.append_line("log", "1")
    store.append_line("log", "2")
    assert _of(events) == [("sync", "log"), ("sync", tmp_path.name), ("sync", "log")]


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_refuses_to_sync_folders_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(refusal, os.strerror(refusal))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    store = FolderStore(tmp_path / "run")
    store.write("a/b", "x")
    store.append_line("log", "1")
    assert store.publish("it", lambda folder: None)
    assert store.read("a/b") == b"x"


def test_a_sync_that_lost_data_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = FolderStore(tmp_path)
    store.write("x", "old")
    monkeypatch.setattr(os, "fsync", lose)
    with pytest.raises(OSError, match="Input/output error"):
        store.write("x", "new")
    assert store.read("x") == b"old"

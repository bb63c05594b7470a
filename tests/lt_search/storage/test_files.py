from __future__ import annotations

import os
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

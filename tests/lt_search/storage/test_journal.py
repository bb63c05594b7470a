from __future__ import annotations

import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from lt_search.errors import UserError
from lt_search.samplers import ReseededSampler
from lt_search.storage.journal import Journal, NoTrialsYetError, is_driven, sole_driver


def test_a_second_driver_is_refused_and_told_who_drives(tmp_path: Path) -> None:
    def drive(ready: multiprocessing.synchronize.Event, leave: multiprocessing.synchronize.Event) -> None:
        with sole_driver(tmp_path):
            ready.set()
            leave.wait(30)

    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=drive, args=(ready, leave))
    other.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match=f"process {other.pid} on"), sole_driver(tmp_path):
        pass
    leave.set()
    other.join()
    with sole_driver(tmp_path):
        pass


def test_a_driver_is_not_kept_out_by_one_that_only_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole_driver(tmp_path):
        pass
    with (tmp_path / "driver.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("lt_search.locks.time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with sole_driver(tmp_path):
            assert is_driven(tmp_path)


def test_a_torn_last_line_and_a_stale_lock_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    with sole_driver(tmp_path):
        journal = Journal(path, ReseededSampler(0))
        number = journal.study.ask().number
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker_id": "x", "tri')
    (tmp_path / "journal.log.lock").touch()
    with sole_driver(tmp_path):
        assert path.read_bytes() == whole
        journal = Journal(path, ReseededSampler(0))
        journal.set(number, "a", 1)
        assert journal.trial(number).user_attrs == {"a": 1}


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    Journal(path, ReseededSampler(0)).study.ask()
    before = path.read_bytes(), sorted(os.listdir(tmp_path))
    assert len(Journal.reader(path).trials()) == 1
    assert (path.read_bytes(), sorted(os.listdir(tmp_path))) == before


def test_a_reader_of_no_journal_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(NoTrialsYetError):
        Journal.reader(tmp_path / "journal.log")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", [b"garbage\n", b"{}\n", b"[1]\n"])
def test_damage_inside_a_journal_is_named_with_its_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.log"
    Journal(path, ReseededSampler(0)).study.ask()
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, damage, *rest]))
    with pytest.raises(UserError, match="line 2 is damaged"):
        Journal.reader(path)

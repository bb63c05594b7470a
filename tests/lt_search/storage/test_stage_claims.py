from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lt_search.storage.files import FolderStore
from lt_search.storage.stage_claims import (
    RENEW_SECONDS,
    STALE_SECONDS,
    StageClaims,
    claimed_addresses,
    drop_abandoned_claims,
)
from lt_search.storage.stage_store import ABANDONED_SECONDS


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def storage(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_one_run_holds_an_address_until_it_gives_it_back(storage: FolderStore) -> None:
    one, two = StageClaims(storage, "one"), StageClaims(storage, "two")
    assert one.take("a")
    assert one.take("a")
    assert not two.take("a")
    assert two.take("b")
    assert claimed_addresses(storage) == {"a", "b"}
    one.release("a")
    assert two.take("a")
    two.release_all()
    assert claimed_addresses(storage) == set()


def test_a_run_that_goes_on_takes_up_the_claims_of_its_killed_driver(storage: FolderStore) -> None:
    assert StageClaims(storage, "one").take("a")
    assert StageClaims(storage, "one").take("a")


def _claim(storage: FolderStore, **more: object) -> None:
    storage.write("stage1/a.claim", json.dumps({"run": "other", **more}))


def test_a_claim_of_a_dead_process_of_this_machine_is_void(storage: FolderStore) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _claim(storage, host=os.uname().nodename, pid=ended.pid)
    assert StageClaims(storage, "two").take("a")


def test_a_claim_from_elsewhere_is_void_once_it_is_not_renewed(storage: FolderStore) -> None:
    _claim(storage, host="elsewhere", pid=1)
    clock = Clock()
    claims = StageClaims(storage, "two", clock)
    assert not claims.take("a")
    clock.now += STALE_SECONDS - 1
    assert not claims.take("a")
    os.utime(storage.path("stage1/a.claim"), (5, 5))  # renewed, by a clock that is decades behind
    clock.now += 2
    assert not claims.take("a")
    clock.now += STALE_SECONDS + 1
    assert claims.take("a")


def test_a_claim_that_cannot_be_read_is_void_once_it_is_not_renewed(storage: FolderStore) -> None:
    storage.write("stage1/a.claim", "{")
    clock = Clock()
    claims = StageClaims(storage, "two", clock)
    assert not claims.take("a")
    clock.now += STALE_SECONDS + 1
    assert claims.take("a")


def test_of_two_runs_that_find_a_void_claim_at_once_one_takes_it(storage: FolderStore) -> None:
    class Late(FolderStore):
        """Another run takes the void claim over between a look at it and its removal."""

        def rename(self, name: str, new_name: str) -> None:
            faster.take("a")
            super().rename(name, new_name)

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _claim(storage, host=os.uname().nodename, pid=ended.pid)
    faster = StageClaims(storage, "faster")
    assert not StageClaims(Late(storage.root), "slower").take("a")
    assert json.loads(storage.read("stage1/a.claim"))["run"] == "faster"
    assert [path.name for path in storage.path("stage1").iterdir()] == ["a.claim"]


def test_claims_are_renewed_now_and_then(storage: FolderStore) -> None:
    clock = Clock()
    claims = StageClaims(storage, "one", clock)
    claims.take("a")
    path = storage.path("stage1/a.claim")
    os.utime(path, (5, 5))
    claims.renew()
    assert path.stat().st_mtime == 5
    clock.now += RENEW_SECONDS
    claims.renew()
    assert path.stat().st_mtime > 5


def test_a_run_that_was_found_too_slow_leaves_the_next_ones_claim_alone(storage: FolderStore) -> None:
    clock = Clock()
    slow = StageClaims(storage, "slow", clock)
    slow.take("a")
    _claim(storage, host="elsewhere", pid=1)
    path = storage.path("stage1/a.claim")
    os.utime(path, (5, 5))
    clock.now += RENEW_SECONDS
    slow.renew()
    slow.release("a")
    assert path.stat().st_mtime == 5


def test_where_claims_cannot_be_written_nobody_waits(storage: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage, "create", refuse)
    assert StageClaims(storage, "one").take("a")


def test_an_old_claim_keeps_nothing_in_use(storage: FolderStore) -> None:
    StageClaims(storage, "one").take("a")
    assert claimed_addresses(storage) == {"a"}
    os.utime(storage.path("stage1/a.claim"), (5, 5))
    assert claimed_addresses(storage) == set()


def test_claims_of_nobody_alive_are_dropped_once_they_are_very_old(storage: FolderStore) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = os.uname().nodename
    holders = {
        "0": {"host": here, "pid": ended.pid},
        "1": {"host": "elsewhere", "pid": os.getpid()},
        "2": {"host": here, "pid": os.getpid()},
    }
    claims = {digit: storage.path(f"stage1/{digit * 32}.claim") for digit in "0123"}
    for digit, path in claims.items():
        storage.write(f"stage1/{path.name}", json.dumps(holders[digit]) if digit in holders else "{")
    mine = storage.path("stage1/mine.claim")
    mine.write_text("of the user")
    drop_abandoned_claims(storage)
    assert all(path.exists() for path in claims.values()), "young as they are"
    for path in (mine, *claims.values()):
        past = time.time() - ABANDONED_SECONDS - 60
        os.utime(path, (past, past))
    drop_abandoned_claims(storage)
    assert [digit for digit, path in claims.items() if path.exists()] == ["2"], "its holder is alive, however slow"
    assert mine.exists()


def test_a_claim_that_is_given_back_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    class Vanishing(FolderStore):
        def list(self, folder: str, pattern: str = "*") -> list[str]:
            found = super().list(folder, pattern)
            for name in found:
                self.path(name).unlink()
            return found

    storage = Vanishing(tmp_path)
    storage.write(f"stage1/{'a' * 32}.claim", "{}")
    drop_abandoned_claims(storage)
    assert list(storage.path("stage1").iterdir()) == []

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lt_search.errors import Problem, UserError
from lt_search.locks import ATTEMPTS, held, held_after_waiting, is_held


def _taken(holder: str) -> Problem:
    return Problem("somewhere", f"held by {holder}")


def _refuse_with(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets every lock fail with an error; gives a list that grows with each attempt."""
    attempts: list[int] = []

    def refuse(*_: object) -> None:
        attempts.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("lt_search.locks.time.sleep", lambda _: None)
    return attempts


def test_a_lock_that_is_held_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "new/run.lock"
    assert not is_held(lock)
    with (
        held(lock, _taken),
        pytest.raises(UserError, match=f"held by process {os.getpid()} on"),
        held(lock, _taken),
    ):
        pass
    with held(lock, _taken):
        assert is_held(lock)
    assert not is_held(lock)


def test_one_that_waits_gets_a_lock_when_its_holder_leaves(tmp_path: Path) -> None:
    lock = tmp_path / "build.lock"
    code = f"""
from pathlib import Path
from lt_search.locks import held_after_waiting
with held_after_waiting(Path({str(lock)!r})):
    print("held", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert is_held(lock)
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()
    with held_after_waiting(lock):
        assert is_held(lock)
    assert other.wait() == 0


def test_a_folder_in_place_of_a_lock_file_is_reported_and_held_by_no_process(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(UserError, match=r"run\.lock: is a folder"), held(tmp_path / "run.lock", _taken):
        pass
    assert not is_held(tmp_path / "run.lock")


def test_a_lock_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: ") as caught, held(tmp_path / "file/run.lock", _taken):
        pass
    assert caught.value.problems[0].place == "--storage"


def test_a_system_without_posix_locks_imports_everything_and_is_sent_to_wsl(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["fcntl"] = None  # as on Windows
from pathlib import Path
import lt_search.cli, lt_search.data.decoded, lt_search.storage.journal
from lt_search.errors import MachineError
from lt_search.locks import held, held_after_waiting, is_held
path = Path({str(tmp_path / "run.lock")!r})
for use in (is_held, lambda path: held(path, str).__enter__(), lambda path: held_after_waiting(path).__enter__()):
    try:
        use(path)
    except MachineError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ["WSL" in line for line in done.stdout.splitlines()] == [True, True, True]


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_of_another_process_is_tried_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    attempts = _refuse_with(number, monkeypatch)
    with pytest.raises(UserError, match="held by another process"), held(tmp_path / "run.lock", _taken):
        pass
    assert len(attempts) == ATTEMPTS


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_as_the_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    attempts = _refuse_with(number, monkeypatch)
    with pytest.raises(UserError) as caught, held(tmp_path / "run.lock", _taken):
        pass
    (problem,) = caught.value.problems
    assert problem.place == "--storage"
    assert str(tmp_path) in problem.what
    assert os.strerror(number) in problem.what
    assert "another file system" in problem.fix
    assert len(attempts) == 1, "waiting does not help"

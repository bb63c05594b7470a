from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from lt_search.errors import Problem, UserError
from lt_search.storage.locks import ATTEMPTS, held


def _taken(holder: str) -> Problem:
    return Problem("somewhere", f"held by {holder}")


def _refuse_with(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets every lock fail with an error; gives a list that grows with each attempt."""
    attempts: list[int] = []

    def refuse(*_: object) -> None:
        attempts.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("lt_search.storage.locks.time.sleep", lambda _: None)
    return attempts


def test_a_lock_that_is_held_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "new/run.lock"
    with (
        held(lock, _taken),
        pytest.raises(UserError, match=f"held by process {os.getpid()} on"),
        held(lock, _taken),
    ):
        pass
    with held(lock, _taken):
        pass


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

"""One driver and any number of readers of a journal; journals that were damaged, cut, replaced or lost."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest
from optuna.trial import TrialState

from lt_search.errors import UserError
from lt_search.samplers import ReseededSampler
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import DamagedJournalError, Journal, NoTrialsYetError, is_driven, sole_driver
from lt_search.storage.prefix_digests import side_file
from lt_search.storage.repair import repair_journal
from lt_search.storage.run_folder import JOURNAL, trial_numbers


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


@pytest.fixture
def run(tmp_path: Path) -> FolderStore:
    """A run with six ended trials and a running one, each with a folder."""
    store = FolderStore(tmp_path / "my run")
    store.root.mkdir()
    journal = Journal(store.path(JOURNAL), ReseededSampler(0))
    for value in range(7):
        trial = journal.study.ask()
        trial.suggest_float("x", 0, 1)
        store.write(f"trials/{trial.number:04d}/config.yaml", f"x: {trial.params['x']}")
        if value < 6:
            journal.set(trial.number, "final", value)
            journal.tell(trial.number, TrialState.COMPLETE, value)
    return store


def _refused(run: FolderStore, match: str) -> None:
    """Neither a driver nor a reader opens the journal, and the message says what to do."""
    before = sorted(os.listdir(run.root))
    for opened in (lambda: Journal(run.path(JOURNAL), ReseededSampler(0)), lambda: Journal.reader(run.path(JOURNAL))):
        with pytest.raises(DamagedJournalError, match=match) as refused, sole_driver(run.root):
            opened()
        assert f"lt-search repair '{run.root}'" in str(refused.value), "with its blank quoted"
    assert set(os.listdir(run.root)) - set(before) <= {"driver.lock"}


def _lines(run: FolderStore) -> list[bytes]:
    return run.read(JOURNAL).splitlines(keepends=True)


def _of_trial(run: FolderStore, number: int, text: bytes) -> int:
    """The index of a line about a trial."""
    return next(i for i, line in enumerate(_lines(run)) if f'"trial_id":{number}'.encode() in line and text in line)


def _ended(run: FolderStore) -> dict[int, float]:
    trials = Journal(run.path(JOURNAL), ReseededSampler(0)).trials()
    return {trial.number: trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE}


def test_a_sound_journal_is_left_alone_by_a_repair(run: FolderStore) -> None:
    before = run.read(JOURNAL)
    assert repair_journal(run) == []
    assert run.read(JOURNAL) == before and not run.exists("set-aside")
    assert len(_ended(run)) == 6


@pytest.mark.parametrize("harm", ["delete", "double", "flip"])
def test_a_changed_line_is_refused_with_its_place_and_cut_off_with_all_after_it(run: FolderStore, harm: str) -> None:
    lines, at = _lines(run), _of_trial(run, 3, b'"final":3')
    first = _of_trial(run, 2, b'"values":[2.0]') + 2
    changed = {
        "delete": [],
        "double": [lines[at]] * 2,
        "flip": [lines[at].replace(b'"final":3', b'"final":7')],
    }[harm]
    damaged = b"".join([*lines[:at], *changed, *lines[at + 1 :]])
    run.write(JOURNAL, damaged)
    _refused(run, f"lines {first} to {_of_trial(run, 3, b'values') + (harm == 'delete') + (harm == 'flip')} are not")
    said = " ".join(repair_journal(run))
    assert f"the first {first - 1} of {len(damaged.splitlines())} lines are intact" in said
    assert "lost: trials 3, 4, 5, 6" in said
    assert _ended(run) == {0: 0, 1: 1, 2: 2}
    assert trial_numbers(run.root) == {0, 1, 2}
    [copy] = [name for name in run.list("set-aside") if run.exists(f"{name}/{JOURNAL}")]
    assert run.read(f"{copy}/{JOURNAL}") == damaged
    assert len(run.list("set-aside", "*/trials/*/config.yaml")) == 4
    assert repair_journal(run) == []


def test_a_journal_that_is_missing_is_refused_and_begun_anew(run: FolderStore) -> None:
    run.remove(JOURNAL)
    _refused(run, "is missing, and the run has 7 trials")
    assert "lost: trials 0, 1, 2, 3, 4, 5, 6" in " ".join(repair_journal(run))
    assert trial_numbers(run.root) == set()
    with pytest.raises(NoTrialsYetError):
        Journal.reader(run.path(JOURNAL))
    assert _ended(run) == {}


@pytest.mark.parametrize("digests", [True, False], ids=["", "of an earlier version"])
def test_an_empty_journal_is_refused(run: FolderStore, digests: bool) -> None:
    run.write(JOURNAL, b"")
    if not digests:
        side_file(run.path(JOURNAL)).unlink()
    _refused(run, "it was cut or is an older copy")
    repair_journal(run)
    assert trial_numbers(run.root) == set() and _ended(run) == {}


@pytest.mark.parametrize("digests", [True, False], ids=["", "of an earlier version"])
def test_an_older_copy_is_refused_and_its_trials_stay(run: FolderStore, digests: bool) -> None:
    copy = _lines(run)[: _of_trial(run, 3, b'"values":[3.0]') + 1]
    run.write(JOURNAL, b"".join(copy))
    if not digests:
        side_file(run.path(JOURNAL)).unlink()
    _refused(run, "it was cut or is an older copy")
    assert "lost: trials 4, 5, 6" in " ".join(repair_journal(run))
    assert _ended(run) == {0: 0, 1: 1, 2: 2, 3: 3}
    journal = Journal(run.path(JOURNAL), ReseededSampler(0))
    assert journal.study.ask().number == 4
    assert not run.exists("trials/0004"), "a number that is given out again has no files"


def test_an_older_copy_with_its_own_digests_is_refused(run: FolderStore) -> None:
    at = _of_trial(run, 3, b'"values":[3.0]') + 1
    run.write(JOURNAL, b"".join(_lines(run)[:at]))
    digests = side_file(run.path(JOURNAL)).read_bytes().splitlines(keepends=True)
    side_file(run.path(JOURNAL)).write_bytes(b"".join(digests[:4]))
    _refused(run, "lacks trials 4, 5, 6")


@pytest.mark.parametrize(
    "damage", [b"garbage\n", b"{}\n", b'{"op_code":6}\n', b'{"op_code":77}\n', b"[" * 100_000 + b"\n"]
)
def test_a_line_that_makes_no_sense_is_cut_off_in_a_run_of_an_earlier_version(run: FolderStore, damage: bytes) -> None:
    side_file(run.path(JOURNAL)).unlink()
    at = _of_trial(run, 2, b'"values":[2.0]') + 1
    run.write(JOURNAL, b"".join([*_lines(run)[:at], damage, *_lines(run)[at:]]))
    _refused(run, "is damaged")
    repair_journal(run)
    assert _ended(run) == {0: 0, 1: 1, 2: 2}
    assert trial_numbers(run.root) == {0, 1, 2}


def test_a_journal_of_an_earlier_version_without_digests_is_opened(run: FolderStore) -> None:
    side_file(run.path(JOURNAL)).unlink()
    assert len(_ended(run)) == 6
    assert repair_journal(run) == []


def test_a_driver_that_was_killed_before_it_wrote_a_digest_is_followed_by_another(run: FolderStore) -> None:
    path = side_file(run.path(JOURNAL))
    digests = path.read_bytes()
    for end in range(len(digests) + 1):
        path.write_bytes(digests[:end])
        assert len(Journal.reader(run.path(JOURNAL)).trials()) == 7
    path.write_bytes(digests[:-20])
    journal = Journal(run.path(JOURNAL), ReseededSampler(0))
    journal.tell(6, TrialState.COMPLETE, 6.0)
    assert len(_ended(run)) == 7
    run.write(JOURNAL, run.read(JOURNAL).replace(b'"final":5', b'"final":6'))
    _refused(run, "are not as they were written")


def test_damage_to_the_digests_alone_is_no_damage_to_the_journal(run: FolderStore) -> None:
    path = side_file(run.path(JOURNAL))
    digests = path.read_bytes()
    for position in range(len(digests)):
        flipped = bytearray(digests)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        assert len(Journal.reader(run.path(JOURNAL)).trials()) == 7


def test_a_reader_is_never_refused_while_a_driver_writes(tmp_path: Path) -> None:
    def drive(leave: multiprocessing.synchronize.Event) -> None:
        journal = Journal(store.path(JOURNAL), ReseededSampler(0))
        while not leave.is_set():
            number = journal.study.ask().number
            store.write(f"trials/{number:04d}/config.yaml", "")
            journal.tell(number, TrialState.COMPLETE, 0.5)

    store = FolderStore(tmp_path)
    context = multiprocessing.get_context("fork")
    leave = context.Event()
    driver = context.Process(target=drive, args=(leave,))
    driver.start()
    try:
        seen: set[int] = set()
        while len(seen) < 40:
            try:
                seen.add(len(Journal.reader(store.path(JOURNAL)).trials()))
            except NoTrialsYetError:
                assert not seen
    finally:
        leave.set()
        driver.join()


def test_a_folder_in_place_of_the_journal_is_named_and_moved_away(run: FolderStore) -> None:
    run.remove(JOURNAL)
    run.path(JOURNAL).mkdir()
    for opened in (lambda: Journal(run.path(JOURNAL), ReseededSampler(0)), lambda: Journal.reader(run.path(JOURNAL))):
        with pytest.raises(UserError, match=r"journal\.log: cannot be opened: Is a directory"):
            opened()
    assert "was not a file" in repair_journal(run)[0]
    assert _ended(run) == {}


@pytest.mark.parametrize("kind", ["folder", "loop"])
@pytest.mark.parametrize("name", [JOURNAL, f"{JOURNAL}.digests", "trials"])
def test_what_is_in_the_place_of_a_file_or_folder_is_moved_away(run: FolderStore, name: str, kind: str) -> None:
    run.rename(name, "kept")
    if kind == "loop":
        run.path(name).symlink_to(name)
    elif name == "trials":
        run.path(name).write_text("a file")
    else:
        run.path(name).mkdir()
    assert f"{name} was not a" in repair_journal(run)[0]
    assert repair_journal(run) == []
    if name != JOURNAL:
        assert len(Journal.reader(run.path(JOURNAL)).trials()) == 7


def test_the_repair_of_a_missing_journal_claims_no_copy_of_it(run: FolderStore) -> None:
    run.remove(JOURNAL)
    assert repair_journal(run)[0] == f"{JOURNAL} is missing or empty: no trial stays"
    assert repair_journal(run) == []


def test_a_new_journal_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), real(fd)))
    Journal(tmp_path / JOURNAL, ReseededSampler(0))
    assert {tmp_path, tmp_path / JOURNAL} <= set(synced)

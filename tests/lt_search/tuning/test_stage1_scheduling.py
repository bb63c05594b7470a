from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.storage.files import FolderStore
from lt_search.storage.stage_store import StageStore
from lt_search.tuning.stage1_scheduling import StageGate
from tests.lt_search.storage.test_stage_store import stage


@pytest.fixture
def storage(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_one_trial_trains_and_the_others_wait_until_it_has_finished(storage: FolderStore) -> None:
    gate = StageGate(storage, "run")
    assert gate.admit(0, "a")
    assert gate.admit(0, "a"), "the one that trains may be handed out again"
    assert not gate.admit(1, "a")
    assert gate.admit(2, "b")
    StageStore(storage).publish("a", stage())
    assert gate.admit(1, "a"), "what is there needs no training"
    gate.finished(2)
    assert gate.admit(3, "b"), "its trainer ended without a stage 1"


def test_another_run_waits_too(storage: FolderStore) -> None:
    one, two = StageGate(storage, "one"), StageGate(storage, "two")
    assert one.admit(0, "a")
    assert not two.admit(0, "a")
    assert two.admit(1, "b")
    StageStore(storage).publish("a", stage())
    one.finished(0)
    assert two.admit(0, "a")
    two.close()
    assert one.admit(1, "b")


def test_knows_what_it_has_seen_in_the_store(storage: FolderStore) -> None:
    gate = StageGate(storage, "run")
    assert not gate.stored("a")
    StageStore(storage).publish("a", stage())
    assert gate.stored("a")
    StageStore(storage).discard("a")
    assert gate.stored("a"), "so that a trial can say that it is gone"
    assert gate.admit(5, "a"), "and train it"
    assert not gate.admit(6, "a")


def test_a_stage_1_that_turned_out_damaged_is_trained_by_one(storage: FolderStore) -> None:
    gate = StageGate(storage, "run")
    StageStore(storage).publish("a", stage())
    assert gate.admit(0, "a")
    StageStore(storage).discard("a")
    gate.training(0, "a")
    assert not gate.admit(1, "a")
    gate.finished(0)
    assert gate.admit(1, "a")


@pytest.mark.parametrize("trains", [True, False])
def test_a_stage_1_found_damaged_waits_for_word_of_the_trials_that_were_let_in(
    storage: FolderStore, trains: bool
) -> None:
    gate, other = StageGate(storage, "run"), StageGate(storage, "another")
    StageStore(storage).publish("a", stage())
    assert gate.admit(0, "a")
    assert gate.admit(1, "a")
    StageStore(storage).discard("a")
    assert not gate.admit(2, "a"), "before the first step of those that found it damaged"
    assert not other.admit(0, "a")
    assert gate.admit(0, "a"), "the one that trains may be handed out again"
    gate.finished(0)
    assert not gate.admit(2, "a"), "the other one may have found it damaged"
    if trains:
        gate.training(1, "a")
        assert not gate.admit(2, "a")
    gate.finished(1)
    assert gate.admit(2, "a")
    assert not gate.admit(3, "a")


def test_without_sharing_nobody_waits() -> None:
    gate = StageGate(None, "run")
    assert gate.admit(0, "a")
    assert gate.admit(1, "a")
    assert not gate.stored("a")
    assert not gate.shares

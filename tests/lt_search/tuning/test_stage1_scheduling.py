from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.storage.files import FolderStore
from lt_search.storage.stage_store import StageStore
from lt_search.tuning.stage1_scheduling import Stage1Scheduler
from tests.helpers.stages import stage


@pytest.fixture
def storage(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_one_trial_trains_and_the_others_wait_until_it_has_finished(storage: FolderStore) -> None:
    scheduler = Stage1Scheduler(storage)
    assert scheduler.admit(0, "a")
    assert scheduler.admit(0, "a"), "the one that trains may be handed out again"
    assert not scheduler.admit(1, "a")
    assert scheduler.admit(2, "b")
    StageStore(storage).publish("a", stage())
    assert scheduler.admit(1, "a"), "what is there needs no training"
    scheduler.finished(2)
    assert scheduler.admit(3, "b"), "its trainer ended without a stage 1"


def test_remembers_an_artefact_that_has_disappeared(storage: FolderStore) -> None:
    scheduler = Stage1Scheduler(storage)
    assert not scheduler.stored("a")
    StageStore(storage).publish("a", stage())
    assert scheduler.stored("a")
    StageStore(storage).discard("a")
    assert scheduler.stored("a"), "so that a trial can report that it is gone"
    assert scheduler.admit(5, "a"), "and train it"
    assert not scheduler.admit(6, "a")


def test_a_damaged_artefact_is_trained_again_by_one_trial(storage: FolderStore) -> None:
    scheduler = Stage1Scheduler(storage)
    StageStore(storage).publish("a", stage())
    assert scheduler.admit(0, "a")
    StageStore(storage).discard("a")
    scheduler.training(0, "a")
    assert not scheduler.admit(1, "a")
    scheduler.finished(0)
    assert scheduler.admit(1, "a")


@pytest.mark.parametrize("trains", [True, False])
def test_a_damaged_artefact_waits_for_the_reports_of_the_trials_admitted_to_it(
    storage: FolderStore, trains: bool
) -> None:
    scheduler = Stage1Scheduler(storage)
    StageStore(storage).publish("a", stage())
    assert scheduler.admit(0, "a")
    assert scheduler.admit(1, "a")
    StageStore(storage).discard("a")
    assert not scheduler.admit(2, "a"), "before the first reports of those that found it damaged"
    assert scheduler.admit(0, "a"), "the one that trains may be handed out again"
    scheduler.finished(0)
    assert not scheduler.admit(2, "a"), "the other one may have found it damaged"
    if trains:
        scheduler.training(1, "a")
        assert not scheduler.admit(2, "a")
    scheduler.finished(1)
    assert scheduler.admit(2, "a")
    assert not scheduler.admit(3, "a")


def test_without_sharing_no_trial_waits() -> None:
    scheduler = Stage1Scheduler(None)
    assert scheduler.admit(0, "a")
    assert scheduler.admit(1, "a")
    assert not scheduler.stored("a")
    assert not scheduler.shares

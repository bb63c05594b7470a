from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.config.spec import RunSpec
from lt_search.results.retention import Housekeeping
from lt_search.results.summary import RunSummary
from lt_search.results.tensorboard import TensorBoardLog
from lt_search.storage.checkpoints import Checkpoint, checkpoint_files, save_checkpoint
from lt_search.storage.records import StepReport
from tests.lt_search.tuning.test_controller import Driver, report


@pytest.fixture
def driver(tiny_spec: RunSpec, tmp_path: Path) -> Driver:
    return Driver(tiny_spec, tmp_path / "run")


def _keeper(driver: Driver, told: list[RunSummary], keep_gb: float = 1.0) -> Housekeeping:
    board = TensorBoardLog(driver.store, driver.referee.spec.stage_lengths[0])
    return Housekeeping(driver.referee.spec, driver.journal, driver.store, board, keep_gb, told.append)


def _train(driver: Driver, value: float) -> int:
    """A finished trial with its checkpoint."""
    job = driver.job()
    final: StepReport = report(job.number, 2, 2, value, final=True)
    save_checkpoint(driver.store, job.number, job.attempt, job.config, Checkpoint(final, {}))
    driver.referee.observe(final)
    return job.number


def test_only_finished_trials_keep_their_models(driver: Driver) -> None:
    told: list[RunSummary] = []
    finished, failed, running = _train(driver, 0.5), driver.job(), driver.job()
    for job in (failed, running):
        checkpoint = Checkpoint(report(job.number, 1, 1), {})
        save_checkpoint(driver.store, job.number, job.attempt, job.config, checkpoint)
    driver.referee.fail(failed.number, "boom")
    _keeper(driver, told).tidy()
    kept = [number for number in range(3) if checkpoint_files(driver.store, number)]
    assert kept == [finished, running.number]
    assert driver.store.read("trials.csv").decode().count("\n") == 4
    assert [trial.state for trial in told[0].trials] == ["finished", "failed", "running"]


def test_of_the_models_the_best_stays_when_there_is_no_room(driver: Driver) -> None:
    numbers = [_train(driver, value) for value in (0.5, 0.7, 0.6)]
    _keeper(driver, [], keep_gb=0.0).tidy()
    assert [bool(checkpoint_files(driver.store, number)) for number in numbers] == [False, True, False]


def test_trials_that_end_soon_after_one_another_are_tidied_up_together(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[RunSummary] = []
    keeper = _keeper(driver, told)
    keeper.trial_ended()
    assert not told
    monkeypatch.setattr("lt_search.results.retention.TIDY_SECONDS", -1.0)
    keeper.trial_ended()
    assert len(told) == 1

from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.config.spec import RunSpec
from lt_search.results.retention import Retention
from lt_search.storage.checkpoints import Checkpoint, checkpoint_files, save_checkpoint
from lt_search.storage.records import StepReport
from tests.helpers.driver import Driver, report


@pytest.fixture
def driver(tiny_spec: RunSpec, tmp_path: Path) -> Driver:
    return Driver(tiny_spec, tmp_path / "run")


def _retention(driver: Driver, spec: RunSpec, keep_gb: float = 1.0) -> Retention:
    return Retention(spec, driver.journal, driver.store, keep_gb)


def _train(driver: Driver, value: float) -> int:
    """A finished trial with its checkpoint."""
    job = driver.job()
    final: StepReport = report(job.number, 2, 2, value, final=True)
    save_checkpoint(driver.store, job.number, job.attempt, job.config, Checkpoint(final, {}))
    driver.controller.observe(final)
    return job.number


def test_only_finished_trials_keep_their_models(driver: Driver, tiny_spec: RunSpec) -> None:
    finished, failed, running = _train(driver, 0.5), driver.job(), driver.job()
    for job in (failed, running):
        checkpoint = Checkpoint(report(job.number, 1, 1), {})
        save_checkpoint(driver.store, job.number, job.attempt, job.config, checkpoint)
    driver.controller.fail(failed.number, "boom")
    _retention(driver, tiny_spec).on_search_end()
    kept = [number for number in range(3) if checkpoint_files(driver.store, number)]
    assert kept == [finished, running.number]
    table = driver.store.read("trials.csv").decode()
    assert [row.split(",")[1] for row in table.splitlines()] == ["state", "finished", "failed", "running"]


def test_of_the_models_the_best_stays_when_there_is_no_room(driver: Driver, tiny_spec: RunSpec) -> None:
    numbers = [_train(driver, value) for value in (0.5, 0.7, 0.6)]
    _retention(driver, tiny_spec, keep_gb=0.0).on_search_end()
    assert [bool(checkpoint_files(driver.store, number)) for number in numbers] == [False, True, False]


def test_trials_that_end_soon_after_one_another_are_tidied_up_together(
    driver: Driver, tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention = _retention(driver, tiny_spec)
    retention.on_trial_end(0)
    assert not driver.store.exists("trials.csv")
    monkeypatch.setattr("lt_search.results.retention.TIDY_SECONDS", -1.0)
    retention.on_trial_end(0)
    assert driver.store.exists("trials.csv")

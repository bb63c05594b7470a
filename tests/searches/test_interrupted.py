"""Whole searches through Ray that are interrupted, killed, damaged, or fail."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.helpers.searches import (
    ONE_STAGE_1,
    TRAINING,
    Searches,
    is_alive,
    lines_of,
    slow,
    trained_stage1s,
    wait_until,
    workers_of,
)

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("shared_ray")
def test_a_driver_killed_at_random_moments_is_followed_by_one_that_comes_to_the_same_end(
    searches: Searches, tmp_path: Path
) -> None:
    options = ("--trials", 8, "--max-concurrent", 1, "--cost-ratio", 4, *slow(0.15))
    undisturbed = Searches(tmp_path / "undisturbed", searches.space, searches.table)
    undisturbed.inline(*undisturbed.new("whole", *options))
    moments = random.Random(4)
    command: tuple[object, ...] = searches.new("killed", *options)
    journal = searches.storage / "killed" / "journal.log"
    finished: dict[int, float | None] = {}
    seen: set[str] = set()
    for _ in range(3):
        process = searches.start(*command)
        lines = lines_of(journal)
        wait_until(lambda: lines_of(journal) > lines + moments.randint(3, 25) or process.poll() is not None)  # noqa: B023
        time.sleep(moments.random() * 0.5)
        workers = workers_of(process)
        seen |= {worker.name().split(".")[0] for worker in workers}
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not any(map(is_alive, workers)), "workers of a killed search live on")  # noqa: B023
        for number, value in finished.items():
            assert searches.trials("killed")[number].value == value
        finished = {t.number: t.value for t in searches.trials("killed") if t.state is TrialState.COMPLETE}
        command = ("--resume", "killed", "--max-concurrent", 1)
    assert seen & set(TRAINING), "the processes that train were among those watched"
    searches.inline(*command)
    assert searches.truth("killed") == undisturbed.truth("whole")
    assert not [trial for trial in searches.trials("killed") if trial.state is TrialState.RUNNING]
    for path in (searches.storage / "killed").glob("trials/*/metrics.jsonl"):
        steps = [(report["stage"], report["step"]) for report in map(json.loads, path.read_text().splitlines())]
        assert len(steps) == len(set(steps)), "no step is logged twice"
        assert max(steps) <= (2, 2)


@pytest.mark.usefixtures("shared_ray")
def test_ctrl_c_leaves_a_run_that_can_be_resumed(searches: Searches) -> None:
    process = searches.start(*searches.new("a", "--trials", 6, "--max-concurrent", 2, *slow(0.4)))
    journal = searches.storage / "a" / "journal.log"
    wait_until(lambda: lines_of(journal) > 14)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the driver and all that share its process group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "resume with: lt-search search --resume a" in out
    assert "Traceback" not in err
    before = searches.trials("a")
    assert [trial for trial in before if trial.state is TrialState.RUNNING], "interrupted trials are not ended"
    assert ">interrupted</span>" in (searches.storage / "a/report.html").read_text()
    searches.inline("--resume", "a")
    after = searches.trials("a")
    assert len(after) == 6
    assert all(trial.state.is_finished() for trial in after)
    assert [trial.params for trial in before] == [trial.params for trial in after[: len(before)]]


def test_a_second_driver_is_refused(searches: Searches) -> None:
    process = searches.start(*searches.new("a", *slow(1.0)))
    wait_until(lambda: lines_of(searches.storage / "a" / "journal.log") > 3)
    refused = searches.inline("--resume", "a", code=2)
    assert f"is being driven by process {process.pid}" in refused
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, "a second Ctrl-C ends it at once"
    assert "--resume a" in out
    assert "Traceback" not in err


@pytest.mark.usefixtures("shared_ray")
def test_failures_are_recorded_and_the_search_goes_on(searches: Searches) -> None:
    limits = ("fail_above_lr=2", "nan_above_lr=1", "die_above_lr=5.25")
    sets = [word for limit in limits for word in ("--set", f"stage1.{limit}")]
    searches.inline(*searches.new("a", "--trials", 8, "--no-prune", "--search", "stage1.lr=uniform(0.1, 6)", *sets))
    trials = searches.trials("a")
    assert len(trials) == 8
    for trial in trials:
        lr = trial.params["stage1.lr"]
        assert (trial.state is TrialState.FAIL) == (lr > 1), trial
        if lr > 5.25:
            assert "worker process died" in trial.user_attrs["failure"]
        elif lr > 2:
            assert trial.user_attrs["failure"].endswith("is too large <for & this test>")
        elif lr > 1:
            assert trial.user_attrs["failure"] == "loss is nan at stage 1 step 2"
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    assert "&lt;for &amp; this test&gt;" in (searches.storage / "a/report.html").read_text()


@pytest.mark.usefixtures("shared_ray")
def test_a_trial_whose_worker_dies_once_goes_on_from_its_checkpoint(searches: Searches, tmp_path: Path) -> None:
    died = tmp_path / "died"
    searches.inline(*searches.new("a", "--trials", 1, "--set", f"stage1.die_once={died}"))
    assert died.exists()
    log = (searches.storage / "a" / "search.log").read_text()
    assert "trial 0: its worker process died; restarted on a new worker" in log
    searches.inline(*searches.new("b", "--trials", 1))
    [recovered], [undisturbed] = searches.trials("a"), searches.trials("b")
    assert recovered.state is TrialState.COMPLETE
    assert recovered.value == undisturbed.value
    assert recovered.intermediate_values == undisturbed.intermediate_values


@pytest.mark.usefixtures("shared_ray")
def test_a_search_whose_first_trials_all_fail_stops_and_says_why(searches: Searches) -> None:
    out = searches.inline(*searches.new("a", "--trials", 30, "--set", "stage1.fail_above_lr=0.001"), code=1)
    assert "trials failed, and none got further" in out
    assert "ArithmeticError: learning rate" in out
    assert len(searches.trials("a")) < 30


@pytest.mark.usefixtures("shared_ray")
def test_time_budget_ends_a_search_that_can_go_on(searches: Searches) -> None:
    asked = searches.new("a", "--trials", 50, "--time-budget", "10s", "--no-prune", *slow(0.5))
    out = searches.inline(*asked, code=None)  # 1 where a busy machine finishes no trial in that time
    assert "the time budget is used up" in out and "resume with: lt-search search --resume a" in out
    before = searches.trials("a")
    assert [trial for trial in before if trial.state is TrialState.RUNNING]
    searches.inline("--resume", "a", "--trials", len(before))
    after = searches.trials("a")
    assert [(trial.state, trial.params) for trial in after] == [(TrialState.COMPLETE, t.params) for t in before]


@pytest.mark.usefixtures("shared_ray")
def test_artefacts_damaged_truncated_and_deleted_during_a_search_change_no_result(searches: Searches) -> None:
    options = ("--trials", 12, "--max-concurrent", 1, "--sampler", "random", "--no-prune", *ONE_STAGE_1)
    process = searches.start(*searches.new("harmed", *options, *slow(0.3)))
    stages, log = searches.storage / "stage1", searches.storage / "harmed/search.log"

    def warnings() -> list[str]:
        return [line for line in log.read_text().splitlines() if "warning" in line] if log.exists() else []

    def published() -> list[Path]:
        return [path for path in stages.glob("[!.]*/stage1.safetensors") if (path.parent / "manifest.json").exists()]

    for count, harm in enumerate(("damage", "truncate", "delete"), start=1):
        wait_until(lambda: len(warnings()) == count - 1 and bool(published()))  # noqa: B023
        [path] = published()
        if harm == "delete":
            shutil.rmtree(path.parent)
        else:
            content = path.read_bytes()
            path.write_bytes(content[:-9] if harm == "truncate" else content[:-9] + b"\xff" * 9)
        wait_until(lambda: len(warnings()) >= count)  # noqa: B023
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert len(warnings()) == 3, "one warning each"
    assert all("training it again" in line for line in warnings())
    assert trained_stage1s(searches.trials("harmed")) == 4
    searches.inline(*searches.new("alone", *options, "--no-reuse"))
    harmed, alone = searches.truth("harmed"), searches.truth("alone")
    assert [trial["value"] for trial in harmed] == [trial["value"] for trial in alone]
    assert {trial["state"] for trial in harmed} == {TrialState.COMPLETE}

"""What the journal says after trials reported, and after a driver was killed at every possible point of its work."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from lt_search.config.spec import RunSpec
from lt_search.pruning.rungs import Decision, Rung
from lt_search.results.summary import summarise
from lt_search.samplers import REUSE_COST, STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1
from lt_search.storage.checkpoints import Checkpoint, final_report, save_checkpoint, trainer_of
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.storage.prefix_digests import side_file
from lt_search.storage.provenance import provenance
from lt_search.storage.records import StepReport, read_reports
from lt_search.storage.run_folder import new_run
from lt_search.storage.schema import ADDRESS, FAILURE, REUSED, records_of, rung_records
from lt_search.storage.stage_store import StageStore
from lt_search.training.inputs import TrialJob
from tests.helpers.driver import Driver, report
from tests.helpers.stages import stage as stored_stage


@pytest.fixture
def driver(tiny_spec: RunSpec, tmp_path: Path) -> Driver:
    return Driver(tiny_spec, tmp_path / "run")


def test_the_first_trial_has_the_default_values(driver: Driver) -> None:
    job = driver.job()
    assert job.config["stage1"]["lr"] == 0.5
    assert driver.job().config["stage1"]["lr"] != 0.5


def test_hands_out_no_more_than_asked_for(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", trials=2)
    assert [driver.job().number, driver.job().number] == [0, 1]
    assert driver.controller.next_job() is None


def test_a_finished_trial_is_complete_with_its_final_value(driver: Driver) -> None:
    number = driver.job().number
    for stage, step in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1)):
        assert driver.controller.observe(report(number, stage, step, 0.4)) is Decision.CONTINUE
    driver.controller.observe(report(number, 2, 2, 0.7, final=True))
    trial = driver.trial(number)
    assert trial.state is TrialState.COMPLETE
    assert trial.value == 0.7
    assert trial.intermediate_values == {1: 0.4, 2: 0.4, 3: 0.4, 4: 0.4, 5: 0.4, 6: 0.7}
    assert trial.user_attrs["cost"] == {"stage1": 4.0, "stage2": 2.0}


def test_a_stopped_trial_is_pruned_and_never_best(driver: Driver) -> None:
    numbers = [driver.job().number for _ in range(3)]
    for number, value in zip(numbers, (0.8, 0.7, 0.1), strict=True):
        decision = driver.controller.observe(report(number, 1, 1, value))
    assert decision is Decision.STOP
    stopped = driver.trial(numbers[-1])
    assert stopped.state is TrialState.PRUNED
    assert stopped.user_attrs["stopped"] == "stage 1 step 1"
    assert stopped.intermediate_values == {1: 0.1}
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = driver.journal.study.best_trial


def test_a_failed_trial_keeps_its_reason_and_no_value(driver: Driver) -> None:
    number = driver.job().number
    driver.controller.observe(report(number, 1, 1))
    driver.controller.observe(StepReport(number, 1, 1, 2, value=math.nan, failure="the objective mAP is nan"))
    trial = driver.trial(number)
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs[FAILURE] == "the objective mAP is nan"
    assert trial.intermediate_values == {1: 0.5}


def test_news_heard_twice_is_written_once(driver: Driver) -> None:
    number = driver.job().number
    first = report(number, 1, 1, 0.4)
    driver.controller.observe(first)
    before = (driver.store.root / "journal.log").read_bytes()
    driver.controller.observe(report(number, 1, 1, 0.9))
    assert (driver.store.root / "journal.log").read_bytes() == before
    assert read_reports(driver.store, number) == [first]


def test_two_trials_of_one_stage_1_count_once_at_its_rungs(tiny_spec: RunSpec, tmp_path: Path) -> None:
    searched = {name: entry for name, entry in tiny_spec.search.items() if name.startswith("stage2")}
    driver = Driver(tiny_spec.model_copy(update={"search": searched}), tmp_path / "run")
    numbers = [driver.job().number for _ in range(5)]
    assert len({driver.trial(number).user_attrs[ADDRESS] for number in numbers}) == 1
    decisions = {driver.controller.observe(report(number, 1, 1, 0.5)) for number in numbers}
    assert decisions == {Decision.CONTINUE}
    counted = [driver.trial(number).user_attrs["rung:1:1"]["counts"] for number in numbers]
    assert counted == [True, False, False, False, False]


def test_inactive_parameters_do_not_move_the_address(driver: Driver) -> None:
    addresses = {}
    for _ in range(12):
        job = driver.job()
        stage1 = dict(job.config["stage1"])
        if stage1["optimiser"] == "sgd":
            stage1["momentum"] = "inactive"
        addresses[str(sorted(stage1.items()))] = driver.trial(job.number).user_attrs[ADDRESS]
        assert ("stage1.momentum" in driver.trial(job.number).params) == (stage1["optimiser"] == "momentum")
    assert len(set(addresses.values())) == len(addresses)


def test_a_trial_without_its_worker_fails(driver: Driver) -> None:
    number = driver.job().number
    driver.controller.fail(number, "the worker process died")
    assert driver.trial(number).state is TrialState.FAIL
    driver.controller.fail(number, "again")
    assert driver.trial(number).user_attrs[FAILURE] == "the worker process died"


def test_a_full_disk_ends_the_search_and_no_trial(driver: Driver) -> None:
    number = driver.job().number
    before = driver.trial(number)
    assert driver.controller.observe(report(number, 1, 1, storage_failure="no space")) is Decision.STOP
    assert driver.controller.storage_failure == "no space"
    assert driver.trial(number) == before


def test_gives_up_when_all_of_the_first_trials_fail(driver: Driver) -> None:
    for left in (2, 1, 0):
        number = driver.job().number
        assert driver.controller.hopeless() is None
        driver.controller.observe(StepReport(number, 1, 1, 0, failure=f"no such file ({left})"))
    assert driver.controller.hopeless() == "no such file (2)"


def test_failures_before_a_resume_do_not_end_the_resumed_search(tiny_spec: RunSpec, tmp_path: Path) -> None:
    first = Driver(tiny_spec, tmp_path / "run", trials=5)
    for _ in range(3):
        first.controller.fail(first.job().number, "no disk")
    assert first.controller.hopeless() == "no disk"
    second = Driver(tiny_spec, tmp_path / "run", trials=5)
    assert second.controller.hopeless() is None
    for _ in range(2):
        second.controller.fail(second.job().number, "still no disk")
    assert second.controller.hopeless() == "still no disk"


def test_goes_on_when_one_of_the_first_trials_did_not_fail(driver: Driver) -> None:
    numbers = [driver.job().number for _ in range(4)]
    for number in numbers[:2]:
        driver.controller.fail(number, "boom")
    driver.controller.observe(report(numbers[2], 2, 2, 0.5, final=True))
    driver.controller.fail(numbers[3], "boom")
    assert driver.controller.hopeless() is None


def test_gives_up_though_trials_were_pruned_before_the_point_of_failure(driver: Driver) -> None:
    for number, value in enumerate((0.8, 0.7, 0.1, 0.75)):
        driver.job()
        driver.controller.observe(report(number, 1, 1, value))
    assert driver.trial(2).state is TrialState.PRUNED
    for number in (0, 1, 3):
        assert driver.controller.hopeless() is None
        driver.controller.fail(number, "boom")
    assert driver.controller.hopeless() == "boom"


def test_goes_on_while_a_trial_is_further_than_those_that_failed(driver: Driver) -> None:
    for number in range(4):
        driver.job()
        driver.controller.observe(report(number, 1, 1, 0.5))
    driver.controller.observe(report(0, 1, 2))
    for number in (1, 2, 3):
        driver.controller.fail(number, "boom")
    assert driver.controller.hopeless() is None
    driver.controller.fail(0, "boom, too")
    assert driver.controller.hopeless() == "boom, too"


def test_does_not_give_up_while_trials_handed_out_before_the_failures_may_still_do_well(driver: Driver) -> None:
    numbers = [driver.job().number for _ in range(8)]
    for number in numbers[5:]:
        driver.controller.fail(number, "out of memory")
    assert driver.controller.hopeless() is None
    driver.controller.observe(report(0, 1, 1, 0.5))
    assert driver.controller.hopeless() is None


def test_one_late_failure_does_not_make_trials_that_are_under_way_look_as_failed(driver: Driver) -> None:
    for _ in range(3):
        driver.job()
    for stage, step in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1)):
        driver.controller.observe(report(0, stage, step))
    healthy = driver.job().number
    for step in (1, 2):
        driver.controller.observe(report(healthy, 1, step))
    for number in (0, 1, 2):
        driver.controller.fail(number, "boom")
    assert driver.controller.hopeless() is None


def test_the_final_report_is_found_in_the_checkpoint_where_the_log_lost_its_line(driver: Driver) -> None:
    config = driver.job().config
    last = report(0, 2, 2, 0.5, final=True)
    save_checkpoint(driver.store, 0, 1, config, Checkpoint(last, {"model": {}}))
    driver.store.append_line("trials/0000/metrics.jsonl", report(0, 2, 1).to_json())
    assert final_report(driver.store, 0, config) == last
    driver.store.append_line("trials/0000/metrics.jsonl", replace(last, seconds=9.0).to_json())
    assert final_report(driver.store, 0, config) == replace(last, seconds=9.0)


def _finish(driver: Driver, trials: int) -> None:
    """Finishes trials whose probe is unrelated to the final objective at step 1 alone; large errors stop none."""
    for _ in range(trials):
        number = driver.job().number
        final = 0.5 + 0.01 * number
        for step, value in ((1, 0.5 + 0.01 * (number * 7 % 10)), (3, final)):
            driver.controller.observe(
                replace(report(number, 1, step, value, scalars={"mAP": -value}), standard_error=1.0)
            )
        driver.controller.observe(report(number, 2, 1, final))
        driver.controller.observe(report(number, 2, 2, final, final=True))


def _bad_trial(driver: Driver, *rungs: tuple[int, int]) -> list[Decision]:
    number = driver.job().number
    return [driver.controller.observe(report(number, stage, step, 0.0)) for stage, step in rungs]


def test_a_journal_of_an_earlier_version_lacks_the_head_alone(tiny_spec: RunSpec, tmp_path: Path) -> None:
    first = Driver(tiny_spec, tmp_path / "run", trials=60)
    _finish(first, 6)
    assert all(found.head is not None for found in summarise(tiny_spec, first.journal).probe_audit)
    journal = tmp_path / "run/journal.log"
    older, entries = re.subn(r',"head_value":[^,}]+', "", journal.read_text())
    assert entries == 18
    journal.write_text(older)
    side_file(journal).unlink()
    for found in summarise(tiny_spec, Driver(tiny_spec, tmp_path / "run").journal).probe_audit:
        assert found.n == 6 and found.probe is not None and found.head is None


SCRIPT: list[tuple[int, int, int, float]] = [
    (0, 1, 1, 0.8),
    (1, 1, 1, 0.7),
    (0, 1, 3, 0.8),
    (2, 1, 1, 0.1),  # stopped
    (1, 1, 3, 0.7),
    (0, 1, 4, 0.8),
    (0, 2, 1, 0.85),
    (3, 1, 1, 0.75),
    (0, 2, 2, 0.9),  # finished
    (3, 1, 3, 0.2),  # stopped
    (1, 2, 2, 0.6),  # finished
]


def _play(driver: Driver, script: list[tuple[int, int, int, float]]) -> None:
    for number, stage, step, value in script:
        driver.controller.observe(report(number, stage, step, value, final=(stage, step) == (2, 2)))


def _truth(journal: Journal) -> list[object]:
    return [
        {
            "number": trial.number,
            "state": trial.state,
            "value": trial.value if trial.state is TrialState.COMPLETE else None,
            "params": trial.params,
            "values": trial.intermediate_values,
            "rungs": {name: entry for name, entry in trial.user_attrs.items() if name.startswith("rung:")},
        }
        for trial in journal.started()
    ]


def _kill_points(tmp_path: Path, spec: RunSpec) -> tuple[list[bytes], list[object], Callable[[bytes], Driver]]:
    """The journal after every line of an undisturbed run, that run's truth, and a way to wake up at such a point."""
    whole = Driver(spec, tmp_path / "whole")
    for _ in range(4):
        whole.job()
    start = len((tmp_path / "whole/journal.log").read_bytes())
    _play(whole, SCRIPT)
    content = (tmp_path / "whole/journal.log").read_bytes()
    points = [content[:start]]
    for line in content[start:].splitlines(keepends=True):
        points.append(points[-1] + line)

    def wake_up_at(journal: bytes) -> Driver:
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "journal.log").write_bytes(journal)
        return Driver(spec, folder)

    return points, _truth(whole.journal), wake_up_at


def test_killed_after_any_line_of_the_journal_the_next_driver_comes_to_the_same_end(
    tiny_spec: RunSpec, tmp_path: Path
) -> None:
    points, truth, wake_up_at = _kill_points(tmp_path, tiny_spec)
    assert len(points) > 20
    for point in points:
        for torn in (b"", b'{"op_code": 9, "wor'):
            driver = wake_up_at(point + torn)
            running = {trial.number for trial in driver.journal.unfinished()}
            handed_out = set()
            while running - handed_out:
                handed_out.add(driver.job().number)
            assert handed_out == running
            _play(driver, SCRIPT)  # every worker repeats its last step; the controller knows what it has recorded
            assert _truth(driver.journal) == truth
            assert driver.job().number == 4, "the next proposal is a new trial"


def _fixed_stage1(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"search": {"stage2.bias": spec.search["stage2.bias"]}})


def _train_stage1(driver: Driver, job: TrialJob, storage: Path, value: float = 0.5) -> None:
    """Reports all of stage 1, having published it, as a worker does."""
    reports = [report(job.number, 1, step, value) for step in (1, 2, 3, 4)]
    finished = replace(stored_stage(), history=tuple(reports), trained_by=f"run/{job.number}")
    StageStore(FolderStore(storage)).publish(job.address, finished)
    for step in reports:
        driver.controller.observe(step)


def _reused(number: int, value: float = 0.5) -> StepReport:
    *earlier, end = (replace(report(number, 1, s, value), seconds=0.0, reused_from="run/0") for s in (1, 2, 3, 4))
    return replace(end, seconds=0.125, stage1_seconds=4.0, history=earlier)


def test_trials_that_want_one_stage_1_wait_for_the_one_that_trains_it(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=4, storage=tmp_path)
    first = driver.job()
    assert not first.stage1_stored
    assert driver.controller.next_job(free=3) is None
    assert driver.controller.next_job(free=3) is None
    assert not driver.controller.exhausted
    assert len(driver.journal.started()) == 2, "where stage 1 is fixed, one that waits is enough"
    assert driver.controller.progress()[1] is None
    _train_stage1(driver, first, tmp_path)
    second = driver.job()
    assert (second.number, second.address, second.stage1_stored) == (1, first.address, True)
    assert driver.job().number == 2


def test_a_trial_that_waits_for_a_stage_1_leaves_room_for_one_that_needs_another(
    tiny_spec: RunSpec, tmp_path: Path
) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", trials=4, storage=tmp_path)
    first = driver.job()
    driver.journal.study.enqueue_trial(tiny_spec.first_values())
    job = driver.job()
    assert job.number == 2, "the second trial waits for the first, the third has work"
    assert job.address != first.address
    assert driver.controller.progress() == {0: Rung(0, 0), 1: None, 2: Rung(0, 0)}
    driver.controller.fail(first.number, "boom")
    assert driver.job().number == 1


def test_a_waiting_trial_trains_where_the_one_before_it_failed(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=4, storage=tmp_path)
    first = driver.job()
    assert driver.controller.next_job() is None
    driver.controller.fail(first.number, "boom")
    second = driver.job()
    assert (second.number, second.stage1_stored) == (1, False)


def test_a_reused_stage_1_costs_nothing_and_is_named(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=4, storage=tmp_path)
    first = driver.job()
    _train_stage1(driver, first, tmp_path)
    number = driver.job().number
    assert driver.controller.observe(_reused(number)) is Decision.CONTINUE
    driver.controller.observe(report(number, 2, 1, 0.6))
    driver.controller.observe(report(number, 2, 2, 0.7, final=True))
    attributes = driver.trial(number).user_attrs
    assert attributes[REUSED] == "run/0"
    assert attributes["cost"] == {"stage1": 0.125, "stage2": 2.0}
    assert attributes[STAGE1_COST] == driver.trial(0).user_attrs[STAGE1_COST] == 4.0
    assert attributes[STAGE2_COST] == 2.0
    assert attributes[REUSE_COST] > 0
    assert driver.trial(number).intermediate_values == {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.6, 6: 0.7}
    assert driver.log == ["trial 1 starts at stage 2: it reuses stage 1 of run/0, 4s saved"]
    assert [r.rung for r in read_reports(driver.store, number)] == [Rung(1, s) for s in (1, 2, 3, 4)] + [
        Rung(2, 1),
        Rung(2, 2),
    ]


def test_what_a_reused_stage_1_cost_in_all_is_known_of_first_attempts_only(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=4, storage=tmp_path)
    _train_stage1(driver, driver.job(), tmp_path)
    number = driver.job().number
    driver.controller.observe(_reused(number))
    later = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=4, storage=tmp_path)
    assert later.job().number == 0
    assert later.job().number == number
    later.controller.observe(report(number, 2, 2, 0.7, final=True))
    assert later.trial(number).state == TrialState.COMPLETE
    assert REUSE_COST not in later.trial(number).user_attrs


def test_a_stage_1_counts_once_at_a_rung_however_often_it_is_used(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=4, storage=tmp_path)
    _train_stage1(driver, driver.job(), tmp_path)
    for _ in range(2):
        driver.controller.observe(_reused(driver.job().number))
    records = rung_records(records_of(driver.journal.trials()), tiny_spec.rung_list)
    assert [record.rung for record in records] == [Rung(1, 1), Rung(1, 3)]


def test_a_stored_stage_1_is_judged_at_the_rungs_of_this_run(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", trials=4, storage=tmp_path)
    for value in (0.8, 0.9):
        driver.controller.observe(report(driver.job().number, 1, 1, value))
    number = driver.job().number
    assert driver.controller.observe(_reused(number, 0.1)) is Decision.STOP
    trial = driver.trial(number)
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs["stopped"] == "stage 1 step 1"
    assert trial.user_attrs[REUSED] == "run/0"


def test_a_stage_1_that_was_let_through_is_not_stopped_by_peers_that_come_later(
    tiny_spec: RunSpec, tmp_path: Path
) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", trials=9, storage=tmp_path)
    first = driver.job()
    _train_stage1(driver, first, tmp_path, 0.5)
    for value in (0.8, 0.9, 0.95):
        driver.controller.observe(report(driver.job().number, 1, 1, value))
    late = driver.job().number
    assert driver.controller.observe(report(late, 1, 1, 0.5)) is Decision.STOP, "a new one of that value is stopped"
    for again in (driver, Driver(tiny_spec, tmp_path / "run", trials=9, storage=tmp_path)):
        number = again.job().number
        again.journal.set(number, ADDRESS, first.address)
        assert again.controller.observe(_reused(number, 0.5)) is Decision.CONTINUE


def test_a_reused_stage_1_that_is_stopped_still_says_what_it_costs(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", trials=4, storage=tmp_path)
    for value in (0.8, 0.9):
        driver.controller.observe(report(driver.job().number, 1, 1, value))
    number = driver.job().number
    assert driver.controller.observe(_reused(number, 0.1)) is Decision.STOP
    attributes = driver.trial(number).user_attrs
    assert attributes[STAGE1_COST] == 4.0
    assert attributes[STOPPED_IN_STAGE1] is True, "proposals do not take its stage 2 for tried"


def test_a_trial_that_takes_up_its_own_stage_1_after_a_kill_is_no_reuse(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", trials=4, storage=tmp_path)
    number = driver.job().number
    assert number == 0
    driver.controller.observe(_reused(number))
    attributes = driver.trial(number).user_attrs
    assert REUSED not in attributes
    assert attributes[STAGE1_COST] == 4.0


def test_a_stage_1_of_another_run_of_the_same_name_is_a_reuse(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path)
    names = []
    for _ in range(2):
        names.append(trainer_of(new_run(storage, "run", tiny_spec, provenance()), 0))
        driver = Driver(tiny_spec, tmp_path / "run", trials=4, storage=tmp_path)
        assert driver.job().number == 0
        driver.controller.observe(replace(_reused(0), reused_from=names[0]))
        driver.controller.observe(report(0, 2, 2, 0.7, final=True))
        found = driver.trial(0).user_attrs.get(REUSED), len(driver.log)
        assert found == ((None, 0) if len(names) == 1 else ("run/0", 1))
        assert all("it reuses stage 1 of run/0, 4s saved" in line for line in driver.log)
        storage.remove("run")
    assert names[0] != names[1]


def test_after_a_resume_one_trial_trains_a_stage_1_that_is_gone(tiny_spec: RunSpec, tmp_path: Path) -> None:
    spec = _fixed_stage1(tiny_spec)
    driver = Driver(spec, tmp_path / "run", trials=4, storage=tmp_path)
    _train_stage1(driver, driver.job(), tmp_path)
    for _ in range(2):
        driver.controller.observe(_reused(driver.job().number))
    for address in StageStore(FolderStore(tmp_path)).addresses():
        StageStore(FolderStore(tmp_path)).discard(address)
    resumed = Driver(spec, tmp_path / "run", trials=4, storage=tmp_path)
    assert resumed.job().number == 0
    assert resumed.controller.next_job() is None, "the others wait"


def test_a_trial_that_goes_on_with_other_threads_shares_no_stage_1(tiny_spec: RunSpec, tmp_path: Path) -> None:
    first = Driver(tiny_spec, tmp_path / "run", storage=tmp_path).job()
    again = Driver(tiny_spec, tmp_path / "run", storage=tmp_path, compute="cpu:2")
    job = again.job()
    assert job.number == first.number
    assert job.address == ""
    assert job.config == first.config
    again.controller.observe(report(job.number, 1, 1))
    other = again.job()
    assert other.address, "those that are proposed now share stage-1 artefacts of their own kind"
    assert other.compute == "cpu:2"


def test_a_resumed_run_knows_which_trials_wait(tiny_spec: RunSpec, tmp_path: Path) -> None:
    spec = _fixed_stage1(tiny_spec)
    driver = Driver(spec, tmp_path / "run", trials=4, storage=tmp_path)
    first = driver.job()
    assert driver.controller.next_job() is None
    resumed = Driver(spec, tmp_path / "run", trials=4, storage=tmp_path)
    assert resumed.job().number == first.number
    assert resumed.controller.next_job() is None
    _train_stage1(resumed, first, tmp_path)
    assert resumed.job().number == 1


def test_each_damage_is_said_once(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=9, storage=tmp_path)
    job = driver.job()
    _train_stage1(driver, job, tmp_path)
    together = [driver.job().number, driver.job().number]
    for number in together:
        driver.controller.observe(report(number, 1, 1, warning="stage 1 is damaged"))
    assert driver.warnings == ["stage 1 is damaged"]
    driver.controller.observe(report(job.number, 2, 1))
    third = driver.job().number
    driver.controller.observe(report(third, 1, 1, warning="stage 1 is damaged"))
    assert len(driver.warnings) == 1, "it is not whole yet"
    for step in (2, 3, 4):
        driver.controller.observe(report(together[0], 1, step))
    driver.controller.observe(report(driver.job().number, 1, 1, warning="stage 1 is damaged"))
    assert len(driver.warnings) == 2, "it was whole again in between"


def test_a_damaged_stage_1_that_cannot_be_replaced_is_said_once(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=9, storage=tmp_path)
    _train_stage1(driver, driver.job(), tmp_path)
    for _ in range(2):
        number = driver.job().number
        driver.controller.observe(report(number, 1, 1, warning="stage 1 is damaged"))
        for step in (2, 3):
            driver.controller.observe(report(number, 1, step))
        driver.controller.observe(report(number, 1, 4, warning="stage 1 could not be stored"))
    assert driver.warnings == ["stage 1 is damaged"]


def test_without_reuse_nobody_waits(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(_fixed_stage1(tiny_spec), tmp_path / "run", trials=4)
    assert [driver.job().number, driver.job().number] == [0, 1]
    assert driver.job().address == ""


def _stop_one(driver: Driver) -> TrialJob:
    """Trains three stage-1 configurations; the third one is stopped at the second rung, and is to be proposed again."""
    for value in (0.8, 0.7, 0.1):
        job = driver.job()
        for step in (1, 2, 3):
            driver.controller.observe(_probed(job.number, step, value))
    assert driver.trial(job.number).user_attrs["stopped"] == "stage 1 step 3"
    driver.journal.study.enqueue_trial(driver.trial(job.number).params)
    return job


def _probed(number: int, step: int, value: float) -> StepReport:
    """A report of stage 1, which has a value at rungs; at the first one all are alike."""
    told = {1: 0.5, 3: value}.get(step)
    return report(number, 1, step, told, scalars={"mAP": value / 2, "loss": 0.25})


def test_a_stage_1_that_was_stopped_is_not_trained_again_and_ends_as_if_it_were(
    tiny_spec: RunSpec, tmp_path: Path
) -> None:
    shared = Driver(tiny_spec, tmp_path / "shared", storage=tmp_path)
    alone = Driver(tiny_spec, tmp_path / "alone")
    for driver in (shared, alone):
        assert _stop_one(driver).number == 2
    again = alone.job().number
    for step in (1, 2, 3):
        alone.controller.observe(_probed(again, step, 0.1))
    following = shared.job()
    assert (again, following.number) == (3, 4), "trial 3 needs no worker"
    assert following.config == alone.job().config
    assert _truth(shared.journal) == _truth(alone.journal)
    assert [summarise(tiny_spec, driver.journal).trials[3].attempts for driver in (shared, alone)] == [0, 1]
    ended, trained = (driver.trial(3).user_attrs for driver in (shared, alone))
    assert shared.trial(3).state is TrialState.PRUNED
    assert shared.trial(3).intermediate_values == {1: 0.5, 3: 0.1}
    assert ended["stopped"] == trained["stopped"] == "stage 1 step 3"
    assert ended[STOPPED_IN_STAGE1] is trained[STOPPED_IN_STAGE1] is True
    assert (ended["cost"], trained["cost"]) == ({"stage1": 0.0}, {"stage1": 3.0})
    assert STAGE1_COST not in ended and REUSED not in ended, "it has no finished stage 1"
    assert [found.rung for found in read_reports(shared.store, 3)] == [Rung(1, 1), Rung(1, 3)]
    assert {found.reused_from for found in read_reports(shared.store, 3)} == {"shared/2"}
    assert shared.log == ["trial 3 ends at stage 1 step 3 untrained: trial 2 was stopped there with the same stage 1"]


def test_trials_that_wait_for_a_stage_1_end_when_it_is_stopped(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", storage=tmp_path, trials=5)
    jobs = [driver.job() for _ in range(3)]
    driver.journal.study.enqueue_trial(driver.trial(2).params)
    jobs.append(driver.job())
    assert [job.number for job in jobs] == [0, 1, 2, 4], "trial 3 waits"
    for number, value in ((0, 0.8), (1, 0.7), (2, 0.1)):
        driver.controller.observe(report(number, 1, 1, value))
    assert not driver.controller.exhausted
    assert driver.controller.next_job() is None
    assert driver.trial(3).state is TrialState.PRUNED
    assert driver.controller.exhausted
    assert driver.controller.progress().keys() == {0, 1, 4}


def test_a_stopped_stage_1_that_is_in_the_store_is_taken_from_there(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", storage=tmp_path)
    stopped = _stop_one(driver)
    StageStore(FolderStore(tmp_path)).publish(stopped.address, stored_stage())
    job = driver.job()
    assert (job.number, job.stage1_stored) == (3, True), "so that it is known what it costs"


def test_a_stopped_stage_1_whose_log_lost_a_line_is_trained_again(tiny_spec: RunSpec, tmp_path: Path) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", storage=tmp_path)
    _stop_one(driver)
    log = driver.store.path("trials/0002/metrics.jsonl")
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    assert driver.job().number == 3


def test_killed_while_it_ends_a_trial_untrained_the_next_driver_ends_it_the_same(
    tiny_spec: RunSpec, tmp_path: Path
) -> None:
    driver = Driver(tiny_spec, tmp_path / "run", storage=tmp_path, trials=4)
    _stop_one(driver)
    before = len((tmp_path / "run/journal.log").read_bytes())
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    assert driver.controller.next_job() is None
    truth = _truth(driver.journal)
    lines = (tmp_path / "run/journal.log").read_bytes()[before:].splitlines(keepends=True)
    assert len(lines) > 8
    for logged in ("run", "before"):  # its own log may be ahead of the journal
        for kept in range(len(lines)):
            shutil.rmtree(tmp_path / "run")
            shutil.copytree(tmp_path / "before", tmp_path / "run")
            if logged == "run":
                for found in read_reports(driver.store, 2):
                    driver.store.append_line("trials/0003/metrics.jsonl", replace(found, number=3).to_json())
            with (tmp_path / "run/journal.log").open("ab") as journal:
                journal.write(b"".join(lines[:kept]))
            resumed = Driver(tiny_spec, tmp_path / "run", storage=tmp_path, trials=4)
            while resumed.controller.next_job() is not None:  # the two that still run
                pass
            assert _truth(resumed.journal) == truth
            assert resumed.trial(3).user_attrs[STOPPED_IN_STAGE1] is True

"""Whole searches through Ray, run as a person runs them: to the end, interrupted, killed, on two nodes."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from lt_search.cli import main
from lt_search.samplers import STAGE1_COST
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, NoTrialsYetError
from lt_search.storage.schema import ADDRESS, REUSED
from lt_search.storage.stage_store import StageStore
from lt_search.tuning.cluster import ray_cluster
from tests.lt_search.conftest import own_cache, tiny_csv, tiny_space  # noqa: F401 (fixtures)

REPOSITORY = Path(__file__).parent.parent
TRAINING = ("ray::ResourceTrainable", "ray::StagedTrial")
"""Names of a worker process, while it trains and in between."""

pytestmark = pytest.mark.slow


class Searches:
    """Runs searches of the tiny trainer in one storage."""

    def __init__(self, storage: Path, space: Path, table: Path) -> None:
        self.storage, self.space, self.table = storage, space, table

    def start(self, *options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "run_search.py", "--storage", str(self.storage), *map(str, options)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def run(self, *options: object, code: int = 0) -> str:
        process = self.start(*options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        assert "Traceback" not in err
        return out + err

    def inline(self, *options: object, code: int | None = 0) -> str:
        """As `run`, in this process and on the tests' shared Ray, which saves starting both."""
        return self.command("search", "--storage", self.storage, *options, code=code)

    def command(self, *argv: object, code: int | None = 0) -> str:
        """A command of `lt-search`, in this process; `code` None allows any exit code."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            found = main([*map(str, argv)])
        assert code is None or found == code, out.getvalue() + err.getvalue()
        return out.getvalue() + err.getvalue()

    def evaluate(self, exported: Path) -> str:
        """Scores an exported model in a process of its own, which knows nothing but the files."""
        code = "from lt_search.cli import entry_point; entry_point()"  # finds the tests' trainer, as no script does
        command = [sys.executable, "-c", code, "evaluate", str(exported)]
        ended = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False, timeout=120)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def new(self, name: str, *options: object) -> tuple[object, ...]:
        return ("--space", self.space, "--dataset", self.table, "--name", name, *options)

    def trials(self, name: str) -> list[FrozenTrial]:
        return Journal.reader(self.storage / name / "journal.log").started()

    def has_trials(self, name: str) -> bool:
        try:
            return (self.storage / name / "journal.log").exists() and bool(self.trials(name))
        except NoTrialsYetError:
            return False

    def truth(self, name: str) -> list[dict[str, Any]]:
        """All that must not depend on when, where and how often a search was interrupted."""
        return [
            {
                "number": trial.number,
                "state": trial.state,
                "value": trial.value,
                "params": trial.params,
                "values": trial.intermediate_values,
                "rungs": {name: entry for name, entry in trial.user_attrs.items() if name.startswith("rung:")},
            }
            for trial in self.trials(name)
        ]


@pytest.fixture
def searches(tmp_path: Path, tiny_space: Path, tiny_csv: Path) -> Searches:  # noqa: F811
    return Searches(tmp_path / "runs", tiny_space, tiny_csv)


@pytest.fixture(scope="module")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray that many searches of this module run on, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LT_SEARCH_CACHE", str(tmp_path_factory.mktemp("workers-cache")))  # workers keep this one
        with ray_cluster(None):
            yield


def _slow(seconds: float) -> tuple[str, ...]:
    return ("--set", f"stage1.seconds={seconds}", "--set", f"stage2.seconds={seconds}")


def test_a_search_ends_with_all_it_promises(searches: Searches) -> None:
    asked = searches.new("a", "--sampler", "tpe")
    out = searches.run(*asked, "--trials", 12)
    folder = searches.storage / "a"
    states = [trial.state for trial in searches.trials("a")]
    assert len(states) == 12
    assert {TrialState.COMPLETE, TrialState.PRUNED} == set(states)
    assert re.search(r"best: trial \d+, validation mAP [01]\.\d{4} ± ", out)

    table = pd.read_csv(folder / "trials.csv")
    assert list(table["number"]) == list(range(12))
    finished = table[table["state"] == "finished"]
    assert table["value"].notna().equals(table["state"] == "finished")

    best = yaml.safe_load((folder / "best/best.yaml").read_text())
    assert best["trial"] == finished.loc[finished["value"].idxmax(), "number"], "the first of equals"
    assert json.loads((folder / "best/metrics.json").read_text())["mAP"] == pytest.approx(finished["value"].max(), 1e-5)
    assert {"model.safetensors", "provenance.json"} <= {path.name for path in (folder / "best").iterdir()}
    assert list((folder / "trials/0000/tensorboard").glob("events.out.tfevents.*"))
    log = (folder / "search.log").read_text()
    assert "trials=12/12" in log
    probes = re.findall(r"^probe stage=1 step=[13] n=\d+ .+$", out, re.MULTILINE)
    assert len(probes) == 2 and all(line in log for line in probes)
    assert "<svg" in (folder / "report.html").read_text()
    left = {path.parent.name for path in folder.glob("trials/*/checkpoint-*")}
    assert left == {f"{number:04d}" for number in finished["number"]}, "only finished trials keep their models"

    shown = searches.command("status", "a", "--storage", searches.storage)
    assert "12 of 12 done" in shown
    assert "stage=1 step=1 n=" in shown, "the status says it, too"

    assert "exactly the numbers" in searches.evaluate(folder / "best")
    assert not (folder / "test_looks.jsonl").exists()
    for look in (1, 2):
        searches.command("evaluate", folder / "best", "--split", "test")
        assert len((folder / "test_looks.jsonl").read_text().splitlines()) == look

    assert f"--resume {folder.name}" in searches.run(*asked, code=2)
    assert "another spec" in searches.inline(*asked, "--seed", 1, code=2)
    assert "differs from the run's" in searches.inline("--resume", "a", "--seed", 5, code=2)


@pytest.mark.usefixtures("shared_ray")
def test_one_worker_gives_the_same_search_twice_and_resume_extends_it(searches: Searches) -> None:
    searches.inline(*searches.new("a", "--trials", 6, "--max-concurrent", 1, "--cost-ratio", 4))
    searches.inline(*searches.new("b", "--trials", 3, "--max-concurrent", 1, "--cost-ratio", 4))
    searches.inline("--resume", "b", "--trials", 6, "--max-concurrent", 1)
    assert searches.truth("a") == searches.truth("b")
    assert "best: trial" in searches.inline("--resume", "a"), "a run that is done shows its end again"
    assert len(searches.trials("a")) == 6


@pytest.mark.usefixtures("shared_ray")
def test_with_and_without_reuse_the_same_configurations_have_the_same_values(searches: Searches) -> None:
    options = ("--trials", 8, "--max-concurrent", 1, "--sampler", "random", *TWO_STAGE_1S)
    searches.inline(*searches.new("without", *options, "--no-reuse"))
    assert not (searches.storage / "stage1").exists()
    out = searches.inline(*searches.new("with", *options))
    assert searches.truth("with") == searches.truth("without")
    assert _trained_stage1s(searches.trials("without")) >= 6
    assert _trained_stage1s(searches.trials("with")) == 2
    assert "stage1_trained=2 stage1_reused=6" in out
    log = (searches.storage / "with/search.log").read_text()
    assert log.count("starts at stage 2: stage 1 is that of with/") == 6
    listed = searches.command("store", "list", "--storage", searches.storage)
    assert listed.count("with/") == 2


@pytest.mark.usefixtures("shared_ray")
def test_artefacts_damaged_truncated_and_deleted_during_a_search_change_no_result(searches: Searches) -> None:
    options = ("--trials", 12, "--max-concurrent", 1, "--sampler", "random", "--no-prune", *ONE_STAGE_1)
    process = searches.start(*searches.new("harmed", *options, *_slow(0.3)))
    stages, log = searches.storage / "stage1", searches.storage / "harmed/search.log"

    def warnings() -> list[str]:
        return [line for line in log.read_text().splitlines() if "warning" in line] if log.exists() else []

    def published() -> list[Path]:
        return [path for path in stages.glob("[!.]*/stage1.safetensors") if (path.parent / "manifest.json").exists()]

    for count, harm in enumerate(("damage", "truncate", "delete"), start=1):
        _wait(lambda: len(warnings()) == count - 1 and bool(published()))  # noqa: B023
        [path] = published()
        if harm == "delete":
            shutil.rmtree(path.parent)
        else:
            content = path.read_bytes()
            path.write_bytes(content[:-9] if harm == "truncate" else content[:-9] + b"\xff" * 9)
        _wait(lambda: len(warnings()) >= count)  # noqa: B023
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert len(warnings()) == 3, "one warning each"
    assert all("training it again" in line for line in warnings())
    assert _trained_stage1s(searches.trials("harmed")) == 4
    searches.inline(*searches.new("alone", *options, "--no-reuse"))
    harmed, alone = searches.truth("harmed"), searches.truth("alone")
    assert [trial["value"] for trial in harmed] == [trial["value"] for trial in alone]
    assert {trial["state"] for trial in harmed} == {TrialState.COMPLETE}


def test_two_runs_at_once_share_the_stage_1_that_is_published_first(searches: Searches) -> None:
    options = ("--trials", 3, "--no-prune", *ONE_STAGE_1, *_slow(0.5))
    both = [searches.start(*searches.new(name, *options)) for name in ("a", "b")]
    for process in both:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, out + err
    trials = [*searches.trials("a"), *searches.trials("b")]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert [trial.value for trial in trials[:3]] == [trial.value for trial in trials[3:]]
    assert _trained_stage1s(trials) <= 2, "at most one in each run"
    assert len(StageStore(FolderStore(searches.storage)).addresses()) == 1


@pytest.mark.usefixtures("shared_ray")
def test_a_driver_killed_at_random_moments_is_followed_by_one_that_comes_to_the_same_end(
    searches: Searches, tmp_path: Path
) -> None:
    options = ("--trials", 8, "--max-concurrent", 1, "--cost-ratio", 4, *_slow(0.15))
    undisturbed = Searches(tmp_path / "undisturbed", searches.space, searches.table)
    undisturbed.inline(*undisturbed.new("whole", *options))
    moments = random.Random(4)
    command: tuple[object, ...] = searches.new("killed", *options)
    journal = searches.storage / "killed" / "journal.log"
    finished: dict[int, float | None] = {}
    seen: set[str] = set()
    for _ in range(3):
        process = searches.start(*command)
        lines = _lines(journal)
        _wait(lambda: _lines(journal) > lines + moments.randint(3, 25) or process.poll() is not None)  # noqa: B023
        time.sleep(moments.random() * 0.5)
        workers = _workers(process)
        seen |= {worker.name().split(".")[0] for worker in workers}
        process.send_signal(signal.SIGKILL)
        process.communicate()
        _wait(lambda: not any(map(_alive, workers)), "workers of a killed search live on")  # noqa: B023
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
    process = searches.start(*searches.new("a", "--trials", 6, "--max-concurrent", 2, *_slow(0.4)))
    journal = searches.storage / "a" / "journal.log"
    _wait(lambda: _lines(journal) > 14)
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
    process = searches.start(*searches.new("a", *_slow(1.0)))
    _wait(lambda: _lines(searches.storage / "a" / "journal.log") > 3)
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
def test_ldrnet_searched_twice_gives_the_same_and_its_export_scores_the_same(searches: Searches) -> None:
    """The first search trains every stage 1, the second one shares them."""
    short = ("--set", "stage1.epochs=2", "--set", "stage2.rounds=1", "--max-concurrent", 1, "--trials", 3)
    space = ("--space", "ldrnet-stage2", "--dataset", "digits-ml:200", "--budget", "small", "--no-prune")
    for name, reuse in (("a", ["--no-reuse"]), ("b", [])):
        searches.inline(*space, "--name", name, *short, "--sampler", "tpe", *reuse)
    assert searches.truth("a") == searches.truth("b")
    assert [REUSED in trial.user_attrs for trial in searches.trials("b")] == [False, True, True]
    assert "exactly the numbers" in searches.evaluate(searches.storage / "a/best")


@pytest.mark.usefixtures("shared_ray")
def test_a_search_whose_first_trials_all_fail_stops_and_says_why(searches: Searches) -> None:
    out = searches.inline(*searches.new("a", "--trials", 30, "--set", "stage1.fail_above_lr=0.001"), code=1)
    assert "trials failed, and none got further" in out
    assert "ArithmeticError: learning rate" in out
    assert len(searches.trials("a")) < 30


@pytest.mark.usefixtures("shared_ray")
def test_time_budget_ends_a_search_that_can_go_on(searches: Searches) -> None:
    asked = searches.new("a", "--trials", 50, "--time-budget", "10s", "--no-prune", *_slow(0.5))
    out = searches.inline(*asked, code=None)  # 1 where a busy machine finishes no trial in that time
    assert "the time budget is used up" in out and "resume with: lt-search search --resume a" in out
    before = searches.trials("a")
    assert [trial for trial in before if trial.state is TrialState.RUNNING]
    searches.inline("--resume", "a", "--trials", len(before))
    after = searches.trials("a")
    assert [(trial.state, trial.params) for trial in after] == [(TrialState.COMPLETE, t.params) for t in before]


def test_two_raylets_with_separate_folders_share_one_search_and_its_stage_1(
    searches: Searches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 2)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    met = tmp_path / "met"
    met.mkdir()
    port = _free_port()
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    nodes = []
    try:
        for name, role in (("head", ["--head", f"--port={port}"]), ("other", [f"--address=127.0.0.1:{port}"])):
            folder = tmp_path / name
            folder.mkdir()
            with (folder / "log").open("w") as log:
                nodes.append(subprocess.Popen([*ray, *role], cwd=folder, stdout=log, stderr=log))
            _wait(lambda: "Ray runtime started" in (folder / "log").read_text(), "no node started")  # noqa: B023
        options = ("--trials", 6, "--address", f"127.0.0.1:{port}", "--no-prune", "--set", f"stage2.meet_in={met}")
        out = searches.run(*searches.new("a", *options, *ONE_STAGE_1, *_slow(0.5)))
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(60)
    assert "best: trial" in out
    trials = searches.trials("a")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    times = [(trial.datetime_start, trial.datetime_complete) for trial in trials]
    assert any(a[0] < b[1] and b[0] < a[1] for a, b in itertools.combinations(times, 2)), "two trials ran at once"
    assert len(list(met.iterdir())) == 2, "trials came to stage 2 on both nodes"
    assert len({trial.user_attrs[ADDRESS] for trial in trials}) == 1
    assert _trained_stage1s(trials) == 1, "on one node, and the other one took it over"


@pytest.mark.usefixtures("shared_ray")
def test_rows_are_searched_by_themselves_and_ranked(searches: Searches, tmp_path: Path) -> None:
    space = tmp_path / "rows.yaml"
    space.write_text(
        searches.space.read_text()
        + """\
rows:
  plain: {set: {stage1.epochs: 3}}
  slow: {set: {stage1.lr: 0.02, stage1.epochs: 3}, search: {stage2.bias: "uniform(-0.1, 0.1)"}}
"""
    )
    asked = ("--space", space, "--dataset", searches.table, "--name", "a", "--no-prune")
    alone = ("--max-concurrent", 1)
    out = searches.inline(*asked, *alone, "--trials", 2, "--time-budget", "1s", code=None)  # 1 if no trial finished
    assert "the time budget is used up; resume with: lt-search search --resume a" in out
    out = searches.inline("--resume", "a", *alone, "--trials", 3)
    folder = searches.storage / "a"
    ranking = pd.read_csv(folder / "ranking.csv")
    assert set(ranking["row"]) == {"plain", "slow"}
    assert list(ranking["finished"]) == [3, 3]
    assert ranking["value"].is_monotonic_decreasing
    assert ranking["behind"].iloc[0] == 0
    assert ranking["low"].iloc[1] <= ranking["behind"].iloc[1] <= ranking["high"].iloc[1]
    for row, value in zip(ranking["row"], ranking["value"], strict=True):
        trials = Journal.reader(folder / row / "journal.log").started()
        assert max(trial.value or 0 for trial in trials) == pytest.approx(value)
    slow = Journal.reader(folder / "slow/journal.log").started()
    assert slow[0].params["stage1.lr"] == 0.02
    assert all(-0.1 <= trial.params["stage2.bias"] <= 0.1 for trial in slow)

    shown = searches.command("status", "a", "--storage", searches.storage)
    assert "Rows by validation mAP" in shown
    taken = searches.inline(*asked, code=2)
    assert "resume it with: lt-search search --resume a" in taken
    assert "is a comparison" in searches.command("report", "a", "--storage", searches.storage, code=2)
    assert "resumes all rows" in searches.inline("--resume", "a", "--row", "slow", code=2)
    assert "differs from the run's" in searches.inline("--resume", "a", "--seed", 3, code=2)
    unknown = searches.inline("--space", space, "--dataset", searches.table, "--row", "plan", code=2)
    assert "did you mean plain?" in unknown


ONE_STAGE_1 = ("--set", "stage1.lr=0.5", "--set", "stage1.optimiser=sgd")
TWO_STAGE_1S = ("--search", "stage1.lr=choice(0.25, 0.5)", "--set", "stage1.optimiser=sgd")
"""Options that fix stage 1, or leave two different ones."""


def _trained_stage1s(trials: list[FrozenTrial]) -> int:
    """How many trials trained their stage 1 to its end."""
    return sum(STAGE1_COST in trial.user_attrs and REUSED not in trial.user_attrs for trial in trials)


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train for a driver, and Ray's that would start more of them."""
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        return [child for child in children if child.name().startswith((*TRAINING, "raylet", "gcs"))]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(condition: Any, what: str = "waited in vain", seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

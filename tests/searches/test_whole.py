"""Whole searches through Ray, run as a person runs them: to the end, twice, with rows, on two nodes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from lt_search.storage.journal import Journal
from lt_search.storage.schema import ADDRESS, REUSED
from tests.helpers.searches import (
    ONE_STAGE_1,
    REPOSITORY,
    TWO_STAGE_1S,
    Searches,
    free_port,
    slow,
    trained_stage1s,
    wait_until,
)

pytestmark = pytest.mark.slow


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
    assert trained_stage1s(searches.trials("without")) >= 6
    assert trained_stage1s(searches.trials("with")) == 2
    assert "stage1_trained=2 stage1_reused=6" in out
    log = (searches.storage / "with/search.log").read_text()
    assert log.count("starts at stage 2: it reuses stage 1 of with/") == 6
    listed = searches.command("store", "list", "--storage", searches.storage)
    assert listed.count("with/") == 2


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


def test_two_raylets_with_separate_folders_share_one_search_and_its_stage_1(
    searches: Searches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 2)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    met = tmp_path / "met"
    met.mkdir()
    port = free_port()
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    nodes = []
    try:
        for name, role in (("head", ["--head", f"--port={port}"]), ("other", [f"--address=127.0.0.1:{port}"])):
            folder = tmp_path / name
            folder.mkdir()
            with (folder / "log").open("w") as log:
                nodes.append(subprocess.Popen([*ray, *role], cwd=folder, stdout=log, stderr=log))
            wait_until(lambda: "Ray runtime started" in (folder / "log").read_text(), "no node started")  # noqa: B023
        options = ("--trials", 6, "--address", f"127.0.0.1:{port}", "--no-prune", "--set", f"stage2.meet_in={met}")
        out = searches.run(*searches.new("a", *options, *ONE_STAGE_1, *slow(0.5)))
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
    assert trained_stage1s(trials) == 1, "on one node, and the other one took it over"


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

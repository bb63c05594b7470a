from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lt_search.config.spec import RunSpec
from lt_search.pruning.probe_audit import Correlation, ProbeAudit
from lt_search.pruning.rungs import Rung
from lt_search.results.summary import RungSummary, RunSummary, TrialSummary, trials_csv
from lt_search.storage.files import FolderStore
from lt_search.tuning.progress import LiveStatus, render_leaderboard, render_status, status_line
from lt_search.tuning.run_log import RunLog


@pytest.fixture
def summary() -> RunSummary:
    return RunSummary(
        target=10,
        trials=(
            TrialSummary(
                0,
                "finished",
                0.7,
                0.02,
                {"stage1.lr": 0.5},
                {"stage1": 10, "stage2": 2},
                full_seconds={"stage1": 10, "stage2": 2},
            ),
            TrialSummary(
                1,
                "finished",
                0.8,
                0.02,
                {"stage1.lr": 0.25},
                {"stage1": 2, "stage2": 4},
                reused_from="run/0",
                full_seconds={"stage1": 20, "stage2": 4},
            ),
            TrialSummary(2, "pruned", None, None, {}, {"stage1": 6}, "stage 1 step 1"),
            TrialSummary(3, "failed", None, None, {}, {}, "boom"),
            TrialSummary(4, "running", None, None, {}, {}),
        ),
        rungs=(RungSummary(Rung(1, 1), 3, 1),),
    )


def test_the_best_is_a_finished_trial(summary: RunSummary) -> None:
    assert summary.best is not None
    assert summary.best.number == 1
    assert [trial.number for trial in summary.leaderboard] == [1, 0]
    assert RunSummary(1, summary.trials[2:], ()).best is None


def test_time_left_is_that_of_the_trials_still_to_come(summary: RunSummary) -> None:
    mean = (12 + 6 + 6) / 3
    assert summary.ended == 4
    assert summary.seconds_left(concurrent=2) == pytest.approx(6 * mean / 2)
    assert RunSummary(5, (), ()).seconds_left(1) is None


def test_the_line_can_be_grepped(tiny_spec: RunSpec, summary: RunSummary) -> None:
    line = status_line(tiny_spec, summary, 61, 2)
    pairs = dict(part.split("=") for part in line.split())
    assert pairs == {
        "trials": "4/10",
        "running": "1",
        "finished": "2",
        "pruned": "1",
        "failed": "1",
        "best_mAP": "0.8000",
        "best_trial": "1",
        "rungs": "1:1:2/3",
        "stage1_trained": "1",
        "stage1_reused": "1",
        "saved": "18s",
        "elapsed": "1m01s",
        "left": "24s",
    }


def test_a_terminal_shows_the_same_facts(tiny_spec: RunSpec, summary: RunSummary) -> None:
    text = io.StringIO()
    console = Console(file=text, width=120)
    console.print(render_status(tiny_spec, summary, {4: Rung(1, 3), 5: Rung(0, 0)}, 61, 2))
    console.print(render_leaderboard(tiny_spec, summary))
    for fact in (
        "4 of 10 done",
        "mAP 0.8000 ± 0.020 (trial 1)",
        "trial 4: stage 1 step 3 of 4",
        "trial 5: starting",
        "2 of 3 continue",
        "1m 01s so far",
        "stage1.lr=0.25",
    ):
        assert fact in text.getvalue()


def test_without_a_terminal_each_line_goes_to_the_log_too(
    tiny_spec: RunSpec, summary: RunSummary, tmp_path: Path
) -> None:
    text = io.StringIO()
    store = FolderStore(tmp_path)
    with LiveStatus(
        tiny_spec, RunLog(store), lambda driven: summary, dict, lambda: 2, Console(file=text, width=300)
    ) as live:
        live.on_loop_end()
        live.on_loop_end()
    lines = (tmp_path / "search.log").read_text().splitlines()
    assert len(lines) == 2, "one at the start, one at the end; the second tick came within a minute"
    assert [line.split(" ", 1)[1] for line in lines] == text.getvalue().splitlines()


AUDIT = (
    ProbeAudit(Rung(1, 1), 21, Correlation(0.1, -0.2, 0.4), None),
    ProbeAudit(Rung(1, 3), 3, None, None),
)


def test_the_probe_audit_is_logged_when_it_has_changed(tiny_spec: RunSpec, summary: RunSummary, tmp_path: Path) -> None:
    shown = [replace(summary, probe_audit=AUDIT)]
    log, console = RunLog(FolderStore(tmp_path)), Console(file=io.StringIO(), width=300)
    with LiveStatus(tiny_spec, log, lambda driven: shown[-1], dict, lambda: 2, console) as live:
        live.line()
        live.line()
        shown.append(replace(summary, probe_audit=AUDIT[:1]))
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "search.log").read_text().splitlines()]
    first, few = "probe stage=1 step=1 n=21 spearman=0.10 [-0.20,0.40] head=none", "probe stage=1 step=3 n=3 too few"
    assert [line for line in lines if line.startswith("probe ")] == [first, few, first]


def test_the_status_shows_the_probe_audit(tiny_spec: RunSpec, summary: RunSummary) -> None:
    text = io.StringIO()
    shown = replace(summary, probe_audit=AUDIT)
    Console(file=text, width=200).print(render_status(tiny_spec, shown, {}, None, 1))
    for fact in ("stage=1 step=1 n=21 spearman=0.10 [-0.20,0.40] head=none", "stage=1 step=3 n=3 too few"):
        assert fact in text.getvalue()


def test_without_a_driver_unfinished_trials_are_shown_as_interrupted(tiny_spec: RunSpec, summary: RunSummary) -> None:
    trials = tuple(replace(t, state="interrupted") if t.state == "running" else t for t in summary.trials)
    interrupted = replace(summary, trials=trials)
    line = status_line(tiny_spec, interrupted, None, 1)
    assert "interrupted=1" in line and "running" not in line
    text = io.StringIO()
    Console(file=text, width=200).print(render_status(tiny_spec, interrupted, {}, None, 1))
    assert "1 interrupted" in text.getvalue() and "running" not in text.getvalue()


def test_the_table_of_trials_leaves_empty_what_a_trial_has_not(summary: RunSummary) -> None:
    lines = trials_csv(summary.trials).splitlines()
    costs = "stage1_seconds,stage2_seconds,stage1_reused_from,attempts,note"
    assert lines[0].startswith(f"number,state,value,standard_error,{costs}")
    assert lines[3] == "2,pruned,,,6,,,1,stage 1 step 1,"

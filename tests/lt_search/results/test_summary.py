from __future__ import annotations

import io

import pandas as pd
import pytest

from lt_search.results.summary import RunSummary, TrialSummary, trials_csv


def trial(number: int, state: str, value: float | None = None, seconds: float = 1.0) -> TrialSummary:
    return TrialSummary(number, state, value, 0.01, {"stage1.lr": 0.1}, {"stage1": seconds}, note="x" * (number == 3))


TRIALS = (
    trial(0, "finished", 0.5),
    trial(1, "finished", 0.7, 3.0),
    trial(2, "finished", 0.7),
    trial(3, "pruned", seconds=2.0),
    trial(4, "failed", seconds=50.0),
    trial(5, "running", seconds=99.0),
)
SUMMARY = RunSummary(10, TRIALS, ())


def test_the_earlier_of_two_equal_trials_is_best() -> None:
    assert [t.number for t in SUMMARY.leaderboard] == [1, 2, 0]
    assert SUMMARY.best == TRIALS[1]
    assert RunSummary(3, TRIALS[3:], ()).best is None, "a stopped trial is never best"


def test_time_left_is_told_from_trials_that_ran_their_course() -> None:
    assert SUMMARY.ended == 5
    assert SUMMARY.seconds_left(2) == pytest.approx(5 * (1 + 3 + 1 + 2) / 4 / 2)
    assert RunSummary(3, TRIALS[4:], ()).seconds_left(1) is None


def test_the_table_has_a_row_per_trial_with_its_parameters() -> None:
    table = pd.read_csv(io.StringIO(trials_csv(TRIALS)))
    assert list(table["number"]) == [0, 1, 2, 3, 4, 5]
    assert table["value"].notna().sum() == 3
    assert (table["stage1.lr"] == 0.1).all()
    assert table["stage1_seconds"].tolist() == [1, 3, 1, 2, 50, 99]

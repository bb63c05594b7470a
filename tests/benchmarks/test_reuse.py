"""What the comparison with a plain Ray Tune script computes from the two searches' outcomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table

from benchmarks.reuse import (
    CASES,
    PLAIN,
    Outcome,
    Results,
    code_digest,
    compare,
    how_much_sooner,
    more_configurations,
    plain_stage2s,
    share_of_bound,
)
from lt_search.spec import RunSpec
from tests.lt_search.conftest import own_cache, tiny_csv, tiny_space, tiny_spec  # noqa: F401 (fixtures)

CASE = CASES["lmd-stage2/off"]


def plain(finished: list[tuple[float, float]], seconds: float = 90) -> Outcome:
    return Outcome(CASE.name, 0, PLAIN, seconds, 1, finished, start=10, stage1=18, stage2=2, code=code_digest())


def ours(finished: list[tuple[float, float]], seconds: float = 90) -> Outcome:
    return Outcome(CASE.name, 0, "ours", seconds, 1, finished, stage2=2 if finished else 0, code=code_digest())


def test_what_the_baseline_had_in_hand_when_time_was_up_is_not_lost_to_it() -> None:
    many = ours([(float(i), 0.5) for i in range(30)])
    assert more_configurations(plain([(30, 0.5), (60, 0.6), (90, 0.5)]), many) == pytest.approx(10)
    assert more_configurations(plain([(30, 0.5), (60, 0.6)]), many) == pytest.approx(10)
    assert more_configurations(plain([(85, 0.5)]), many) == pytest.approx(30 * 85 / 90), "it stopped others on the way"


def test_a_search_that_pays_only_plain_stage_2s_reaches_the_bound() -> None:
    baseline, most = plain([(30, 0.5)]), ours([(2.0 * i, 0.5) for i in range(1, 46)])
    assert share_of_bound(most) == pytest.approx(1)
    assert more_configurations(baseline, most) == pytest.approx(15), "(start + stage 1 + stage 2) / stage 2"


def test_our_configurations_are_timed_in_the_baselines_code(
    tiny_spec: RunSpec,  # noqa: F811
    tiny_csv: Path,  # noqa: F811
) -> None:
    configs = [tiny_spec.first_values(), tiny_spec.first_values() | {"stage2.bias": 0.5}]
    seconds = plain_stage2s(configs, tiny_spec, str(tiny_csv))
    assert len(seconds) == 2
    assert all(second > 0 for second in seconds)


def test_time_to_equal_quality_is_that_of_the_first_as_good_one() -> None:
    baseline = plain([(30, 0.5), (60, 0.6), (90, 0.55)])
    assert how_much_sooner(baseline, ours([(15, 0.59), (20, 0.6), (25, 0.7)])) == 3
    assert how_much_sooner(baseline, ours([(20, 0.59)])) == 0


@pytest.mark.parametrize(
    ("outcomes", "who"),
    [((plain([]), ours([])), "the baseline"), ((plain([(30, 0.5)]), ours([])), "the harness")],
)
def test_a_search_that_ended_nothing_is_compared_with_nothing(outcomes: tuple[Outcome, Outcome], who: str) -> None:
    results = Results(None)
    results.outcomes = [*outcomes]
    table = Table("baseline", "case", "seed", "ended", "rate", "ratio", "bound", "time", "best", "bars")
    compare(CASE, 1, results, table)
    assert list(table.columns[-1].cells) == [f"{who} trained nothing to the end: it needs more --seconds"]


def test_kept_outcomes_outlive_a_kill_while_one_was_written(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    first = Results(path)
    first.keep(plain([(30, 0.5)]))
    first.keep(ours([(20, 0.6)]))
    path.write_text(path.read_text()[:-10])
    again = Results(path)
    assert again.outcomes == first.outcomes[:1]
    again.keep(ours([(20, 0.7)]))
    assert [outcome.best for outcome in Results(path).outcomes] == [0.5, 0.7]


def test_what_other_code_kept_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    Results(path).keep(replace(ours([(20, 0.6)]), code="other"))
    assert Results(path).kept(CASE, 0, "ours") is None
    Results(path).keep(ours([(20, 0.6)]))
    kept = Results(path).kept(CASE, 0, "ours")
    assert kept is not None
    assert kept.best == 0.6

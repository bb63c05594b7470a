"""What the comparison with a plain Ray Tune script computes from the two searches' outcomes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune import Tuner
from rich.console import Console
from rich.table import Table

from benchmarks.reuse import (
    CASES,
    PLAIN,
    Case,
    Outcome,
    Results,
    code_digest,
    compare,
    how_much_sooner,
    medians,
    more_configurations,
    our_search,
    plain_search,
    plain_stage2s,
    share_of_bound,
)
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.spec import RunSpec
from lt_search.errors import ExitCode
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


def told(case: Case, plain: Outcome, ours: Outcome) -> str:
    """The last cell of a comparison."""
    results = Results(None)
    results.outcomes = [plain, ours]
    table = Table("baseline", "case", "seed", "ended", "rate", "ratio", "bound", "time", "best", "bars")
    compare(case, 1, results, table)
    (cell,) = table.columns[-1].cells
    return str(cell)


def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reuse.ray_cluster", lambda address: nullcontext())
    monkeypatch.setattr("benchmarks.reuse._cores", lambda: 1)


def end_search(monkeypatch: pytest.MonkeyPatch, code: ExitCode) -> None:
    """Our searches end at once, in the way that `search` tells of by its exit code."""

    def search(options: SpecOptions, how: RunOptions, console: Console) -> ExitCode:
        console.print("why it ended")
        return code

    monkeypatch.setattr("lt_search.tuning.search.search", search)


def end_fit(monkeypatch: pytest.MonkeyPatch, during: Callable[[], None], errors: Sequence[Exception] = ()) -> None:
    """Ray Tune's searches end at once; Ctrl-C until then does what it does in the real one."""

    def fit(tuner: Tuner) -> SimpleNamespace:
        if not int(os.getenv("TUNE_DISABLE_SIGINT_HANDLER", "0")):
            signal.signal(signal.SIGINT, lambda number, frame: None)
        during()
        folder = Path(tuner._local_tuner.get_run_config().storage_path)
        (folder / "events.jsonl").write_text("")
        return SimpleNamespace(errors=list(errors))

    monkeypatch.setattr(Tuner, "fit", fit)


def test_our_search_that_was_interrupted_ends_the_benchmark_and_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_ray(monkeypatch)
    end_search(monkeypatch, ExitCode.INTERRUPTED)
    results = Results(tmp_path / "outcomes.jsonl")
    with pytest.raises(KeyboardInterrupt):
        results.get(CASE, 0, "ours", lambda: our_search(CASE, 0))
    assert Results(tmp_path / "outcomes.jsonl").outcomes == results.outcomes == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_baseline_that_was_interrupted_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, number: int, swallowed: bool
) -> None:
    no_ray(monkeypatch)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # Ray has one, too

    def stop() -> None:
        with suppress(KeyboardInterrupt) if swallowed else nullcontext():
            signal.raise_signal(number)

    end_fit(monkeypatch, stop)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            plain_search(CASE, 0)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    finally:
        signal.signal(signal.SIGTERM, before)


def test_our_search_that_failed_ends_the_benchmark_and_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_ray(monkeypatch)
    end_search(monkeypatch, ExitCode.FAILED)
    with pytest.raises(RuntimeError, match="why it ended"):
        Results(tmp_path / "outcomes.jsonl").get(CASE, 0, "ours", lambda: our_search(CASE, 0))
    assert Results(tmp_path / "outcomes.jsonl").outcomes == []


def test_a_baseline_whose_trials_crashed_is_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    no_ray(monkeypatch)
    end_fit(monkeypatch, lambda: None, [MemoryError("no room")])
    with pytest.raises(RuntimeError, match="no room"):
        plain_search(CASE, 0)


def test_a_baseline_that_had_its_time_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    no_ray(monkeypatch)
    monkeypatch.setenv("TUNE_RESULT_BUFFER_LENGTH", "1")
    found = []
    end_fit(monkeypatch, lambda: found.extend(name for name in os.environ if name.startswith("TUNE_")))
    assert plain_search(CASE, 0).finished == []
    assert found == ["TUNE_DISABLE_SIGINT_HANDLER"], "all other settings are Ray's own"
    assert os.environ["TUNE_RESULT_BUFFER_LENGTH"] == "1"


@pytest.mark.parametrize(
    ("outcomes", "who"),
    [((plain([]), ours([])), "the baseline and the harness"), ((plain([(30, 0.5)]), ours([])), "the harness")],
)
def test_a_harness_that_ended_nothing_missed_all_bars(outcomes: tuple[Outcome, Outcome], who: str) -> None:
    missed = "configurations MISSED (8x); best MISSED"
    assert told(CASE, *outcomes) == f"{who} trained nothing to the end in 90 s; {missed}"


def test_a_harness_that_ended_nothing_missed_all_bars_of_the_joint_space_too() -> None:
    case = CASES["ldrnet/on"]
    outcomes = [replace(its, case=case.name, seconds=case.seconds) for its in (plain([(30, 0.5)]), ours([]))]
    nothing, *bars = told(case, *outcomes).split("; ")
    assert nothing == "the harness trained nothing to the end in 900 s"
    assert bars == ["0% of the bound", "ratio / bound 0%", "time MISSED (2.5x)", "best MISSED"]


def test_a_baseline_that_ended_nothing_is_no_measure() -> None:
    assert told(CASE, plain([]), ours([(30, 0.5)])) == "the baseline trained nothing to the end in 90 s"


def test_the_ratio_over_the_bound_is_printed_beside_the_share_of_it() -> None:
    case = CASES["lmd-stage2/on"]
    baseline, harness = plain([(60, 0.5)]), ours([(2.5 * i, 0.5) for i in range(1, 37)])
    bars = told(case, *(replace(its, case=case.name, seconds=case.seconds) for its in (baseline, harness)))
    share, more, bound = 36 / 600 * 2, 36 / 600 * 60, (10 + 18 + 2) / 2
    assert f"{share:.0%} of the bound MISSED (80 %); ratio / bound {more / bound:.0%}; " in bars


def test_medians_count_a_seed_in_which_the_harness_ended_nothing() -> None:
    good = plain([(90, 0.5)]), ours([(30.0 + i, 0.5) for i in range(10)])
    assert medians([good]) == (pytest.approx(10), 3, 1)
    assert medians([good, (plain([(90, 0.5)]), ours([]))]) == (pytest.approx(5), 1.5, 2)
    assert medians([good, (plain([]), ours([]))]) == (pytest.approx(5), 1.5, 2)
    assert medians([good, (plain([]), ours([(30, 0.5)]))]) == (pytest.approx(10), 3, 1)
    assert medians([(plain([]), ours([(30, 0.5)]))]) is None


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


@pytest.mark.parametrize("other", ['{"case": "lmd-stage2/off", "pace": 3, "code": "other"}', '{"case": "of old"}'])
def test_what_other_code_kept_in_another_form_stays_in_the_file(tmp_path: Path, other: str) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_text(f"{other}\n")
    results = Results(path)
    assert results.outcomes == []
    results.keep(ours([(20, 0.6)]))
    assert path.read_text().splitlines()[0] == other
    assert Results(path).outcomes == results.outcomes

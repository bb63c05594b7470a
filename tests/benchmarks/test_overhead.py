"""What the overhead benchmark counts, and that each of its parts runs to its ratio."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from benchmarks.overhead import (
    FIRST_RUNG,
    STAGE1,
    STAGE2,
    Clock,
    Throughput,
    ask_part,
    ask_seconds,
    few_sampler,
    in_journal,
    journal_part,
    ldrnet_spec,
    ray_part,
    study_of,
    study_of_few,
    suggest_few,
    through_journal,
    values_of,
)
from lt_search.samplers.history import PROPOSED
from lt_search.storage.journal import Journal


def test_a_clock_counts_a_report_in_its_trial_too(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 10.0, 10.5, 12.0, 12.5, 20.0, 24.0])
    monkeypatch.setattr("benchmarks.overhead.time.perf_counter", lambda: next(times))
    clock = Clock(2)
    with clock.trial(0):
        pass
    with clock.report(0):
        pass
    with clock.trial(1):
        pass
    assert clock.per_trial == pytest.approx((1.0 + 1.5 + 4.0) / 2)
    assert clock.per_report == pytest.approx(2.5)


def test_throughput_counts_from_the_end_of_the_first_trial() -> None:
    through = Throughput(seconds=6.0, trials=4, reports=12)
    assert through.per_trial == 2.0
    assert through.per_report == 0.5


def test_every_trial_goes_through_rungs_and_journal_to_its_end_or_a_stop(tmp_path: Path) -> None:
    clock = Clock(12)
    assert sum(1 for _ in through_journal(ldrnet_spec(), tmp_path, clock)) == 12
    trials = Journal.reader(tmp_path / "journal.log").trials()
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        if trial.state.name == "COMPLETE":
            assert trial.value == values_of(trial.number)[-1]
        else:
            assert FIRST_RUNG in trial.intermediate_values


def test_the_study_for_asks_repeats_every_other_stage_1() -> None:
    spec = ldrnet_spec()
    trials = study_of(spec, 12).trials
    names = [name for name, parameter in spec.parameters.items() if parameter.stage == "stage1"]
    of = [tuple(trial.params[name] for name in names) for trial in trials]
    assert of[1::2] == of[0::2]
    assert len(set(of)) == 6


def ratios(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"([\d.]+)x", text.replace("(1.5x)", ""))]


def test_the_part_journal_compares_the_same_trials(capsys: pytest.CaptureFixture[str]) -> None:
    journal_part(12)
    printed = capsys.readouterr().out
    assert f"at most {STAGE1 + STAGE2} reports each" in printed
    trials = [float(found) for found in re.findall(r"([\d.]+) ms a trial", printed)]
    assert ratios(printed)[0] == pytest.approx(trials[1] / trials[0], abs=0.02)


def test_the_part_ask_compares_both_samplers_with_tpe_on_two_studies(capsys: pytest.CaptureFixture[str]) -> None:
    ask_part(trials=30, asks=1)
    printed = capsys.readouterr().out
    assert len(ratios(printed)) == 4
    assert printed.count("TPESampler (baseline)") == 2


def test_the_part_ask_says_which_sampler_is_within_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask_seconds(study: optuna.Study, suggest: object, samplers: Iterable[str], asks: int) -> dict[str, float]:
        return dict(zip(samplers, (0.1, 0.15, 0.16), strict=True))

    monkeypatch.setattr("benchmarks.overhead.ask_seconds", ask_seconds)
    ask_part(trials=4, asks=1)
    printed = capsys.readouterr().out
    assert printed.count("ReseededSampler: 150.0 ms, ratio: 1.50x, met (1.5x)") == 2
    assert printed.count("StagedSampler: 160.0 ms, ratio: 1.60x, MISSED (1.5x)") == 2


def test_asks_are_timed_on_a_journal_with_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of_few(12)
    path = tmp_path / "few.log"
    ask_seconds(in_journal(study, path), suggest_few, {"staged": few_sampler()}, asks=1)
    written = Journal.reader(path).trials()
    assert [(t.params, t.state, t.value) for t in written[:12]] == [(t.params, t.state, t.value) for t in study.trials]
    assert all(PROPOSED in trial.system_attrs for trial in written[12:])
    stored = []
    monkeypatch.setattr("benchmarks.overhead.show_asks", lambda what, study, *more: stored.append(study._storage))
    ask_part(trials=4, asks=1)
    assert [type(storage) for storage in stored] == [JournalStorage] * 2


def test_the_study_of_few_has_four_stage_2s_in_all() -> None:
    tried = {(t.params["stage2.head"], t.params.get("stage2.scale")) for t in study_of_few(40).trials}
    assert tried == {("linear", None), ("cosine", 8), ("cosine", 16), ("cosine", 32)}


@pytest.mark.slow
def test_the_part_ray_compares_both_searches(capsys: pytest.CaptureFixture[str]) -> None:
    ray_part(trials=3)
    printed = capsys.readouterr().out
    assert "ours: " in printed
    assert len(ratios(printed)) == 2

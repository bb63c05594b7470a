"""What the journal holds of a trial, read back; also as earlier versions wrote it."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from lt_search.pruning.rungs import Decision, Rung
from lt_search.storage.schema import (
    RungEntry,
    TrialRecord,
    first_decisions,
    records_of,
    rung_attribute,
    rung_records,
    stage1_scores,
    stopped_attributes,
)

ENTRY = RungEntry("abc", 0.5, None, Decision.STOP, peers=3, cut=0.6, counts=True, head_value=0.4)
R1, R2 = Rung(1, 4), Rung(2, 1)


def trial(number: int, state: TrialState = TrialState.RUNNING, **attributes: object) -> FrozenTrial:
    study = optuna.create_study(direction="maximize")
    value = 0.9 if state == TrialState.COMPLETE else None
    study.add_trial(optuna.trial.create_trial(state=state, value=value, user_attrs=attributes))
    found = study.trials[0]
    found.number = number
    return found


def test_a_rung_entry_is_read_back() -> None:
    assert RungEntry.from_attribute(ENTRY.to_attribute()) == ENTRY


def test_an_entry_of_an_earlier_version_is_read() -> None:
    written = ENTRY.to_attribute() | {"off": False}
    del written["head_value"]
    found = RungEntry.from_attribute(written)
    assert (found.value, found.decision, found.head_value) == (0.5, Decision.STOP, None)


def test_a_trial_before_its_first_report_has_nothing() -> None:
    found = TrialRecord.of(trial(3))
    assert (found.number, found.address, found.attempts, found.rungs) == (3, None, 0, {})
    assert found.final is None and found.finished_value is None and not found.reused_from


def test_only_a_finished_trial_has_a_finished_value() -> None:
    decided = trial(0, final=[0.9, 0.01])  # its driver was killed before it could end it
    assert TrialRecord.of(decided).final == (0.9, 0.01)
    assert TrialRecord.of(decided).finished_value is None
    assert TrialRecord.of(trial(0, TrialState.COMPLETE, final=[0.9, 0.01])).finished_value == 0.9


def test_rungs_are_rebuilt_from_entries_that_count() -> None:
    late = RungEntry("abc", 0.7, 0.1, Decision.CONTINUE, peers=4, cut=0.6, counts=False)
    trials = records_of(
        [trial(0, **{rung_attribute(R1): ENTRY.to_attribute()}), trial(1, **{rung_attribute(R1): late.to_attribute()})]
    )
    (record,) = rung_records(trials, [R1, R2])
    assert (record.rung, record.key, record.value, record.standard_error) == (R1, "abc", 0.5, None)
    assert first_decisions(trials) == {(R1, "abc"): Decision.STOP}


def test_scores_pair_the_first_probe_with_the_best_final_objective() -> None:
    trials = records_of(
        trial(
            number,
            TrialState.COMPLETE,
            stage1_address=f"a{number}",
            final=[float(number), None],
            **{
                rung_attribute(R1): RungEntry(
                    f"a{number}", number / 9, 0.0, Decision.CONTINUE, 0, None, True
                ).to_attribute()
            },
        )
        for number in range(5)
    )
    (audit,) = stage1_scores(trials, [R1, R2]).audit()
    assert audit.n == 5
    assert audit.probe is not None and audit.probe.value == pytest.approx(1.0)
    assert audit.head is None


def test_the_sampler_sees_whether_a_trial_was_stopped_in_stage_1() -> None:
    assert stopped_attributes(R1) == {"stopped": "stage 1 step 4", "stopped_in_stage1": True}
    assert stopped_attributes(R2) == {"stopped": "stage 2 step 1"}

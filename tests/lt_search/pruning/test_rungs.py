"""The rung machine against tables of events, and against properties under random ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_search.pruning.rungs import Decision, Record, Rung, RungMachine, cutoff

R1, R2 = Rung(1, 2), Rung(2, 1)
GO, STOP = Decision.CONTINUE, Decision.STOP


@dataclass(frozen=True)
class Event:
    """A trial crosses a rung, and what is to be decided."""

    key: str
    value: float
    decision: Decision
    standard_error: float | None = 0.0
    rung: Rung = R1


TABLES = {
    "the first eta trials are never stopped: a rung without peers does not decide": [
        Event("a", 0.9, GO),
        Event("b", 0.1, GO),
        Event("c", 0.0, STOP),
    ],
    "the best half goes on with eta 2": [
        Event("a", 0.5, GO),
        Event("b", 0.4, GO),
        Event("c", 0.45, STOP),  # cut 0.5, the best 1 of 3
        Event("d", 0.6, GO),  # cut 0.5, the best 2 of 4
        Event("e", 0.55, GO),  # cut 0.55, the best 2 of 5
        Event("f", 0.54, GO),  # cut 0.54, the best 3 of 6
        Event("g", 0.53, STOP),  # cut 0.54, the best 3 of 7
    ],
    "a value within one standard error of the cut goes on": [
        Event("a", 0.5, GO),
        Event("b", 0.4, GO),
        Event("c", 0.45, GO, standard_error=0.05),
        Event("d", 0.39, STOP, standard_error=0.05),  # cut 0.45, the best 2 of 4
    ],
    "a value whose error is not known is never stopped": [
        Event("a", 0.5, GO),
        Event("b", 0.4, GO),
        Event("c", 0.1, GO, standard_error=None),
        Event("d", 0.1, STOP),
    ],
    "a key counts once: the same stage 1 of another trial adds no record": [
        Event("a", 0.5, GO),
        Event("a", 0.5, GO),
        Event("a", 0.5, GO),
        Event("b", 0.1, GO),
    ],
    "the first record of a key wins": [
        Event("a", 0.5, GO),
        Event("b", 0.6, GO),
        Event("c", 0.7, GO),
        Event("c", 0.0, GO),
    ],
    "stages are never compared": [
        Event("a", 0.9, GO),
        Event("b", 0.8, GO),
        Event("c", 0.9, GO),
        Event("1", 0.1, GO, rung=R2),
        Event("2", 0.05, GO, rung=R2),
        Event("3", 0.2, GO, rung=R2),
    ],
}


@pytest.mark.parametrize("events", TABLES.values(), ids=list(TABLES))
def test_decides_as_the_table_says(events: list[Event]) -> None:
    machine = RungMachine([R1, R2], eta=2)
    for event in events:
        verdict = machine.cross(Record(event.rung, event.key, event.value, event.standard_error))
        assert verdict.decision is event.decision, event


def test_stops_nothing_when_pruning_is_off_but_records_all() -> None:
    machine = RungMachine([R1], eta=2, enabled=False)
    decisions = [machine.cross(Record(R1, str(i), -float(i))).decision for i in range(6)]
    assert set(decisions) == {GO}
    assert len(machine.records(R1)) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_values_that_are_not_finite(value: float) -> None:
    machine = RungMachine([R1])
    with pytest.raises(ValueError, match="not finite"):
        machine.cross(Record(R1, "a", value))
    assert machine.records(R1) == ()


def test_refuses_a_step_that_is_no_rung() -> None:
    with pytest.raises(ValueError, match="stage 1 step 3 is not a rung"):
        RungMachine([R1]).cross(Record(Rung(1, 3), "a", 0.5))


def test_refuses_an_eta_that_stops_nothing() -> None:
    with pytest.raises(ValueError, match="eta is 1"):
        RungMachine([R1], eta=1)


values = st.floats(0, 1, allow_nan=False)
records = st.lists(
    st.builds(Record, st.sampled_from([R1, R2]), st.sampled_from("abcdefgh"), values, st.floats(0, 0.2)), max_size=40
)
etas = st.integers(2, 4)


@given(records, etas)
def test_restored_machine_decides_like_the_one_that_never_died(events: list[Record], eta: int) -> None:
    whole = RungMachine([R1, R2], eta)
    for event in events:
        whole.cross(event)
    half = len(events) // 2
    before = RungMachine([R1, R2], eta)
    for event in events[:half]:
        before.cross(event)
    after = RungMachine([R1, R2], eta)
    after.restore([record for rung in before.rungs for record in before.records(rung)])
    verdicts = [after.cross(event) for event in events[half:]]
    again = RungMachine([R1, R2], eta)
    expected = [again.cross(event) for event in events][half:]
    assert verdicts == expected
    assert [after.records(r) for r in after.rungs] == [whole.records(r) for r in whole.rungs]


@given(records, etas)
def test_a_stopped_value_is_below_the_best_share_by_more_than_its_error(events: list[Record], eta: int) -> None:
    machine = RungMachine([R1, R2], eta)
    for event in events:
        verdict = machine.cross(event)
        at_rung = {record.key: record for record in machine.records(event.rung)}
        mine = at_rung[event.key]
        better = sum(other.value > mine.value + (mine.standard_error or 0.0) for other in at_rung.values())
        if verdict.decision is STOP:
            assert len(at_rung) - 1 >= eta
            assert better >= max(1, len(at_rung) // eta)
        elif len(at_rung) - 1 >= eta:
            assert better < max(1, len(at_rung) // eta)


@given(st.lists(values, min_size=1, max_size=30), etas)
def test_cutoff_is_the_value_of_rank_n_over_eta(at_rung: list[float], eta: int) -> None:
    cut = cutoff(sorted(at_rung), eta)
    rank = max(1, len(at_rung) // eta)
    assert sum(value > cut for value in at_rung) < rank <= sum(value >= cut for value in at_rung)

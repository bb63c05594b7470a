"""Stage-wise asynchronous successive halving, as a pure state machine.

Events in, decisions out; no clock, no global random numbers, no Ray. A value is recorded only at the rung that is
crossed now, values of different stages are never compared, and the whole state can be rebuilt from the records.

Stopping variant of ASHA: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, Algorithm 2.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Decision(StrEnum):
    """What a trial does after a rung."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, order=True)
class Rung:
    """A point of comparison: `step` steps of `stage` are done (1-based count)."""

    stage: int
    step: int

    def __str__(self) -> str:
        return f"stage {self.stage} step {self.step}"


@dataclass(frozen=True)
class Record:
    """One value at one rung."""

    rung: Rung
    key: str
    """Who is compared: the stage-1 address in stage 1, the trial in stage 2. A key counts once per rung."""
    value: float
    """Objective on the validation split; larger is better; finite."""
    standard_error: float | None = 0.0
    """Bootstrap standard error of `value`; None where it is not known, and then the value prunes no trial."""


@dataclass(frozen=True)
class Verdict:
    """A decision with what it was based on."""

    decision: Decision
    peers: int
    """Other keys recorded at this rung at the time of the decision."""
    cut: float | None
    """The value to reach; None while the rung does not decide yet."""
    first: bool
    """Whether this was the first record of its key at this rung, the one that counts."""


class RungMachine:
    """Decides, rung by rung, which trials continue.

    Args:
        rungs: where trials are compared.
        eta: the fraction 1 / eta of the trials at a rung goes on; 2 or more.
        enabled: False records values and stops nothing (`--no-prune`).

    Raises:
        ValueError: if `eta` is below 2.
    """

    def __init__(self, rungs: Iterable[Rung], eta: int = 3, *, enabled: bool = True) -> None:
        if eta < 2:
            raise ValueError(f"eta is {eta}, but at least 2 is needed for a rung to stop anything")
        self.eta = eta
        self.enabled = enabled
        self._records: dict[Rung, dict[str, Record]] = {rung: {} for rung in sorted(set(rungs))}
        self._ascending: dict[Rung, list[float]] = {rung: [] for rung in self._records}

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """All rungs, in the order a trial meets them."""
        return tuple(self._records)

    def records(self, rung: Rung) -> tuple[Record, ...]:
        """The records of one rung, in order of arrival."""
        return tuple(self._records[rung].values())

    def restore(self, records: Iterable[Record]) -> None:
        """Adds records of an earlier process; the first one of a key wins, unknown rungs are refused."""
        for record in records:
            self._add(record)

    def cross(self, record: Record) -> Verdict:
        """Records a value at the rung it crosses now, and decides.

        A key that is already there keeps its first value, and is judged by it against the current peers.

        Raises:
            ValueError: if the rung is unknown or the value is not finite.
        """
        first = self._add(record)
        record = self._records[record.rung][record.key]
        values = self._ascending[record.rung]
        peers = len(values) - 1
        if peers < self.eta:
            return Verdict(Decision.CONTINUE, peers, None, first)
        cut = cutoff(values, self.eta)
        below = record.standard_error is not None and record.value + record.standard_error < cut
        stops = below and self.enabled
        return Verdict(Decision.STOP if stops else Decision.CONTINUE, peers, cut, first)

    def _add(self, record: Record) -> bool:
        """Keeps a record unless its key is there already; returns whether it was kept."""
        self._check(record)
        at_rung = self._records[record.rung]
        if record.key in at_rung:
            return False
        at_rung[record.key] = record
        insort(self._ascending[record.rung], record.value)
        return True

    def _check(self, record: Record) -> None:
        if record.rung not in self._records:
            raise ValueError(f"{record.rung} is not a rung; rungs are {', '.join(map(str, self._records)) or 'none'}")
        if not math.isfinite(record.value):
            raise ValueError(f"the value {record.value} at {record.rung} is not finite; such a trial has failed")


def cutoff(ascending: Sequence[float], eta: int) -> float:
    """The smallest value among the best 1 / eta (at least one) of values in ascending order."""
    return ascending[-max(1, len(ascending) // eta)]

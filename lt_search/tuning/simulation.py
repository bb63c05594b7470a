"""A search without training: what the sampler and the rungs would have it train."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from lt_search.config.parameters import propose
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.pruning.rungs import Decision, Record, Rung, RungMachine
from lt_search.samplers import REUSE_COST, STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1
from lt_search.storage.addresses import stage1_address
from lt_search.storage.schema import first_decisions, records_of, rung_records
from trainers.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class StageCosts:
    """What one trial takes."""

    seconds: Mapping[int, float]
    """Seconds of a step of each stage, evaluation included."""
    origin: str
    """Where they were measured."""
    checkpoint_bytes: int
    """Of one checkpoint, the larger of both stages'."""
    artefact_bytes: int
    """Of a finished stage 1 in the store, with the features that are small enough to be stored."""

    def of(self, stage: int, spec: RunSpec) -> float:
        """Seconds of a whole stage."""
        return self.seconds[stage] * spec.stage_lengths[stage - 1]


@dataclass(frozen=True)
class Begun:
    """What a run that was begun has so far."""

    target: int | None = None
    """Trials that it is to have; None where it was not begun."""
    trials: Sequence[FrozenTrial] = ()
    """Those that were ever handed out."""

    @property
    def ended(self) -> list[FrozenTrial]:
        """The trials that will not be trained on."""
        return [trial for trial in self.trials if trial.state.is_finished()]


NOTHING = Begun()


@dataclass(frozen=True)
class Expected:
    """What a search is expected to train."""

    stage1s: int
    """Different stage 1s begun."""
    finished_stage1s: int
    """Of these, how many come to their end, where they are stored; the others leave nothing behind."""
    arrivals: Mapping[Rung, int]
    """How many come to each rung: stage 1s in stage 1, trials in stage 2."""
    steps: Mapping[int, int]
    """Steps trained in each stage, in all."""


Counts = Counter[str | Rung | int]
"""What trials add up to: `BEGUN` and `FINISHED` stage 1s, arrivals by rung, and steps by stage."""

BEGUN, FINISHED = "begun", "finished"


def expect(
    spec: RunSpec,
    trials: int,
    costs: StageCosts,
    sampler: optuna.samplers.BaseSampler,
    stored: Callable[[str], bool],
    compute: str = "cpu:1",
    begun: Begun = NOTHING,
) -> Expected:
    """What a search is expected to train: the sampler's own choices and the rungs' decisions, given random values.

    A trial whose fields exclude each other fails without training.

    Args:
        spec: the run.
        trials: trials to train.
        costs: what the stages cost; they decide how often a stage 1 is used again.
        sampler: the run's.
        stored: whether the stage 1 of an address is in the store already.
        compute: on what trials are to be computed, see `lt_search.storage.addresses.compute_kind`.
        begun: what was there before: trials that ended are learned from and compared with, the others are trained
            first, in full.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.add_trials(begun.ended)
    interrupted = [trial.params for trial in begun.trials if not trial.state.is_finished()]
    for values in interrupted if begun.trials else [spec.first_values()]:
        study.enqueue_trial(values)
    simulation = _Simulation(spec, costs, stored, begun)
    early, late = Counts(), Counts()
    simulated = min(trials, SIMULATED_TRIALS)
    for number in range(simulated):
        trial = study.ask()
        drawn = propose(trial, spec.parameters, flatten(spec.config))
        try:
            address = stage1_address(spec, drawn, compute)
        except ValueError:
            study.tell(trial, state=TrialState.FAIL)
            continue
        (late if number >= simulated // 2 else early).update(simulation.train(study, trial, address))
    share = (trials - simulated // 2) / (simulated - simulated // 2)
    found = {what: early[what] + round(share * late[what]) for what in early | late}
    return Expected(
        found.get(BEGUN, 0),
        found.get(FINISHED, 0),
        {rung: found.get(rung, 0) for rung in spec.rung_list},
        {stage: found.get(stage, 0) for stage in (1, 2)},
    )


class _Simulation:
    """Trials one after the other, with random values in place of training; see `expect` for the arguments.

    What a trial and the rungs do here is what `controller.Referee` has them do, without the grace of one
    standard error, which only training shows.
    """

    def __init__(self, spec: RunSpec, costs: StageCosts, stored: Callable[[str], bool], begun: Begun) -> None:
        self._spec, self._costs, self._stored = spec, costs, stored
        self._finished: set[str] = set()
        self._machine = RungMachine(spec.rung_list, spec.eta, enabled=spec.prune)
        ended = records_of(begun.ended)
        records = rung_records(ended, spec.rung_list)
        self._worth = self._in_order(record for record in records if record.rung.stage == 1)
        addresses = {str(trial.number): trial.address or "" for trial in ended}
        for record in records:
            address = record.key if record.rung.stage == 1 else addresses[record.key]
            value = self._value(record.rung, address, f"ended:{record.key}")
            self._machine.restore([Record(record.rung, record.key, value)])
        self._first_decisions = first_decisions(ended)

    def train(self, study: optuna.Study, trial: optuna.Trial, address: str) -> Counts:
        """Trains a trial until it is stopped or complete, and tells the study; returns what that took."""
        lengths = self._spec.stage_lengths
        end1 = Rung(1, lengths[0])
        trains = not (self._spec.reuse and self._is_settled(address))
        counts = Counts({BEGUN: int(trains)})
        own = f"plan:{trial.number}"
        stop = None
        for rung in self._machine.rungs:
            key = address if rung.stage == 1 else own
            value = self._value(rung, address, own)
            verdict = self._machine.cross(Record(rung, key, value))
            trial.report(value, rung.step + (lengths[0] if rung.stage == 2 else 0))
            counts[rung] += verdict.first or trains
            decision = self._first_decisions.setdefault((rung, key), verdict.decision)
            if decision is Decision.STOP:
                stop = rung
                break
        end = stop or Rung(2, lengths[1])
        if trains:
            counts[1] = min(end, end1).step
        if trains and end >= end1:
            counts[FINISHED] = 1
            self._finished.add(address)
        if end.stage == 2:
            counts[2] = end.step
        if end >= end1:
            trial.set_user_attr(STAGE1_COST, self._costs.of(1, self._spec))
        if stop is None:
            self._complete(study, trial, self._value(end, address, own), reuses=not trains)
        else:
            if stop.stage == 1:
                trial.set_user_attr(STOPPED_IN_STAGE1, True)
            study.tell(trial, state=TrialState.PRUNED)
        return counts

    def _complete(self, study: optuna.Study, trial: optuna.Trial, value: float, reuses: bool) -> None:
        seconds = self._costs.of(2, self._spec)
        trial.set_user_attr(STAGE2_COST, seconds)
        if reuses:
            trial.set_user_attr(REUSE_COST, seconds + TURNAROUND)
        study.tell(trial, value)

    def _is_settled(self, address: str) -> bool:
        """Whether nobody trains a stage 1 any more: it is there, or was stopped and would be stopped again."""
        ahead = [rung for rung in self._machine.rungs if rung.stage == 1]
        stopped = any(self._first_decisions.get((rung, address)) is Decision.STOP for rung in ahead)
        return stopped or address in self._finished or self._stored(address)

    def _in_order(self, records: Iterable[Record]) -> dict[str, float]:
        """Worths of a run's own stage 1s, in the order that it found; values of a metric have another scale."""
        last = {record.key: (record.rung, record.value) for record in sorted(records, key=lambda record: record.rung)}
        worths = sorted(map(self._nth_worth, range(len(last))))
        return dict(zip(sorted(last, key=lambda key: last[key]), worths, strict=True))

    def _value(self, rung: Rung, address: str, own: str) -> float:
        """The value at a rung of the trial `own`."""
        stage1 = self._worth.setdefault(address, self._nth_worth(len(self._worth)))
        return stage1 + (STAGE2_WEIGHT * self._random(own) if rung.stage == 2 else 0.0)

    def _nth_worth(self, number: int) -> float:
        """Evenly spread whatever their number (the golden ratio's sequence), so that no plan has uncommon luck.

        Nor do they depend on addresses, which change with versions and devices.
        """
        return (self._random("stage1") + number * GOLDEN) % 1

    def _random(self, key: str) -> float:
        return derive_seed(self._spec.seed, "plan", key) / 2**63


STAGE2_WEIGHT = 0.3
"""Range of what stage 2 adds to a value, over that of what stage 1 does. The probe is taken to foretell the latter.

The more stage 2 matters, the more of them a stage 1 gets, and the fewer stage 1s are begun. Proposals learn, and so
most stage 2s of a search come to be good ones, which differ less than its stage 1s do."""

GOLDEN = (5**0.5 - 1) / 2

TURNAROUND = 0.5
"""Seconds that handing out a trial and writing its files add to a stage 2, about, on one core (benchmarks/reuse)."""

SIMULATED_TRIALS = 100
"""Proposals that a plan makes; of a longer search, their second half stands for the rest."""

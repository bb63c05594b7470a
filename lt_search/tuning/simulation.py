"""Simulated search: what the sampler's proposals and the rungs' decisions would have a search train."""

from __future__ import annotations

import random
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
    from collections.abc import Callable, Mapping, Sequence

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
    """Of a stage-1 artefact in the store, with the features that are small enough to be stored."""

    def of(self, stage: int, spec: RunSpec) -> float:
        """Seconds of a whole stage."""
        return self.seconds[stage] * spec.stage_lengths[stage - 1]


@dataclass(frozen=True)
class Expected:
    """What a search is expected to train."""

    stage1_runs: int
    """Stage-1 trainings begun."""
    stage1_artefacts: int
    """Of these, how many reach their end, where they are stored; the others leave nothing behind."""
    arrivals: Mapping[Rung, int]
    """How many reach each rung: stage-1 configurations in stage 1, trials in stage 2."""
    steps: Mapping[int, int]
    """Steps trained in each stage, in all."""


BEGUN, FINISHED = "begun", "finished"
"""Keys under which stage-1 trainings are counted; the others are rungs (arrivals) and stages (steps)."""


def expect(
    spec: RunSpec,
    trials: int,
    costs: StageCosts,
    sampler: optuna.samplers.BaseSampler,
    stored: Callable[[str], bool],
    compute: str = "cpu:1",
    started: Sequence[FrozenTrial] = (),
) -> Expected:
    """What a search is expected to train: the sampler's proposals and the rungs' decisions, given random values.

    A trial whose fields exclude each other fails without training.

    Args:
        spec: the run.
        trials: trials to train.
        costs: what the stages cost; they decide how often a stage-1 artefact is used again.
        sampler: the run's.
        stored: whether the stage-1 artefact of an address is in the store already.
        compute: on what trials are to be computed, see `lt_search.storage.addresses.compute_kind`.
        started: trials of a run that is resumed: those that ended are learned from and compared with, the others are
            trained first, in full.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ended = [trial for trial in started if trial.state.is_finished()]
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.add_trials(ended)
    interrupted = [trial.params for trial in started if not trial.state.is_finished()]
    for values in interrupted if started else [spec.first_values()]:
        study.enqueue_trial(values)
    search = _SimulatedSearch(spec, costs, stored, ended)
    simulated = min(trials, SIMULATED_TRIALS)
    early = Counter[str | Rung | int]()
    for number in range(simulated):
        if number == simulated // 2:
            early.update(search.counts)
        trial = study.ask()
        drawn = propose(trial, spec.parameters, flatten(spec.config))
        try:
            address = stage1_address(spec, drawn, compute)
        except ValueError:
            study.tell(trial, state=TrialState.FAIL)
        else:
            search.train(study, trial, address)
    late = (trials - simulated // 2) / (simulated - simulated // 2)
    total = {what: early[what] + round(late * (count - early[what])) for what, count in search.counts.items()}
    return Expected(
        total.get(BEGUN, 0),
        total.get(FINISHED, 0),
        {rung: total.get(rung, 0) for rung in spec.rung_list},
        {stage: total.get(stage, 0) for stage in (1, 2)},
    )


class _SimulatedSearch:
    """Trials one after the other, with random values in place of training; see `expect` for the arguments.

    Trials and rungs follow the rules of `lt_search.tuning.controller`, without the tolerance of one standard error,
    which only training shows.
    """

    def __init__(
        self, spec: RunSpec, costs: StageCosts, stored: Callable[[str], bool], ended: Sequence[FrozenTrial]
    ) -> None:
        self._spec, self._costs, self._stored = spec, costs, stored
        self.counts = Counter[str | Rung | int]()
        self._random = random.Random(derive_seed(spec.seed, "plan"))
        self._first_score = self._random.random()
        self._machine = RungMachine(spec.rung_list, spec.eta, enabled=spec.prune)
        trials = records_of(ended)
        self._decisions = first_decisions(trials)
        self._settled = {key for (_, key), decision in self._decisions.items() if decision is Decision.STOP}
        """Addresses whose stage 1 was stopped or, in this simulation, finished: it is not trained again."""
        records = rung_records(trials, spec.rung_list)
        self._scores = _ranks([record for record in records if record.rung.stage == 1])
        addresses = {str(trial.number): trial.address or "" for trial in trials}
        for record in records:
            value = self._values(addresses.get(record.key, record.key))[record.rung.stage]
            self._machine.restore([Record(record.rung, record.key, value)])

    def train(self, study: optuna.Study, trial: optuna.Trial, address: str) -> None:
        """Trains a trial until it is stopped or complete, counts what that took, and reports it to the study."""
        length1, length2 = self._spec.stage_lengths
        trains = not (self._spec.reuse and (address in self._settled or self._stored(address)))
        self._settled.add(address)
        values = self._values(address)
        end, state = Rung(2, length2), TrialState.COMPLETE
        for rung in self._machine.rungs:
            key, value = address if rung.stage == 1 else f"plan:{trial.number}", values[rung.stage]
            verdict = self._machine.cross(Record(rung, key, value))
            trial.report(value, rung.step + (length1 if rung.stage == 2 else 0))
            self.counts[rung] += verdict.first or trains
            if self._decisions.setdefault((rung, key), verdict.decision) is Decision.STOP:
                end, state = rung, TrialState.PRUNED
                break
        finishes_stage1 = end >= Rung(1, length1)
        if trains:
            steps = length1 if finishes_stage1 else end.step
            self.counts.update({BEGUN: 1, FINISHED: int(finishes_stage1), 1: steps})
        if finishes_stage1:
            trial.set_user_attr(STAGE1_COST, self._costs.of(1, self._spec))
        if end.stage == 1:
            trial.set_user_attr(STOPPED_IN_STAGE1, True)
        else:
            self.counts[2] += end.step
        if state is TrialState.COMPLETE:
            trial.set_user_attr(STAGE2_COST, self._costs.of(2, self._spec))
            if not trains:
                trial.set_user_attr(REUSE_COST, self._costs.of(2, self._spec) + TURNAROUND)
        study.tell(trial, values[2] if state is TrialState.COMPLETE else None, state)

    def _values(self, address: str) -> dict[int, float]:
        """Simulated values of a trial in both stages.

        Stage-1 values follow the golden ratio's sequence: evenly spread however many there are, so that no plan is
        lucky, and independent of the addresses, which change with versions and devices.
        """
        score = self._scores.setdefault(address, (self._first_score + len(self._scores) * GOLDEN) % 1)
        return {1: score, 2: score + self._random.uniform(0, STAGE2_WEIGHT)}


def _ranks(records: Sequence[Record]) -> dict[str, float]:
    """Stage-1 values of a resumed run by address, as ranks between 0 and 1: the metric has a scale of its own."""
    last = {record.key: (record.rung, record.value) for record in sorted(records, key=lambda record: record.rung)}
    return {key: (rank + 0.5) / len(last) for rank, key in enumerate(sorted(last, key=lambda key: last[key]))}


GOLDEN = (5**0.5 - 1) / 2

STAGE2_WEIGHT = 0.3
"""Range of what stage 2 adds to a value, over that of stage 1; the probe score is taken to rank stage 1 correctly.

The more stage 2 matters, the more stage-2 configurations share a stage-1 artefact, and the fewer stage-1 runs begin.
Proposals learn, so that most stage-2 configurations of a search are good ones, which differ less than its stage-1
configurations do."""

TURNAROUND = 0.5
"""Seconds that handing out a trial and writing its files add to a stage 2, about, on one core (benchmarks/reuse)."""

SIMULATED_TRIALS = 100
"""Trials that are simulated; of a longer search, their second half is extrapolated to the rest."""

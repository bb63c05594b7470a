"""What a search is expected to take, from one measured trial."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

import optuna
import torch
from optuna.trial import TrialState

from lt_search.address import compute_kind, stage1_address
from lt_search.durations import show_duration
from lt_search.errors import UserError
from lt_search.referee import ADDRESS, first_decisions, journal_records, read_reports
from lt_search.run_folder import open_run, run_names
from lt_search.rungs import Decision, Record, Rung, RungMachine
from lt_search.sampler import REUSE_COST, STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1, propose
from lt_search.spec import RunSpec
from lt_search.stage_store import split_features
from lt_search.values import flatten
from trainers.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from lt_search.session import LoadedInputs
    from lt_search.store import FolderStore
    from trainers.base import Images, State

MEASURED_SECONDS = 20.0
"""A stage is measured for this long, and for two steps at least; a shorter one is trained to its end."""


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
    off: Collection[Rung] = ()
    """Rungs that stop nothing any more."""

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
        compute: on what trials are to be computed, see `lt_search.address.compute_kind`.
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

    What a trial and the rungs do here is what `lt_search.referee.Referee` has them do, without the grace of one
    standard error, which only training shows.
    """

    def __init__(self, spec: RunSpec, costs: StageCosts, stored: Callable[[str], bool], begun: Begun) -> None:
        self._spec, self._costs, self._stored = spec, costs, stored
        self._finished: set[str] = set()
        self._machine = RungMachine(spec.rung_list, spec.eta, enabled=spec.prune)
        records = journal_records(begun.ended, spec.rung_list)
        self._worth = self._in_order(record for record in records if record.rung.stage == 1)
        addresses = {str(trial.number): trial.user_attrs.get(ADDRESS, "") for trial in begun.ended}
        for record in records:
            address = record.key if record.rung.stage == 1 else addresses[record.key]
            value = self._value(record.rung, address, f"ended:{record.key}")
            self._machine.restore([Record(record.rung, record.key, value)])
        for rung in begun.off:
            self._machine.turn_off(rung)
        self._first_decisions = first_decisions(begun.ended, spec.rung_list)

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
            if decision is Decision.STOP and not self._machine.is_off(rung):
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
        ahead = [rung for rung in self._machine.rungs if rung.stage == 1 and not self._machine.is_off(rung)]
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


def earlier_seconds(spec: RunSpec, storage: FolderStore, compute: str) -> dict[int, float]:
    """Mean seconds per step of each stage in earlier runs that trained what this one would.

    Those are runs of the same trainer, config and search on the same data and image size, and of them the steps that
    were computed on the same kind of device: anything else can take a hundred times as long.

    Args:
        spec: the run.
        storage: where the earlier runs are.
        compute: on what trials are to be computed, see `lt_search.address.compute_kind`.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    for name in run_names(storage):
        try:
            store, other = open_run(storage, name)
        except UserError:
            continue
        if _decides_time(other) != _decides_time(spec):
            continue
        for number in (folder.rsplit("/", 1)[-1] for folder in store.list("trials")):
            for report in read_reports(store, int(number)) if number.isdigit() else ():
                if report.reused_from is None and compute_kind(report.device, report.threads) == compute:
                    times[report.stage].append(report.seconds)
    return {stage: mean(seconds) for stage, seconds in times.items() if seconds}


def _decides_time(spec: RunSpec) -> tuple[object, ...]:
    data = spec.data.fingerprint, spec.data.image_size, [extra.fingerprint for extra in spec.data.extra]
    return data, spec.trainer, spec.config, spec.search


def measure(spec: RunSpec, loaded: LoadedInputs, storage: FolderStore) -> StageCosts:
    """What a trial takes: its size, and its time in earlier runs that trained the same.

    Where there were none, the first trial is trained for a while; nothing of it is kept.
    """
    trainer = loaded.build_trainer(spec.config)
    seconds = earlier_seconds(spec, storage, compute_kind(loaded.device.type, torch.get_num_threads()))
    origin = "earlier runs"
    measured = set(seconds) != {1, 2}
    sizes = []
    for stage, train in ((1, trainer.stage1_step), (2, trainer.stage2_step)):
        if stage == 2:
            trainer.begin_stage2()
        if measured:
            seconds[stage], steps = _time_steps(train, loaded, trainer.predict_logits, spec.stage_lengths[stage - 1])
            origin = f"{origin}, " if stage == 2 else ""
            origin += f"{steps} {'step' if steps == 1 else 'steps'} of stage {stage}"
        sizes.append(_bytes(trainer.state()))
        if stage == 1:
            trainer.probe_logits(loaded.val_images)
            kept = ((split, trainer.kept_features(images)) for split, images in loaded.splits.items())
            artefact = _bytes(trainer.finished_stage1()) + _bytes(split_features(kept))
    origin = f"{origin} of the first trial, trained now" if measured else origin
    # An optimiser that has not stepped yet has no moments; Adam keeps two for each weight.
    model = _bytes(trainer.state()["model"])
    return StageCosts(seconds, origin, max(*sizes, 3 * model), artefact)


def _time_steps(
    train: Callable[[int], object],
    loaded: LoadedInputs,
    predict: Callable[[Images], torch.Tensor],
    length: int,
) -> tuple[float, int]:
    """Seconds of a step, and how many were trained. The first one, which warms caches up, counts only if alone."""
    times: list[float] = []
    while len(times) < length and (len(times) < 2 or sum(times) < MEASURED_SECONDS):
        started = time.monotonic()
        train(len(times))
        loaded.evaluate(predict(loaded.val_images))
        times.append(time.monotonic() - started)
    return mean(times[1:] or times), len(times)


def _bytes(state: State | object) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(_bytes(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(_bytes(value) for value in state)
    return 0


def elapsed_seconds(spec: RunSpec, trials: int, expected: Expected, costs: StageCosts, concurrent: int) -> float:
    """Seconds from the start of a search to its end.

    A stage 1 is trained by one trial while those that share it wait, so that no more trials than there are stage 1s
    train at first; nor does a search end before one whole trial has.
    """
    work = _work(expected, trials, costs)
    shared_out = work[1] / max(1, min(concurrent, expected.stage1s)) + work[2] / min(concurrent, trials)
    one_trial = (costs.of(1, spec) if expected.stage1s else 0.0) + costs.of(2, spec) + TURNAROUND
    return max(shared_out, one_trial)


def _work(expected: Expected, trials: int, costs: StageCosts) -> dict[int, float]:
    """Seconds of both stages over all trials; handing trials out counts as stage 2."""
    work = {stage: expected.steps[stage] * costs.seconds[stage] for stage in (1, 2)}
    return {**work, 2: work[2] + trials * TURNAROUND}


def _trial_lines(trials: int, concurrent: int, begun: Begun) -> list[str]:
    if not begun.trials:
        return [
            f"  trials      {trials}, {concurrent} at a time; the first one has the defaults, which are the paper's",
            "              but for what the budget fixes",
        ]
    ended = len(begun.ended)
    return [
        f"  trials      {trials} to go, {concurrent} at a time; {ended} of {trials + ended} have ended, and those that",
        "              were interrupted count in full",
    ]


def _who_goes_on(spec: RunSpec, rung: Rung, begun: Begun) -> str:
    if not spec.prune:
        return "all go on (--no-prune)"
    return "all go on: its probe foretells too little here" if rung in begun.off else f"the best 1/{spec.eta} go on"


def render_plan(
    spec: RunSpec,
    trials: int,
    expected: Expected,
    costs: StageCosts,
    *,
    concurrent: int,
    keep_gb: float,
    device: str,
    begun: Begun = NOTHING,
) -> str:
    """The plan as text: trials, stage-1 trainings, rungs, device-hours, time and disk.

    Args:
        spec: the run.
        trials: trials to train.
        expected: what they are expected to train.
        costs: what a trial takes.
        concurrent: trials at a time.
        keep_gb: disk for models of finished trials.
        device: what a trial is trained on, such as `CPU core`.
        begun: what was there before.
    """
    s1, s2 = spec.stage_lengths
    reuse = "each is trained once and shared" if spec.reuse else "--no-reuse: one a trial"
    lines = [
        f"plan for {spec.options['space']} on {spec.data.name} (no search is started)",
        *_trial_lines(trials, concurrent, begun),
        f"  searched    {', '.join(spec.search) or 'nothing'}",
        f"  stages      {s1} steps of stage 1, {s2} of stage 2",
        f"  stage 1     about {expected.stage1s} stage-1 trainings for {trials} trials ({reuse})",
    ]
    for rung, count in expected.arrivals.items():
        what = "stage 1s" if rung.stage == 1 else "trials"
        lines.append(f"  rung        {rung}: about {count} {what} come, {_who_goes_on(spec, rung, begun)}")
    steps = expected.steps
    images = steps[1] * (spec.config["stage1"]["images_per_epoch"] or spec.data.training_images)
    lines.append(f"  training    about {steps[1]} stage-1 steps ({images:,} images) and {steps[2]} stage-2 steps")
    total = sum(_work(expected, trials, costs).values())
    each = ", ".join(f"stage {stage} {costs.seconds[stage]:.2g} s a step" for stage in (1, 2))
    lines.append(f"  measured    {each} ({costs.origin})")
    lines.append(f"  work        about {show_duration(total)}: {total / 3600:.2g} device-hours of one {device}")
    seconds = elapsed_seconds(spec, trials, expected, costs, concurrent)
    lines.append(f"  time        about {show_duration(seconds)}, {concurrent} trials at a time")
    stage1s = (
        f"{expected.finished_stage1s * costs.artefact_bytes / 2**20:.1f} MiB of shared stage 1s, " if spec.reuse else ""
    )
    lines.append(
        f"  disk        {stage1s}{costs.checkpoint_bytes / 2**20:.1f} MiB a checkpoint: at most {keep_gb:g} GB of "
        f"finished ones are kept, beside {concurrent} running"
    )
    return "\n".join(lines)

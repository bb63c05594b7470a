"""What the harness itself costs: through rungs and journal, through Ray, and for a proposal.

    python -m benchmarks.overhead [--parts PART ...]

Parts: `journal`, `ray`, `ask`; by default all three, some 15 minutes on two cores. No trial trains anything worth
the name. Each part prints ours, a named baseline measured in the same call, and their ratio.

- journal: 10,000 trials with random proposals through rungs and journal, without Ray. Baseline: the same parameters,
  values and steps through plain Optuna with the same kind of journal file, `RandomSampler` and
  `SuccessiveHalvingPruner`. Ours also logs every step, and keeps config, address, cost and verdicts of a trial.
- ray: 300 trials of milliseconds through Ray, between the end of the first and of the last one, so that starting Ray
  and the first worker is not counted. Baseline: a function that reports as often, with Ray's `OptunaSearch` and
  `ASHAScheduler` at their defaults, and `reuse_actors` as ours (by default a fresh process for each trial would hide
  all else, see `benchmarks.turnaround`). Ours also trains and evaluates a linear head, and keeps its checkpoints.
- ask: one proposal on a study of 1,000 trials in a run's kind of journal, all that it writes there included. Baseline:
  Optuna's multivariate TPE itself, on the same study. Bar: at most 1.5x. In one study half of the trials repeat the
  stage 1 of the one before, as a search with `StagedSampler` does. The other one is a search with it whose stage 2 has
  four values in all, three of them under a condition, so that most stage-1 configurations have none left to try.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.shared import whole_search
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.parameters import propose
from lt_search.config.resolver import resolve_spec
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.data.registry import load_dataset
from lt_search.pruning.rungs import Decision
from lt_search.samplers import STAGE1_COST, STAGE2_COST, ReseededSampler, StagedSampler
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.storage.records import StepReport, read_reports
from lt_search.storage.schema import TRIALS
from lt_search.tuning.cluster import ray_cluster
from lt_search.tuning.controller import Controller

N_JOURNAL, N_RAY, N_STUDY, N_ASKS = 10_000, 300, 1_000, 20
STAGE1, STAGE2, ETA, FIRST_RUNG = 8, 4, 2, 2
ASK_BAR = 1.5

INSTANT_SPACE = """\
trainer: tests.tiny:TinyTrainer
metric: mAP
search:
  stage1.lr: loguniform(1e-2, 5)
  stage2.bias: uniform(-1, 1)
budgets:
  small:
    trials: 300
    image_size: 8
    rungs: {eta: 2, stage1: [1, 3], stage2: [1]}
    set: {stage1.epochs: 4, stage2.rounds: 2}
"""
INSTANT_STEPS = 6


def ldrnet_spec() -> RunSpec:
    """The space `ldrnet` on bundled data, with rungs at steps 2 and 6 of 8, and 2 of 4."""
    stages = (f"stage1.epochs={STAGE1}", f"stage2.rounds={STAGE2}")
    options = SpecOptions("ldrnet", "digits-ml:500", budget="small", sampler="random", set=stages)
    return resolve_spec(options, load_dataset("digits-ml:500"), gpu=False)


def values_of(number: int) -> list[float]:
    """The value of each step of a made-up trial."""
    rng = np.random.default_rng(number)
    steps = np.arange(1, STAGE1 + STAGE2 + 1)
    return list((0.8 + 0.05 * rng.normal() - 0.3 * np.exp(-steps / 4) + 0.005 * rng.normal(size=len(steps))).tolist())


class Clock:
    """Seconds per trial, with growth from the first to the last tenth of them, and seconds per report."""

    def __init__(self, trials: int) -> None:
        self.trials = trials
        self._each = np.zeros(trials)
        self._reporting = 0.0
        self._reports = 0

    @contextmanager
    def trial(self, number: int) -> Iterator[None]:
        """Counts the time of a part of a trial."""
        start = time.perf_counter()
        yield
        self._each[number] += time.perf_counter() - start

    @contextmanager
    def report(self, number: int) -> Iterator[None]:
        """Counts the time of a report, which is part of its trial's."""
        start = time.perf_counter()
        with self.trial(number):
            yield
        self._reporting += time.perf_counter() - start
        self._reports += 1

    @property
    def per_trial(self) -> float:
        """Mean seconds of a trial."""
        return float(self._each.mean())

    @property
    def per_report(self) -> float:
        """Mean seconds of a report, its decision included."""
        return self._reporting / self._reports

    def __str__(self) -> str:
        tenth = max(1, len(self._each) // 10)
        first, last = 1e3 * self._each[:tenth].mean(), 1e3 * self._each[-tenth:].mean()
        return (
            f"{1e3 * self.per_trial:.2f} ms a trial ({first:.2f} in the first tenth, {last:.2f} in the last), "
            f"{1e3 * self.per_report:.2f} ms a report, {self._reports} reports"
        )


def through_journal(spec: RunSpec, folder: Path, clock: Clock) -> Iterator[None]:
    """Our rung machine and journal, as a search uses them, trial by trial."""
    journal = Journal(folder / "journal.log", ReseededSampler(spec.seed, "random"))
    journal.study.set_user_attr(TRIALS, clock.trials)
    controller = Controller(spec, journal, FolderStore(folder))
    judged = {(rung.stage, rung.step) for rung in spec.rung_list} | {(1, STAGE1), (2, STAGE2)}
    for number in range(clock.trials):
        with clock.trial(number):
            controller.next_job()
        for index, value in enumerate(values_of(number)):
            stage, step = (1, index + 1) if index < STAGE1 else (2, index + 1 - STAGE1)
            report = StepReport(
                number,
                1,
                stage,
                step,
                final=(stage, step) == (2, STAGE2),
                value=value if stage == 2 or (stage, step) in judged else None,
                standard_error=0.0 if (stage, step) in judged else None,
                scalars={spec.metric: value},
            )
            with clock.report(number):
                decision = controller.observe(report)
            if decision is Decision.STOP:
                break
        yield


def through_optuna(spec: RunSpec, folder: Path, clock: Clock) -> Iterator[None]:
    """Plain Optuna with the same parameters and values, and a journal file of its own, trial by trial."""
    path = str(folder / "optuna.log")
    lock = optuna.storages.journal.JournalFileOpenLock(path)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path, lock_obj=lock))
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=ETA)
    study = optuna.create_study(
        storage=storage, direction="maximize", sampler=RandomSampler(seed=spec.seed), pruner=pruner
    )
    fixed = flatten(spec.config)
    for number in range(clock.trials):
        with clock.trial(number):
            trial = study.ask()
            propose(trial, spec.parameters, fixed)
        values = values_of(number)
        for step, value in enumerate(values, start=1):
            with clock.report(number):
                trial.report(value, step)
                pruned = trial.should_prune()
            if pruned:
                break
        with clock.trial(number):
            study.tell(trial, None if pruned else values[-1], state=TrialState.PRUNED if pruned else None)
        yield


def journal_part(trials: int = N_JOURNAL) -> None:
    spec, ours, stock = ldrnet_spec(), Clock(trials), Clock(trials)
    with tempfile.TemporaryDirectory() as folder:
        both = through_journal(spec, Path(folder), ours), through_optuna(spec, Path(folder), stock)
        for _ in zip(*both, strict=True):  # by turns, so that both meet the same machine
            pass
    steps = STAGE1 + STAGE2
    print(f"{trials:,} trials through rungs and journal, {len(spec.search)} parameters, at most {steps} reports each")
    print(f"  plain Optuna (baseline): {stock}")
    print(f"  ours:                    {ours}")
    per_trial, per_report = ours.per_trial / stock.per_trial, ours.per_report / stock.per_report
    print(f"  ratio: {per_trial:.2f}x a trial, {per_report:.2f}x a report")


@dataclass(frozen=True)
class Throughput:
    """How fast trials went through Ray."""

    seconds: float
    """Between the ends of the first and of the last trial."""
    trials: int
    reports: int

    @property
    def per_trial(self) -> float:
        """Seconds of a trial."""
        return self.seconds / (self.trials - 1)

    @property
    def per_report(self) -> float:
        """Seconds of a report."""
        return self.seconds / self.reports

    def __str__(self) -> str:
        return f"{1e3 * self.per_trial:.1f} ms a trial, {1e3 * self.per_report:.1f} ms a report, {self.reports} reports"


def instant_trials(folder: Path, trials: int) -> tuple[Throughput, float]:
    """Our search, and the mean seconds that a worker took for the step that it reports."""
    space = folder / "instant.yaml"
    space.write_text(INSTANT_SPACE)
    how = RunOptions(storage=str(folder), name="ours", trials=trials)
    whole_search(SpecOptions(str(space), "digits-ml:500"), how)
    run = FolderStore(folder / "ours")
    ended = Journal.reader(run.path("journal.log")).trials()
    ends = [trial.datetime_complete for trial in ended if trial.datetime_complete is not None]
    steps = [report.seconds for trial in ended for report in read_reports(run, trial.number)]
    return Throughput((max(ends) - min(ends)).total_seconds(), len(ends), len(steps)), mean(steps)


def stock_trial(config: Mapping[str, Any]) -> None:
    """A function for Ray that reports as often as an instant trial, and does nothing else."""
    from ray import tune

    for step in range(1, INSTANT_STEPS + 1):
        tune.report({"value": config["bias"] - abs(np.log(config["lr"])) + 0.01 * step})


def stock_trials(folder: Path, trials: int) -> Throughput:
    """Ray's own searcher and scheduler."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    class Ends(tune.Callback):
        """Notes when trials end and how often they reported."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.reports = 0

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            """Ray's hook."""
            self.reports += 1

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            """Ray's hook."""
            self.times.append(time.monotonic())

    ends = Ends()
    tune.Tuner(
        stock_trial,
        param_space={"lr": tune.loguniform(1e-2, 5), "bias": tune.uniform(-1, 1)},
        tune_config=tune.TuneConfig(
            metric="value",
            mode="max",
            num_samples=trials,
            search_alg=OptunaSearch(),
            scheduler=ASHAScheduler(),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="stock", callbacks=[ends], verbose=0),
    ).fit()
    return Throughput(max(ends.times) - min(ends.times), len(ends.times), ends.reports)


def ray_part(trials: int = N_RAY) -> None:
    with tempfile.TemporaryDirectory() as folder, ray_cluster(None):
        stock = stock_trials(Path(folder), trials)
        ours, step = instant_trials(Path(folder), trials)
    print(f"{trials} instant trials through Ray, at most {INSTANT_STEPS} reports each")
    print(f"  OptunaSearch + ASHAScheduler (baseline): {stock}")
    print(f"  ours: {ours}; a step itself, training and evaluation, takes {1e3 * step:.1f} ms in its worker")
    per_trial, per_report = ours.per_trial / stock.per_trial, ours.per_report / stock.per_report
    print(f"  ratio: {per_trial:.2f}x a trial, {per_report:.2f}x a report")


def plain_tpe(seed: int) -> BaseSampler:
    """Optuna's TPE with the settings that a space with conditions needs."""
    return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


def stage1_names(spec: RunSpec) -> list[str]:
    """The searched parameters of stage 1."""
    return [name for name, parameter in spec.parameters.items() if parameter.stage == "stage1"]


def study_of(spec: RunSpec, trials: int) -> optuna.Study:
    """A study in memory of random trials; two thirds were pruned at the first rung."""
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    stage1: dict[str, Any] = {}
    for number in range(trials):
        if number % 2:
            study.enqueue_trial(stage1)
        trial = study.ask()
        drawn = propose(trial, spec.parameters, flatten(spec.config))
        stage1 = {name: drawn[name] for name in stage1_names(spec) if name in drawn}
        trial.set_user_attr(STAGE1_COST, float(STAGE1))
        trial.set_user_attr(STAGE2_COST, float(STAGE2))
        values = values_of(number)
        trial.report(values[FIRST_RUNG - 1], FIRST_RUNG)
        if number % 3:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, values[-1])
    return study


def suggest_few(trial: optuna.Trial) -> None:
    """Two numbers in stage 1, and four values in all in stage 2, as one of two heads has a scale."""
    trial.suggest_float("stage1.lr", 1e-4, 1, log=True)
    trial.suggest_float("stage1.dropout", 0, 1)
    if trial.suggest_categorical("stage2.head", ["linear", "cosine"]) == "cosine":
        trial.suggest_categorical("stage2.scale", [8, 16, 32])


def study_of_few(trials: int) -> optuna.Study:
    """A study in memory by `StagedSampler` itself, stage 1 costing 20 times stage 2."""
    study = optuna.create_study(direction="maximize", sampler=few_sampler())
    for number in range(trials):
        trial = study.ask()
        suggest_few(trial)
        study.tell(trial, values_of(number)[-1])
    return study


def few_sampler() -> StagedSampler:
    return StagedSampler(["stage1.lr", "stage1.dropout"], cost_ratio=20, seed=0)


def in_journal(study: optuna.Study, path: Path) -> optuna.Study:
    """A study with the same trials in a journal file, as a run has them."""
    journal = Journal(path, study.sampler)
    journal.study.add_trials(study.trials)
    return journal.study


def ask_seconds(
    study: optuna.Study, suggest: Callable[[optuna.Trial], Any], samplers: Mapping[str, BaseSampler], asks: int
) -> dict[str, float]:
    """Median seconds of a proposal by each sampler, taken in turn, so that all see the same study."""
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(asks + 1):
        for name, sampler in samplers.items():
            study.sampler = sampler
            start = time.perf_counter()
            trial = study.ask()
            suggest(trial)
            seconds[name].append(time.perf_counter() - start)
            study.tell(trial, state=TrialState.FAIL)  # without a value: the study hardly changes
    return {name: median(taken[1:]) for name, taken in seconds.items()}  # the first one also fills caches


def ask_part(trials: int = N_STUDY, asks: int = N_ASKS) -> None:
    spec = ldrnet_spec()
    suggest = partial(propose, parameters=spec.parameters, fixed=flatten(spec.config))
    staged = StagedSampler(stage1_names(spec), seed=spec.seed)
    with tempfile.TemporaryDirectory() as folder:
        study = in_journal(study_of(spec, trials), Path(folder) / "random.log")
        show_asks(f"the {len(spec.search)} parameters of ldrnet", study, suggest, staged, asks)
        few = in_journal(study_of_few(trials), Path(folder) / "few.log")
        show_asks("a stage 2 of four values in all", few, suggest_few, few_sampler(), asks)


def show_asks(
    what: str, study: optuna.Study, suggest: Callable[[optuna.Trial], Any], staged: StagedSampler, asks: int
) -> None:
    baseline = "TPESampler (baseline)"
    samplers = {baseline: plain_tpe(0), "ReseededSampler": ReseededSampler(0), "StagedSampler": staged}
    trials = len(study.trials)
    seconds = ask_seconds(study, suggest, samplers, asks)
    print(f"an ask at {trials:,} trials, {what}, median of {asks}")
    for name, taken in seconds.items():
        ratio = taken / seconds[baseline]
        met = "met" if ratio <= ASK_BAR else "MISSED"
        told = "" if name == baseline else f", ratio: {ratio:.2f}x, {met} ({ASK_BAR}x)"
        print(f"  {name}: {1e3 * taken:.1f} ms{told}")


PARTS: Mapping[str, Callable[[], None]] = {"journal": journal_part, "ray": ray_part, "ask": ask_part}


def main() -> None:
    parser = argparse.ArgumentParser(description="What the harness itself costs, beside Optuna and Ray Tune.")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for part in parser.parse_args().parts:
        PARTS[part]()


if __name__ == "__main__":
    main()

"""What sharing stage 1 gives: a plain Ray Tune script and this harness, with the same trainers, data and time.

    python -m benchmarks.reuse                           # all cases, 3 seeds, then the parts: some eight hours
    python -m benchmarks.reuse --cases lmd-stage2/off --seeds 1
    python -m benchmarks.reuse --results FILE            # keeps every search's outcome there, and goes on where it was

What is kept counts while the code is the same; on another machine, begin another file.

Baseline: what a user writes without this harness, a function trainable that trains both stages and reports the
validation objective after every step, with `OptunaSearch`, `ASHAScheduler` and their defaults. Both get the same time
on the same cores, and find Ray started and no decoded image. This harness begins with the paper's values, as it always
does, and the baseline draws its first trial; where both stages are searched, a second, harder baseline begins with the
paper's values, too. A case is a space with its E-steps on or off.

Bars: with E-steps off, at least 8x the configurations trained to the end per core and second; with them, where stage 1
is fixed (`*-stage2`), at least 80 % of the bound (start + stage 1 + stage 2) / stage 2, measured in the same call.
Start and stage 1 are the baseline's. Stage 2 is timed in the baseline's code too, but on configurations that ours
trained, for with hundreds of them it draws others than the baseline with a few, dearer or cheaper; so the share of the
bound is that of the core time which the plain code would take for our stage-2 runs alone. `ratio / bound`, beside it,
divides the one printed number by the other, so that how dear the baseline's few configurations were enters, too. The
baseline's rate is taken up to the last configuration that it ended, so that what its cores had in hand when time was up
is not lost to it. The bound assumes one stage 1 for all configurations, so a space that searches both stages cannot
reach it: its share is printed without a bar. For that space, at least 2.5x less time to the baseline's best value; and
never a worse best value at equal time. The last table switches off one part of the harness at a time, in one seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from types import FrameType
from typing import Any

import optuna
import ray
from rich.console import Console
from rich.table import Table

import benchmarks.shared
from benchmarks.shared import whole_search
from benchmarks.workers import fresh_workers, unshared_images
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.parameters import Parameter, propose
from lt_search.config.resolver import resolve_spec
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.data.decoded import CACHE_VARIABLE
from lt_search.data.registry import load_dataset
from lt_search.errors import ExitCode
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.tuning.cluster import ray_cluster


@dataclass(frozen=True)
class Case:
    """A space on its data with E-steps on or off, and how long each search gets."""

    space: str
    data: str
    e_steps: bool
    seconds: float
    parts: float | None = None
    """How long each search gets in the table of the parts, where the case has one."""

    @property
    def one_stage1(self) -> bool:
        """Whether all configurations have the same stage 1."""
        return self.space.endswith("-stage2")

    @property
    def name(self) -> str:
        """As given to `--cases`."""
        return f"{self.space}/{'on' if self.e_steps else 'off'}"

    def spec_options(self, seed: int, **more: Any) -> SpecOptions:
        """The search as the user asks for it."""
        fixed = f"stage2.update_encoder={str(self.e_steps).lower()}"
        return SpecOptions(self.space, self.data, budget="small", seed=seed, set=(fixed,), **more)


CASES = {
    case.name: case
    for case in (
        Case("lmd-stage2", "digits-lt", e_steps=False, seconds=90, parts=90),
        Case("ldrnet-stage2", "digits-ml", e_steps=False, seconds=150),
        Case("ldrnet", "digits-ml", e_steps=False, seconds=900, parts=300),
        Case("lmd-stage2", "digits-lt", e_steps=True, seconds=600),
        Case("ldrnet-stage2", "digits-ml", e_steps=True, seconds=600),
        Case("ldrnet", "digits-ml", e_steps=True, seconds=900),
    )
}

PLAIN, PLAIN_FROM_PAPER = "Ray Tune", "Ray Tune from the paper's values"
"""The baselines."""

TIMED = 12
"""Configurations of ours whose stage 2 is timed in the baseline's code, spread evenly over the search."""

OWN_SIGNALS = "TUNE_DISABLE_SIGINT_HANDLER"
"""Without this, Ray Tune takes Ctrl-C as the end of the search, and returns as if time were up."""

STAGED_SAMPLER = "no staged sampler (TPE)"
"""A part that only spaces of two searched stages have."""

PARTS: dict[str, tuple[dict[str, Any], Callable[[], AbstractContextManager[None]]]] = {
    "everything": ({}, nullcontext),
    "no warm workers": ({}, fresh_workers),
    "no shared input cache": ({}, unshared_images),
    "no reuse, hence TPE": ({"reuse": False}, nullcontext),
    STAGED_SAMPLER: ({"sampler": "tpe"}, nullcontext),
    "no pruning": ({"prune": False}, nullcontext),
}
"""Options of the spec, and a context, that switch off one part of the harness."""


@dataclass
class Outcome:
    """One search."""

    case: str
    seed: int
    who: str
    seconds: float
    """Time it had."""
    cores: int
    finished: list[tuple[float, float]] = field(default_factory=list)
    """For each configuration trained to the end: seconds since the start, and its final value."""
    start: float = 0.0
    """Baseline: mean seconds from a free core to the first step of stage 1."""
    stage1: float = 0.0
    """Baseline: mean seconds of stage 1 of the configurations trained to the end."""
    code: str = ""
    """`code_digest` of what made it."""
    stage2: float = 0.0
    """Mean seconds of their stage 2. Ours: what `TIMED` of them take in the baseline's code."""

    @property
    def best(self) -> float:
        """The best final value; minus infinity where none was trained to the end."""
        return max((value for _, value in self.finished), default=float("-inf"))

    def time_to(self, value: float) -> float:
        """Seconds until a configuration was as good as `value`; infinite if none was."""
        return min((at for at, found in self.finished if found >= value), default=float("inf"))

    @property
    def per_core_second(self) -> float:
        """Configurations trained to the end per core and second."""
        return len(self.finished) / (self.seconds * self.cores)


def plain_trial(config: dict[str, Any], spec: RunSpec, data: str, events: str) -> None:
    """The function trainable of a user: both stages, start to end, the objective reported after every step."""
    import torch
    from ray import tune

    from lt_search.training.inputs import LoadedInputs, RunInputs

    def tell(what: str, value: float = 0.0) -> None:
        line = {"trial": tune.get_context().get_trial_id(), "what": what, "at": time.time(), "value": value}
        with Path(events).open("a") as file:
            file.write(json.dumps(line) + "\n")

    tell("entered")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder  # each trial reads its own images
        loaded = LoadedInputs(RunInputs.of(spec, load_dataset(data), {}, Path(folder)), torch.device("cpu"))
        trainer = loaded.build_trainer(spec.resolve(config))
        _ = loaded.val_images
        tell("ready")
        for stage, length in zip((1, 2), spec.stage_lengths, strict=True):
            if stage == 2:
                trainer.begin_stage2()
            train = trainer.stage1_step if stage == 1 else trainer.stage2_step
            for step in range(length):
                train(step)
                logits = trainer.predict_logits(loaded.val_images)
                value = loaded.evaluate(logits).scalars[spec.metric]
                tell(f"stage{stage}" if step + 1 == length else "step", value)
                tune.report({spec.metric: value})


def plain_stage2s(configs: list[dict[str, Any]], spec: RunSpec, data: str) -> list[float]:
    """Seconds of the baseline's stage 2 with each of some configurations.

    They do not depend on what stage 1 has learned, so it is one step long here. The first configuration is trained
    twice, for a process is slower at its first.
    """
    import torch

    from lt_search.training.inputs import LoadedInputs, RunInputs

    torch.set_num_threads(1)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        loaded = LoadedInputs(RunInputs.of(spec, load_dataset(data), {}, Path(folder)), torch.device("cpu"))
        for config in [configs[0], *configs]:
            trainer = loaded.build_trainer(spec.resolve(config))
            trainer.stage1_step(0)
            started = time.perf_counter()
            trainer.begin_stage2()
            for step in range(spec.stage_lengths[1]):
                trainer.stage2_step(step)
                loaded.evaluate(trainer.predict_logits(loaded.val_images))
            seconds.append(time.perf_counter() - started)
    return seconds[1:]


def suggest_all(trial: optuna.Trial, parameters: dict[str, Parameter], fixed: dict[str, Any]) -> None:
    """The space as `OptunaSearch` takes it where parameters have conditions: a function that draws them."""
    propose(trial, parameters, fixed)


def plain_search(case: Case, seed: int, who: str = PLAIN) -> Outcome:
    """The baseline: Ray Tune as its documentation shows it; `who` may be `PLAIN_FROM_PAPER`.

    Raises:
        KeyboardInterrupt: at Ctrl-C and SIGTERM.
        RuntimeError: a trial of it crashed, which would look like few configurations.
    """
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    spec = resolve_spec(case.spec_options(seed), load_dataset(case.data), gpu=False)

    space = partial(suggest_all, parameters=spec.parameters, fixed=flatten(spec.config))
    # Where it is interrupted, its trials still write to the folder.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _ray_defaults():
        events = str(Path(folder) / "events.jsonl")
        trainable = tune.with_parameters(plain_trial, spec=spec, data=case.data, events=events)
        first = [spec.first_values()] if who == PLAIN_FROM_PAPER else None
        searcher = OptunaSearch(space, metric=spec.metric, mode="max", seed=seed, points_to_evaluate=first)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=ASHAScheduler(metric=spec.metric, mode="max", max_t=sum(spec.stage_lengths)),
                num_samples=-1,
                time_budget_s=case.seconds,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        started = time.time()
        with _ended_by_signals():
            errors = tuner.fit().errors
        if errors:
            raise RuntimeError(f"{len(errors)} trials of {who} on {case.name} crashed, the first one:\n{errors[0]}")
        lines = [json.loads(line) for line in Path(events).read_text().splitlines()]
    return _read_events(Outcome(case.name, seed, who, case.seconds, _cores()), lines, started)


def _read_events(outcome: Outcome, lines: list[dict[str, Any]], started: float) -> Outcome:
    trials: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["at"] <= started + outcome.seconds:
            trials.setdefault(line["trial"], []).append(line)
    times = [{line["what"]: line["at"] for line in trial} for trial in trials.values()]
    values = [trial[-1]["value"] for trial in trials.values()]
    ended = [(at, value) for at, value in zip(times, values, strict=True) if "stage2" in at]
    outcome.finished = sorted((at["stage2"] - started, value) for at, value in ended)
    if ended:
        outcome.stage1 = mean(at["stage1"] - at["ready"] for at, _ in ended)
        outcome.stage2 = mean(at["stage2"] - at["stage1"] for at, _ in ended)
    # A trial starts on the core of the one that ended first; the first trials start with the search.
    free = [started] * outcome.cores + sorted(max(at.values()) for at in times)
    entered = sorted((at["entered"], at["ready"]) for at in times if "ready" in at)
    if entered:
        outcome.start = mean(ready - before for (_, ready), before in zip(entered, free, strict=False))
    return outcome


def our_search(case: Case, seed: int, who: str = "ours") -> Outcome:
    """This harness, or what is left of it: `who` may be one of `PARTS`. For the errors see `whole_search`."""
    spec_part, without = PARTS.get(who, ({}, nullcontext))
    with tempfile.TemporaryDirectory() as folder:
        how = RunOptions(storage=folder, name="run", trials=100_000, time_budget=case.seconds)
        started = time.time()
        with without():
            whole_search(case.spec_options(seed, **spec_part), how)
        trials = Journal.reader(Path(folder) / "run" / "journal.log").trials()
    ended = sorted(
        (trial.datetime_complete.timestamp() - started, trial.value, trial.number)
        for trial in trials
        if trial.state.name == "COMPLETE" and trial.datetime_complete is not None and trial.value is not None
    )
    within = [trial for trial in ended if trial[0] <= case.seconds]
    outcome = Outcome(case.name, seed, who, case.seconds, _cores(), [(at, value) for at, value, _ in within])
    if who == "ours" and within:
        spec = resolve_spec(case.spec_options(seed), load_dataset(case.data), gpu=False)
        configs = [trials[number].params for _, _, number in within[:: math.ceil(len(within) / TIMED)]]
        seconds: list[float] = ray.get(ray.remote(num_cpus=1)(plain_stage2s).remote(configs, spec, case.data))
        outcome.stage2 = mean(seconds)
    return outcome


@contextmanager
def _fresh_cache() -> Iterator[None]:
    """No decoded image is left over from an earlier search. Workers have the variables that Ray was started with."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


@contextmanager
def _ray_defaults() -> Iterator[None]:
    """Takes back the settings of Ray Tune that our own searches make in this process, but for the handler of Ctrl-C."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("TUNE_")}
    for name in ours:
        del os.environ[name]
    os.environ[OWN_SIGNALS] = "1"
    try:
        yield
    finally:
        del os.environ[OWN_SIGNALS]
        os.environ.update(ours)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `KeyboardInterrupt`, and once more at the end, should anything have swallowed it."""
    heard = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt


def _cores() -> int:
    return int(ray.cluster_resources()["CPU"])


def code_digest() -> str:
    """Of all code and spaces that decide an outcome."""
    return benchmarks.shared.code_digest(Path(__file__), Path(benchmarks.shared.__file__))


class Results:
    """Outcomes of searches, kept in a file so that a benchmark that was interrupted goes on."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.outcomes: list[Outcome] = []
        self._others: list[str] = []
        if path is not None and path.exists():
            whole, _, _ = path.read_text().rpartition("\n")  # a kill may have cut the last line off
            for line in whole.splitlines():
                read = json.loads(line)
                if read.get("code") != code_digest():
                    self._others.append(line)  # it may have other fields; who goes back to that code needs it
                    continue
                kept = Outcome(**read)
                kept.finished = [(at, value) for at, value in kept.finished]  # JSON has no tuples
                self.outcomes.append(kept)

    def kept(self, case: Case, seed: int, who: str) -> Outcome | None:
        """The outcome of a search by this code, if it is there."""
        asked = (case.name, seed, who, case.seconds)
        for outcome in self.outcomes:
            if (outcome.case, outcome.seed, outcome.who, outcome.seconds) == asked:
                return outcome
        return None

    def get(self, case: Case, seed: int, who: str, run: Callable[[], Outcome]) -> Outcome:
        """The outcome of a search, which is run if it is not there yet."""
        kept = self.kept(case, seed, who)
        if kept is not None:
            return kept
        with _fresh_cache(), ray_cluster(None):
            outcome = run()
        outcome.code = code_digest()
        print(f"{case.name} seed {seed} {who}: {len(outcome.finished)} configurations, best {outcome.best:.4f}")
        self.keep(outcome)
        return outcome

    def keep(self, outcome: Outcome) -> None:
        """Adds an outcome, to the file too."""
        self.outcomes.append(outcome)
        if self._path is not None:
            lines = [*self._others, *(json.dumps(asdict(outcome)) for outcome in self.outcomes)]
            FolderStore(self._path.parent).write(self._path.name, "".join(f"{line}\n" for line in lines))


def more_configurations(plain: Outcome, ours: Outcome) -> float:
    """Our configurations trained to the end per core and second, over the baseline's until it ended its last one."""
    if not ours.finished:
        return 0.0
    last = max(at for at, _ in plain.finished)
    return ours.per_core_second / (len(plain.finished) / (last * plain.cores))


def share_of_bound(ours: Outcome) -> float:
    """Our rate over 1 / stage 2, that of a harness that only pays stage-2 runs of the same configurations."""
    return ours.per_core_second * ours.stage2


def bound_of(plain: Outcome, ours: Outcome) -> float:
    """As many times the baseline's rate if stage 1 and all that comes before it were free."""
    return (plain.start + plain.stage1 + ours.stage2) / ours.stage2


def ratio_to_bound(plain: Outcome, ours: Outcome) -> float:
    """How many more configurations, over the bound; 0 where there are none."""
    return more_configurations(plain, ours) / bound_of(plain, ours) if ours.finished else 0.0


def how_much_sooner(plain: Outcome, ours: Outcome) -> float:
    """The baseline's time to its best value over ours to that value; 0 where ours never had it."""
    if not ours.finished:
        return 0.0
    return plain.time_to(plain.best) / ours.time_to(plain.best)


def medians(pairs: Sequence[tuple[Outcome, Outcome]]) -> tuple[float, float, int] | None:
    """How many more configurations, and how much sooner, as medians over seeds; and over how many seeds.

    A seed in which the harness trained nothing to the end counts as 0. One in which only the baseline did not, against
    which there is nothing to hold, is left out; None: all of them are.
    """
    counted = [(plain, ours) for plain, ours in pairs if plain.finished or not ours.finished]
    if not counted:
        return None
    more, sooner = (median(of(plain, ours) for plain, ours in counted) for of in (more_configurations, how_much_sooner))
    return more, sooner, len(counted)


def baselines_of(case: Case) -> tuple[str, ...]:
    """Those that a case is compared with; where stage 1 is not searched, it is the paper's for all of them."""
    return (PLAIN,) if case.one_stage1 else (PLAIN, PLAIN_FROM_PAPER)


def compare(case: Case, seeds: int, results: Results, table: Table, baseline: str = PLAIN) -> None:
    """A baseline and ours over the seeds of a case, as rows of the table."""
    for seed in range(seeds):
        plain = results.get(case, seed, baseline, lambda: plain_search(case, seed, baseline))  # noqa: B023
        ours = results.get(case, seed, "ours", lambda: our_search(case, seed))  # noqa: B023
        row = [baseline, case.name, str(seed), f"{len(plain.finished)} / {len(ours.finished)}"]
        idle = [who for who, its in (("the baseline", plain), ("the harness", ours)) if not its.finished]
        if idle:
            nothing = f"{' and '.join(idle)} trained nothing to the end in {case.seconds:.0f} s"
            bars = [] if ours.finished else bars_of(case, plain, ours)
            table.add_row(*row, "", "", "", "", "", "; ".join([nothing, *bars]))
            continue
        table.add_row(
            *row,
            f"{plain.per_core_second:.4f} / {ours.per_core_second:.4f}",
            f"{more_configurations(plain, ours):.1f}x",
            f"{bound_of(plain, ours):.1f}x ({plain.start:.1f} + {plain.stage1:.1f} + {ours.stage2:.2f} s)",
            f"{how_much_sooner(plain, ours):.1f}x",
            f"{plain.best:.4f} / {ours.best:.4f}",
            "; ".join([f"{ours.best - plain.best:+.4f}", *bars_of(case, plain, ours)]),
        )


def bars_of(case: Case, plain: Outcome, ours: Outcome) -> list[str]:
    """What is asked of a case, and whether it is there; nothing is where the harness trained nothing to the end."""

    def met(is_met: bool) -> str:
        return "met" if is_met else "MISSED"

    bars = []
    if not case.e_steps:
        bars.append(f"configurations {met(more_configurations(plain, ours) >= 8)} (8x)")
    else:
        share = share_of_bound(ours)
        bars.append(f"{share:.0%} of the bound" + (f" {met(share >= 0.8)} (80 %)" if case.one_stage1 else ""))
        bars.append(f"ratio / bound {ratio_to_bound(plain, ours):.0%}")
    if not case.one_stage1:
        bars.append(f"time {met(how_much_sooner(plain, ours) >= 2.5)} (2.5x)")
    return [*bars, f"best {met(bool(ours.finished) and ours.best >= plain.best)}"]


def show_parts(case: Case, results: Results, console: Console) -> None:
    """What each part gives, by switching it off in one seed of a case."""
    table = Table(title=f"Parts of the harness, {case.name}, {case.seconds:.0f} s, seed 0")
    for column in ("without", "configurations", "against everything", "best value"):
        table.add_column(column)
    whole = results.get(case, 0, "ours", lambda: our_search(case, 0))
    for name in PARTS:
        if name == STAGED_SAMPLER and case.one_stage1:
            continue  # TPE it is anyway
        own = results.get(case, 0, name, lambda: our_search(case, 0, name)) if name != "everything" else whole  # noqa: B023
        share = len(own.finished) / max(1, len(whole.finished))
        table.add_row(name, str(len(own.finished)), f"{share:.2f}x", f"{own.best:.4f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sharing stage 1 against a plain Ray Tune script.")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="time of every search, instead of each case's own")
    parts_help = "cases whose parts are switched off (default: those of --cases that have a time for it)"
    parser.add_argument("--parts", nargs="*", choices=list(CASES), help=parts_help)
    parser.add_argument("--results", type=Path, help="file that keeps the outcomes; what is there is not run again")
    given = parser.parse_args()
    cases = {name: replace(case, seconds=given.seconds or case.seconds) for name, case in CASES.items()}
    results, console = Results(given.results), Console(width=200)
    table = Table(title="baseline / this harness, at equal time")
    for column in (
        "baseline", "case", "seed", "trained to the end", "per core-second", "ratio",
        "bound (start + stage 1 + stage 2)", "time to equal quality", "best value", "difference; bars",
    ):  # fmt: skip
        table.add_column(column)
    asked = [(cases[name], baseline) for name in given.cases for baseline in baselines_of(cases[name])]
    for case, baseline in asked:
        compare(case, given.seeds, results, table, baseline)
    console.print(table)
    for case, baseline in asked:
        pairs = [(results.kept(case, seed, baseline), results.kept(case, seed, "ours")) for seed in range(given.seeds)]
        found = medians([(plain, ours) for plain, ours in pairs if plain and ours])
        if found:
            ratio, sooner, seeds = found
            what, over = f"{case.name} against {baseline}", f"over {seeds} of {given.seeds} seeds"
            console.print(f"{what}: median {ratio:.1f}x configurations, {sooner:.1f}x sooner, {over}")
    parts = [name for name in given.cases if CASES[name].parts] if given.parts is None else given.parts
    for name in parts:
        case = cases[name]
        show_parts(replace(case, seconds=given.seconds or case.parts or case.seconds), results, console)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)

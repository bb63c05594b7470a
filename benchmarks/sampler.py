"""What is it worth to know that a stage 1 can be used again? Synthetic problems of two stages, at equal cost.

    python -m benchmarks.sampler [--seeds N] [--processes N]

By default 40 seeds over 2 processes, some half an hour.

A stage 2 costs 1, a new stage 1 the problem's ratio; stage 1 is free for a trial that repeats an earlier one's stage-1
values exactly. Every method may spend what `TRIALS` plain trials cost. Beside `StagedSampler`: plain TPE as the harness
uses it (multivariate, in groups), Optuna's TPE at its defaults (no bar), random search, and TPE with naive reuse, where
after the startup each trial repeats the best one's stage 1 at the flip of a coin. Each seed places the optimum
elsewhere, for all methods alike. A method's value at a cost is the noise-free one of the trial that looks best by then.
Where trials are *pruned*, those below the median of the complete ones are stopped after half of their stage 2.

As in the harness, `StagedSampler` learns the costs from the trials, each of which carries what both of its stages cost,
a repeated stage 1 in full. Where the ratio is marked *given*, it knows it from the start.

`to TPE` is the cost at which `StagedSampler` first has the value that TPE ends with on the same seed, over TPE's whole
cost, as the median over seeds. `bound` is the lower 90 % bound, by bootstrap over seeds, of the mean paired difference
to TPE at the end, over the gap (TPE - random), in means. Where TPE is no better than random, to be as good as TPE says
little and the gap is no scale of progress: for a problem of any kind the bar is then on the difference to random, whose
lower 90 % bound must be at least -5 % of the gap's size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from statistics import median

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from lt_search.samplers import STAGE1_COST, STAGE2_COST, ReseededSampler, StagedSampler

TRIALS = 60
METHODS = ("random", "default", "tpe", "naive", "staged")
Vector = npt.NDArray[np.float64]
Suggest = Callable[[optuna.Trial], tuple[Vector, Vector]]


@dataclass(frozen=True)
class Optimum:
    """Where a seed puts the best values."""

    x1: Vector
    x2: Vector
    signs: Vector


@dataclass(frozen=True)
class Problem:
    """A function of two stages to maximise; its best value is about 0."""

    name: str
    kind: str
    """`weak` or `strong` interaction, or `irrelevant`."""
    ratio: float
    suggest: Suggest
    value: Callable[[Optimum, Vector, Vector], float]
    noise: float = 0.0
    stage1_cost: Callable[[Vector], float] | None = field(default=None)
    """Factor on the ratio, where the cost depends on the configuration."""
    given: bool = False
    """Whether the sampler is given the ratio."""
    pruned: bool = False
    """Whether a trial below the median of the complete ones is stopped in the middle of its stage 2."""
    near: float | None = None
    """The first trial's distance from the best values, in each number, where it is not drawn: a paper's values."""

    def cost(self, x1: Vector) -> float:
        """Cost of stage 1 over that of stage 2."""
        return self.ratio if self.stage1_cost is None else self.ratio * self.stage1_cost(x1)


# --- problems --------------------------------------------------------------------------------------------------------


def numbers(d1: int, d2: int) -> Suggest:
    def suggest(trial: optuna.Trial) -> tuple[Vector, Vector]:
        return (
            np.array([trial.suggest_float(f"stage1.{i}", 0, 1) for i in range(d1)]),
            np.array([trial.suggest_float(f"stage2.{i}", 0, 1) for i in range(d2)]),
        )

    return suggest


def mixed(trial: optuna.Trial) -> tuple[Vector, Vector]:
    x1 = [
        (math.log10(trial.suggest_float("stage1.lr", 1e-4, 1, log=True)) + 4) / 4,
        trial.suggest_float("stage1.dropout", 0, 1),
        (trial.suggest_int("stage1.epochs", 1, 20) - 1) / 19,
        float("abc".index(trial.suggest_categorical("stage1.loss", ["a", "b", "c"]))),
    ]
    x2 = [
        (math.log10(trial.suggest_float("stage2.lr", 1e-4, 1, log=True)) + 4) / 4,
        trial.suggest_float("stage2.q", 0, 1),
        (math.log10(trial.suggest_int("stage2.images", 100, 10000, log=True)) - 2) / 2,
        trial.suggest_float("stage2.alpha", 0, 1),
        float(trial.suggest_categorical("stage2.update", [False, True])),
    ]
    return np.array(x1), np.array(x2)


def branching(trial: optuna.Trial) -> tuple[Vector, Vector]:
    """Places of inactive parameters are NaN."""
    triplet = trial.suggest_categorical("stage1.loss", ["ce", "triplet"]) == "triplet"
    x1 = [trial.suggest_float(f"stage1.{name}", 0, 1) for name in ("lr", "decay")]
    x1.append(trial.suggest_float("stage1.margin", 0, 1) if triplet else math.nan)
    cosine = trial.suggest_categorical("stage2.head", ["linear", "cosine"]) == "cosine"
    x2 = [trial.suggest_float("stage2.alpha", 0, 1)]
    x2 += [trial.suggest_float(f"stage2.{n}", 0, 1) if cosine else math.nan for n in ("scale", "margin")]
    x2.append(math.nan if cosine else trial.suggest_float("stage2.penalty", 0, 1))
    return np.array(x1), np.array(x2)


def bowl(distance: Vector) -> float:
    return -float(np.nansum(np.square(distance)))


def weak(best: Optimum, x1: Vector, x2: Vector) -> float:
    d1, d2 = x1 - best.x1[: len(x1)], x2 - best.x2[: len(x2)]
    return bowl(d1) + bowl(d2) - 0.3 * float(d1.sum() * d2.sum()) / math.sqrt(len(x1) * len(x2))


def rough(best: Optimum, x1: Vector, x2: Vector) -> float:
    """Not smooth at the optimum, with local optima and a weak interaction."""
    d1, d2 = x1 - best.x1[: len(x1)], x2 - best.x2[: len(x2)]
    d = np.concatenate([d1, d2])
    return float(-np.abs(d).sum() - 0.1 * (1 - np.cos(4 * np.pi * d)).sum() - 0.2 * abs(d1.sum() * d2.sum()))


def strong(best: Optimum, x1: Vector, x2: Vector) -> float:
    """The best stage-2 values move with the stage-1 ones, as far as these."""
    d1, d2 = x1 - best.x1[: len(x1)], x2 - best.x2[: len(x2)]
    both = min(len(x1), len(x2))
    d2[:both] -= best.signs[:both] * d1[:both]
    return bowl(d1) + bowl(d2)


def mixed_weak(best: Optimum, x1: Vector, x2: Vector) -> float:
    wrong = (x1[3] - int(best.x1[3] * 3)) % 3 + (x2[4] != (best.signs[0] > 0))
    return bowl(x1[:3] - best.x1[:3]) + bowl(x2[:4] - best.x2[:4]) - 0.15 * float(wrong)


def mixed_strong(best: Optimum, x1: Vector, x2: Vector) -> float:
    """Each choice in stage 1 has other best stage-2 values."""
    moved = best.x2[:4].copy()
    moved[:2] = (moved[:2] + x1[3] / 3) % 1
    wrong = (x1[3] - int(best.x1[3] * 3)) % 3 + (x2[4] != ((best.signs[0] > 0) ^ (x1[3] == 1)))
    return bowl(x1[:3] - best.x1[:3]) + bowl(x2[:4] - moved) - 0.15 * float(wrong)


def branches(best: Optimum, x1: Vector, x2: Vector) -> float:
    lost = 0.15 * float(np.isnan(x1[2])) + 0.1 * float(np.isnan(x2[1]))
    return bowl(x1 - best.x1[:3]) + bowl(x2 - best.x2[:4]) - lost


def only_stage1(best: Optimum, x1: Vector, x2: Vector) -> float:
    return bowl(x1 - best.x1[: len(x1)])


def mostly_stage1(best: Optimum, x1: Vector, x2: Vector) -> float:
    return only_stage1(best, x1, x2) + 1e-3 * only_stage2(best, x1, x2)


def only_stage2(best: Optimum, x1: Vector, x2: Vector) -> float:
    return bowl(x2 - best.x2[: len(x2)])


PROBLEMS = (
    Problem("bowl 3+6", "weak", 20, numbers(3, 6), weak, given=True),
    Problem("bowl 4+8", "weak", 50, numbers(4, 8), weak),
    Problem("bowl 3+6, noisy", "weak", 15, numbers(3, 6), weak, noise=0.03),
    Problem("rough 3+5", "weak", 10, numbers(3, 5), rough),
    Problem("mixed 4+5, costs vary", "weak", 10, mixed, mixed_weak, stage1_cost=lambda x1: 0.2 + 1.6 * float(x1[2])),
    Problem("branches 4+5", "weak", 15, branching, branches),
    Problem("bowl 3+6, pruned", "weak", 10, numbers(3, 6), weak, pruned=True),
    Problem("bowl 3+6", "weak", 5, numbers(3, 6), weak),
    Problem("rough 2+4", "weak", 5, numbers(2, 4), rough),
    Problem("valley 3+5", "strong", 10, numbers(3, 5), strong, given=True),
    Problem("valley 2+2", "strong", 3, numbers(2, 2), strong),
    Problem("mixed 4+5", "strong", 20, mixed, mixed_strong),
    Problem("stage 1 only 3+3", "irrelevant", 10, numbers(3, 3), only_stage1),
    Problem("stage 1 only 4+3, noisy", "irrelevant", 2, numbers(4, 3), only_stage1, noise=0.02),
    Problem("good start, mostly stage 1 4+5", "irrelevant", 50, numbers(4, 5), mostly_stage1, near=0.15),
    Problem("stage 2 only 3+3", "irrelevant", 5, numbers(3, 3), only_stage2),
)

# --- searches --------------------------------------------------------------------------------------------------------


def sampler_for(problem: Problem, method: str, seed: int) -> optuna.samplers.BaseSampler:
    if method == "default":
        return optuna.samplers.TPESampler(seed=seed)
    if method != "staged":
        return ReseededSampler(seed, "random" if method == "random" else "tpe")
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):  # so that both branches are seen
        trial = probe.ask()
        problem.suggest(trial)
        probe.tell(trial, 0)
    names = {name for trial in probe.trials for name in trial.params if name.startswith("stage1.")}
    return StagedSampler(sorted(names), cost_ratio=problem.ratio if problem.given else None, seed=seed)


def run(problem: Problem, method: str, seed: int) -> list[tuple[float, float]]:
    """The (cost, value) of the trial that looks best, after each trial."""
    rng, noise, coin = (np.random.default_rng([seed, stream]) for stream in range(3))
    best = Optimum(rng.uniform(0.15, 0.85, 8), rng.uniform(0.15, 0.85, 8), rng.choice([-1.0, 1.0], 8))
    study = optuna.create_study(direction="maximize", sampler=sampler_for(problem, method, seed))
    budget, spent = TRIALS * (problem.ratio + 1), 0.0
    if problem.near is not None:
        near = {"stage1": best.x1 + problem.near * best.signs, "stage2": best.x2 + problem.near * best.signs}
        study.enqueue_trial({f"{stage}.{i}": float(x) for stage, place in near.items() for i, x in enumerate(place)})
    seen: set[bytes] = set()
    curve: list[tuple[float, float]] = []
    complete: list[float] = []
    looks, value = -math.inf, -math.inf
    while True:
        if method == "naive" and len(seen) >= 6 and coin.random() < 0.5:
            values = study.best_trial.params.items()
            study.enqueue_trial({name: x for name, x in values if name.startswith("stage1.")})
        trial = study.ask()
        x1, x2 = problem.suggest(trial)
        reused = x1.tobytes() in seen and method in {"naive", "staged"}
        spent += 1 + (0 if reused else problem.cost(x1))
        if spent > budget + 1e-9:
            return curve
        seen.add(x1.tobytes())
        trial.set_user_attr(STAGE1_COST, problem.cost(x1))
        trial.set_user_attr(STAGE2_COST, 1.0)
        true = problem.value(best, x1, x2)
        observed = true + problem.noise * float(noise.standard_normal())
        if problem.pruned and len(complete) >= 4 and observed < median(complete):
            trial.report(observed, 1)
            study.tell(trial, state=TrialState.PRUNED)
            spent -= 0.5
        else:
            study.tell(trial, observed)
            complete.append(observed)
            if observed > looks:
                looks, value = observed, true
        curve.append((spent, value))


def compare(problem: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return {method: run(PROBLEMS[problem], method, seed) for method in METHODS}


# --- the table -------------------------------------------------------------------------------------------------------


def lower_bound(differences: Vector) -> float:
    """The lower 90 % bound of the mean, by bootstrap."""
    resampled = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(axis=1)
    return float(np.quantile(resampled, 0.1))


def judge(problem: Problem, final: Mapping[str, Vector], to_tpe: float) -> tuple[str, bool]:
    """The bar in words, and whether it is met."""
    gap = float((final["tpe"] - final["random"]).mean())
    if gap <= 0:
        return "TPE no better than random", lower_bound(final["staged"] - final["random"]) >= 0.05 * gap
    if problem.kind == "weak":
        bar = 0.35 if problem.ratio >= 10 else 0.6
        return f"to TPE <= {bar}", to_tpe <= bar
    return "bound >= -0.05", lower_bound(final["staged"] - final["tpe"]) >= -0.05 * gap


def row_of(problem: Problem, curves: list[dict[str, list[tuple[float, float]]]]) -> list[str]:
    final = {method: np.array([curve[method][-1][1] for curve in curves]) for method in METHODS}
    budget = TRIALS * (problem.ratio + 1)

    def to_tpe(method: str) -> float:
        return median(
            next((cost for cost, value in curve[method] if value >= target), math.inf) / budget
            for curve, target in zip(curves, final["tpe"], strict=True)
        )

    gap = float((final["tpe"] - final["random"]).mean())
    differences = final["staged"] - final["tpe"]
    bar, met = judge(problem, final, to_tpe("staged"))
    return [
        problem.name,
        f"{problem.ratio:g}{' given' if problem.given else ''}",
        problem.kind,
        *(f"{-float(np.median(final[method])):.4f}" for method in METHODS),
        f"{to_tpe('naive'):.2f}",
        f"{to_tpe('staged'):.2f}",
        *(f"{x / gap:+.2f}" if gap > 0 else "-" for x in (float(differences.mean()), lower_bound(differences))),
        bar,
        "yes" if met else "NO",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="StagedSampler against TPE, random search, and TPE with naive reuse.")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console(width=180)
    console.print(f"{given.seeds} seeds, budget {TRIALS} plain trials; regrets are medians at the end")
    titles = ("problem", "ratio", "kind", *METHODS, "naive to TPE", "to TPE", "mean", "bound", "bar", "met")
    table = Table(*titles)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        for number, problem in enumerate(PROBLEMS):
            table.add_row(*row_of(problem, list(pool.map(compare, repeat(number, given.seeds), range(given.seeds)))))
            console.print(f"{problem.name}, ratio {problem.ratio:g}: done ({number + 1} of {len(PROBLEMS)})")
    console.print(table)


if __name__ == "__main__":
    main()

"""What the sampler's benchmark computes from curves, and that its searches pay for what they train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.sampler import METHODS, PROBLEMS, TRIALS, Problem, judge, lower_bound, row_of, run

WEAK = next(problem for problem in PROBLEMS if problem.kind == "weak" and problem.ratio >= 10)
STRONG = next(problem for problem in PROBLEMS if problem.kind == "strong")


def finals(**values: float) -> dict[str, np.ndarray]:
    return {method: np.full(5, value) for method, value in values.items()}


def test_the_lower_bound_of_equal_differences_is_their_value_and_lies_below_the_mean_of_others() -> None:
    assert lower_bound(np.full(7, 0.25)) == 0.25
    differences = np.random.default_rng(0).normal(1.0, 1.0, 400)
    assert differences.mean() - lower_bound(differences) == pytest.approx(1.2816 / 20, rel=0.2)


@pytest.mark.parametrize(
    ("problem", "final", "to_tpe", "met"),
    [
        (WEAK, {"tpe": 1, "random": 0, "staged": 1}, 0.35, True),
        (WEAK, {"tpe": 1, "random": 0, "staged": 1}, 0.36, False),
        (replace(WEAK, ratio=5), {"tpe": 1, "random": 0, "staged": 1}, 0.6, True),
        (STRONG, {"tpe": 1, "random": 0, "staged": 0.96}, 1, True),
        (STRONG, {"tpe": 1, "random": 0, "staged": 0.94}, 1, False),
        (WEAK, {"tpe": 0, "random": 1, "staged": 0.96}, 1, True),
        (WEAK, {"tpe": 0, "random": 1, "staged": 0.94}, 1, False),
    ],
)
def test_bars(problem: Problem, final: dict[str, float], to_tpe: float, met: bool) -> None:
    assert judge(problem, finals(**final), to_tpe)[1] is met


def test_a_row_says_when_staged_had_what_tpe_ends_with() -> None:
    budget = TRIALS * (WEAK.ratio + 1)
    curve = {method: [(budget, -1.0)] for method in METHODS}
    curve["random"] = [(budget, -2.0)]
    curve["staged"] = [(budget / 10, -1.5), (budget / 4, -1.0), (budget, -0.5)]
    row = row_of(WEAK, [curve] * 3)
    assert row[0] == WEAK.name
    assert "0.25" in row
    assert "+0.50" in row
    assert row[-1] == "yes"


@pytest.mark.parametrize("pruned", [False, True])
def test_a_search_pays_for_each_new_stage_1_and_for_each_stage_2(pruned: bool) -> None:
    problem = replace(STRONG, pruned=pruned)
    budget = TRIALS * (problem.ratio + 1)
    spent = [cost for cost, _ in run(problem, "random", 0)]
    paid = np.diff([0.0, *spent])
    assert set(np.round(paid, 9)) == ({problem.ratio + 1, problem.ratio + 0.5} if pruned else {problem.ratio + 1})
    assert spent[-1] <= budget
    reused = np.diff([0.0, *(cost for cost, _ in run(problem, "staged", 0))])
    assert set(np.round(reused, 9)) == (
        {0.5, 1, problem.ratio + 0.5, problem.ratio + 1} if pruned else {1, problem.ratio + 1}
    )

"""The rank correlations against SciPy and by simulation, and what counts as one sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from lt_search.pruning.probe_audit import Correlation, ProbeAudit, Stage1Scores, rank_correlation
from lt_search.pruning.rungs import Rung

R1, R2 = Rung(1, 2), Rung(1, 5)


def scores(probe: list[float], final: list[float], head: list[float] | None = None) -> Stage1Scores:
    """One finished trial for each stage-1 address."""
    found = Stage1Scores([R1])
    for i, (seen, value) in enumerate(zip(probe, final, strict=True)):
        found.record(R1, f"a{i}", seen, head[i] if head else None)
        found.finish(f"a{i}", value)
    return found


@pytest.mark.parametrize("n", [4, 5, 12, 60])
@pytest.mark.parametrize("values", [3, 10_000])
def test_agrees_with_scipy_with_ties_and_without(n: int, values: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(10):
        x = rng.integers(values, size=n) / values
        y = x + rng.integers(values, size=n) / values
        expected = spearmanr(x, y).statistic if len(set(x)) > 1 and len(set(y)) > 1 else None
        found = rank_correlation(x.tolist(), y.tolist())
        if expected is None:
            assert found is None
        else:
            assert found is not None and found.value == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_that_of_bonett_and_wright() -> None:
    x, y = [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 8, 5, 7, 6]
    r = 1 - 6 * (1 + 1 + 1 + 1 + 9 + 1 + 0 + 4) / (8**3 - 8)
    z, error = 0.5 * math.log((1 + r) / (1 - r)), math.sqrt((1 + r * r / 2) / (8 - 3))
    ends = [z - 1.2815515655446004 * error, z + 1.2815515655446004 * error]
    low, high = ((math.exp(2 * end) - 1) / (math.exp(2 * end) + 1) for end in ends)
    assert rank_correlation(x, y) == pytest.approx((r, low, high))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_order_has_an_interval_with_a_width(sign: int) -> None:
    found = rank_correlation([1, 2, 3, 4], [sign * value for value in (1, 2, 3, 4)])
    assert found is not None
    assert found.value == pytest.approx(sign)
    assert abs(found.low if sign == 1 else found.high) < 0.1, "four in order are hardly any evidence"
    assert found.low <= found.value <= found.high
    assert found.low >= -1 and found.high <= 1


@pytest.mark.parametrize(("n", "rho"), [(8, 0.3), (20, 0.0), (20, 0.5), (20, 0.85), (60, 0.5)])
def test_the_interval_holds_the_truth_in_80_of_100_samples(n: int, rho: float) -> None:
    """Bivariate normal samples, whose Spearman correlation is 6 / pi asin(rho / 2)."""
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(rho / 2)
    samples = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(1000, n))
    found = [rank_correlation(*sample.T.tolist()) for sample in samples]
    inside = np.mean([one is not None and one.low <= truth <= one.high for one in found])
    assert 0.76 < inside < 0.86  # three standard errors of the simulation are 0.04


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]), ([1, 2, 3, 4], [7, 7, 7, 7])]
)
def test_gives_no_correlation_of_too_few_or_equal_values(x: list[float], y: list[float]) -> None:
    assert rank_correlation(x, y) is None


def test_an_address_counts_once_with_the_best_of_its_stage_2_configurations() -> None:
    found = Stage1Scores([R1, R2, Rung(2, 1)])
    for i, (address, finals) in enumerate({"a": [0.1, 0.9], "b": [0.8], "c": [0.7, 0.2, 0.3], "d": [0.5]}.items()):
        for again, final in enumerate(finals):
            found.record(R1, address, -i + 100 * again, i)  # what a later trial of that stage 1 says does not count
            found.finish(address, final)
    at_first, at_second = found.audit()
    assert (at_first.rung, at_first.n) == (R1, 4)
    assert at_first.probe is not None and at_first.probe.value == pytest.approx(1)
    assert at_first.head is not None and at_first.head.value == pytest.approx(-1)
    assert at_second == ProbeAudit(R2, 0, None, None)


def test_addresses_without_a_finished_trial_or_without_a_record_are_dropped() -> None:
    found = scores([1, 2, 3, 4], [1, 2, 3, 4])
    before = found.audit()
    found.record(R1, "pruned", 0.0, None)
    found.finish("from before this rung was there", 9.0)
    assert found.audit() == before


@pytest.mark.parametrize("missing", [None, math.nan])
def test_the_head_is_not_judged_on_other_addresses_than_the_probe(missing: float | None) -> None:
    found = scores([1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1])
    assert found.audit()[0].head is not None
    found.record(R1, "more", 5.0, missing)
    found.finish("more", 5.0)
    (seen,) = found.audit()
    assert seen.head is None and seen.probe is not None and seen.n == 5


def test_lines_can_be_grepped() -> None:
    probe, head = Correlation(0.812, 0.62, 0.9049), Correlation(-0.1, -0.5, 0.331)
    line = str(ProbeAudit(R2, 12, probe, head))
    assert line == "probe stage=1 step=5 n=12 spearman=0.81 [0.62,0.90] head=-0.10 [-0.50,0.33]"
    assert str(ProbeAudit(R2, 12, probe, None)).endswith("[0.62,0.90] head=none")
    assert str(ProbeAudit(R2, 3, None, None)) == "probe stage=1 step=5 n=3 too few"

"""Audit of stage-1 probes: the rank correlation between probe score and final objective, with an 80 % interval.

One sample is a stage-1 address that was recorded at the rung and of which a trial has finished; its final objective is
the best over its stage-2 configurations. The correlation of the stage-1 head's own score is given beside the probe's.

Pruned trials have no final value, so this is a correlation over survivors: range restriction makes it smaller than it
would be over all addresses, the more so the more a rung stops. Addresses that got more stage-2 configurations than
others also have the better best.

The interval is Fisher's z with the standard error of Bonett and Wright, "Sample size requirements for estimating
Pearson, Kendall and Spearman correlations", Psychometrika 65 (2000), sqrt((1 + r^2 / 2) / (n - 3)). It is a closed
form, the same on every machine and in every resumed run. A percentile bootstrap needs draws, and each of its resamples
of a few addresses repeats some, which makes ties that the data do not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd

from lt_search.pruning.rungs import Rung

MIN_SAMPLES = 4
"""Addresses below which no correlation is given: the standard error needs n > 3."""

CONFIDENCE = 0.8


class Correlation(NamedTuple):
    """A rank correlation with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f},{self.high:.2f}]"


@dataclass(frozen=True)
class ProbeAudit:
    """The rank correlation between score and final objective at one stage-1 rung."""

    rung: Rung
    n: int
    """Distinct stage-1 addresses with a record at the rung and a finished trial."""
    probe: Correlation | None
    """Of the probe's score; None with too few addresses, or where all values are equal."""
    head: Correlation | None
    """Of the stage-1 head's score; None also where a journal does not hold it for each of the addresses."""

    def __str__(self) -> str:
        """One greppable line, such as `probe stage=1 step=5 n=12 spearman=0.81 [0.62,0.91] head=0.74 [0.50,0.88]`."""
        where = f"probe stage={self.rung.stage} step={self.rung.step} n={self.n}"
        if self.n < MIN_SAMPLES:
            return f"{where} too few"
        return f"{where} spearman={self.probe or 'none'} head={self.head or 'none'}"


class Stage1Scores:
    """Scores of stage-1 addresses at the rungs, and the best final objective of each address.

    Args:
        rungs: all rungs of the run; those of stage 1 are kept.
    """

    def __init__(self, rungs: Iterable[Rung]) -> None:
        self._records: dict[Rung, dict[str, tuple[float, float | None]]] = {r: {} for r in rungs if r.stage == 1}
        self._best: dict[str, float] = {}

    def record(self, rung: Rung, address: str, probe: float, head: float | None) -> None:
        """Adds the probe's and the head's score of an address at a rung; the first one counts."""
        if rung in self._records:
            self._records[rung].setdefault(address, (probe, head))

    def finish(self, address: str, value: float) -> None:
        """Adds the final objective of a finished trial of an address."""
        self._best[address] = max(value, self._best.get(address, -math.inf))

    def audit(self) -> tuple[ProbeAudit, ...]:
        """The audit of each stage-1 rung, in the order a trial meets them."""
        return tuple(self._at(rung) for rung in sorted(self._records))

    def _at(self, rung: Rung) -> ProbeAudit:
        pairs = [(*seen, self._best[key]) for key, seen in self._records[rung].items() if key in self._best]
        final = [best for _, _, best in pairs]
        heads = [head for _, head, _ in pairs if head is not None and math.isfinite(head)]
        return ProbeAudit(
            rung,
            len(pairs),
            rank_correlation([probe for probe, _, _ in pairs], final),
            rank_correlation(heads, final) if len(heads) == len(final) else None,
        )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Spearman's rank correlation, ties at their mean rank, with its 80 % interval.

    At +-1, where Fisher's z is infinite, the interval is that of a correlation half a step inside: without ties the
    attainable values are 12 / (n^3 - n) apart.

    Args:
        x: (n,) finite values.
        y: (n,) finite values.

    Returns:
        None for n < 4, and where all of `x` or all of `y` are equal.
    """
    n = len(x)
    if n < MIN_SAMPLES or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    ranks = pd.DataFrame({"x": x, "y": y}).rank().to_numpy()
    value = float(np.clip(np.corrcoef(ranks, rowvar=False)[0, 1], -1.0, 1.0))
    inside = 1 - 6 / (n**3 - n)
    r = min(max(value, -inside), inside)
    margin = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((1 + r**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(r) - margin), math.tanh(math.atanh(r) + margin)
    return Correlation(value, min(low, value), max(high, value))

"""How well what a stage-1 rung sees foretells the final value: Spearman's rank correlation with an 80 % interval.

Counted are distinct stage-1 addresses that were recorded at the rung and of which a trial has finished, each with the
best final value of its stage 2s: a stage 1 is worth what the best stage 2 makes of it. The probe is set beside the
stage-1 head itself.

Trials that were pruned have no final value, so this is a correlation over survivors. Cutting off one end of the range
of the probe makes its correlation smaller than it would be over all stage 1s (range restriction), the more so the
more a rung stops. A probe may therefore fail the bar below although it foretells well; a rung is turned off too early
rather than too late, which costs time and loses no good trial. So does looking again after each trial: the interval
is one for a single look. Stage 1s that got more stage 2s than others also have the better best.

The interval is Fisher's z with the standard error of Bonett and Wright, "Sample size requirements for estimating
Pearson, Kendall and Spearman correlations", Psychometrika 65 (2000), sqrt((1 + r^2 / 2) / (n - 3)). It is a closed
form: the same on every machine and in every resumed run, and cheap enough for the end of each trial. A percentile
bootstrap needs draws, and each of its resamples of a few addresses repeats some, which makes ties that the data do not
have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lt_search.pruning.rungs import Rung

FEWEST = 4
"""Addresses below which nothing is said: the standard error needs n > 3."""

ENOUGH = 20
"""Addresses from which on a rung may be turned off."""

BAR = 0.5
"""A probe whose interval lies below this correlation foretells too little to stop a trial."""

CONFIDENCE = 0.8


class Correlation(NamedTuple):
    """A rank correlation with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f},{self.high:.2f}]"


@dataclass(frozen=True)
class Foresight:
    """What one stage-1 rung foretells."""

    rung: Rung
    addresses: int
    """Distinct stage-1 addresses with a record at the rung and a finished trial."""
    probe: Correlation | None
    """Of the probe there with the best final value; None with too few addresses, or where all values are equal."""
    head: Correlation | None
    """The same of the stage-1 head; None also where a journal does not hold its value for each of the addresses."""

    @property
    def fails(self) -> bool:
        """Whether enough addresses show that the probe foretells too little for the rung to stop trials."""
        return self.addresses >= ENOUGH and self.probe is not None and self.probe.high < BAR

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"addresses": self.addresses, "probe": self.probe, "head": self.head}

    @classmethod
    def from_json(cls, rung: Rung, plain: Mapping[str, Any]) -> Foresight:
        """Reads `to_json`'s output."""
        probe, head = (Correlation(*plain[name]) if plain[name] else None for name in ("probe", "head"))
        return cls(rung, plain["addresses"], probe, head)


class Evidence:
    """What is known of each stage-1 address: its values at the rungs, and the best of its final values.

    Args:
        rungs: all rungs of the run; those of stage 1 are kept.
    """

    def __init__(self, rungs: Iterable[Rung]) -> None:
        self._records: dict[Rung, dict[str, tuple[float, float | None]]] = {r: {} for r in rungs if r.stage == 1}
        self._best: dict[str, float] = {}

    def record(self, rung: Rung, address: str, probe: float, head: float | None) -> None:
        """Takes the probe's and the head's value of an address at a stage-1 rung; the first one counts."""
        self._records[rung].setdefault(address, (probe, head))

    def finish(self, address: str, value: float) -> None:
        """Takes the final value of a finished trial of an address."""
        self._best[address] = max(value, self._best.get(address, -math.inf))

    def foresight(self) -> tuple[Foresight, ...]:
        """What each stage-1 rung foretells, in the order a trial meets them."""
        return tuple(self._at(rung) for rung in sorted(self._records))

    def _at(self, rung: Rung) -> Foresight:
        pairs = [(*seen, self._best[key]) for key, seen in self._records[rung].items() if key in self._best]
        final = [best for _, _, best in pairs]
        heads = [head for _, head, _ in pairs if head is not None and math.isfinite(head)]
        return Foresight(
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
    if n < FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    ranks = pd.DataFrame({"x": x, "y": y}).rank().to_numpy()
    value = float(np.clip(np.corrcoef(ranks, rowvar=False)[0, 1], -1.0, 1.0))
    inside = 1 - 6 / (n**3 - n)
    r = min(max(value, -inside), inside)
    margin = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((1 + r**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(r) - margin), math.tanh(math.atanh(r) + margin)
    return Correlation(value, min(low, value), max(high, value))


def foresight_line(found: Foresight, *, off: bool) -> str:
    """One greppable line, such as `probe stage=1 step=5 n=12 spearman=0.81 [0.62,0.91] head=0.74 [0.50,0.88]`.

    Args:
        found: what to say.
        off: whether the rung was turned off.
    """
    where = f"probe stage={found.rung.stage} step={found.rung.step} n={found.addresses}"
    told = f"spearman={found.probe or 'none'} head={found.head or 'none'}" if found.addresses >= FEWEST else "too few"
    return f"{where} {told}{' off' if off else ''}"


def why_off(found: Foresight) -> str:
    """What a person is told of a rung that was turned off, and of what it was decided on."""
    assert found.probe is not None
    value, low, high = found.probe
    return (
        f"{found.rung} stops no more trials: over {found.addresses} stage 1s its probe's rank correlation with the "
        f"final value is {value:.2f}, and the {CONFIDENCE:.0%} interval, {low:.2f} to {high:.2f}, lies below {BAR}"
    )

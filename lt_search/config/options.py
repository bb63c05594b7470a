"""What the user asks for: the options that decide a run's results, and those of how it is carried out."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal


@dataclass(frozen=True)
class SpecOptions:
    """What the user asked for, as far as it decides results. A run keeps it, so that `--resume` can be checked."""

    space: str
    """Empty where a resumed run's own space is meant."""
    dataset: str | None = None
    data_root: str | None = None
    _: KW_ONLY
    extra_data: tuple[str, ...] = ()
    """Further training data: `NAME`, `NAME=ROOT`, `FILE.csv` or `FILE.csv=ROOT` each."""
    image_size: int | None = None
    budget: Literal["auto", "small", "full"] = "auto"
    metric: str | None = None
    seed: int = 0
    split_seed: int = 0
    set: tuple[str, ...] = ()
    """`name=value` each."""
    search: tuple[str, ...] = ()
    """`name=range` each."""
    sampler: Literal["staged", "tpe", "random"] = "staged"
    prune: bool = True
    reuse: bool = True
    cost_ratio: float | None = None
    """Stage-1 cost over stage-2 cost as proposals see it; None: measured."""
    row: str | None = None
    """Which of the space's rows, where it has any."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out. No part of its spec; another device or number of threads can move the last bits."""

    storage: str = "runs"
    name: str | None = None
    resume: str | None = None
    trials: int | None = None
    """Trials to propose in all; None: the budget's, or what a resumed run already had."""
    time_budget: float | None = None
    """Seconds after which no more steps are trained; the run stays resumable."""
    max_concurrent: int | None = None
    address: str | None = None
    gpus_per_trial: str = "auto"
    cpus_per_trial: int = 1
    keep_gb: float = 10.0
    """Disk for the final checkpoints of finished trials, best first; the best one is always kept."""
    plan: bool = False
    """Only say what would be run."""

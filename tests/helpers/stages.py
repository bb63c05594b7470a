"""Stage-1 artefacts for tests of whatever stores or reuses them."""

from __future__ import annotations

import torch

from lt_search.storage.records import StepReport
from lt_search.storage.stage_store import StageOne

A, B, C, D, E, F = (digit * 32 for digit in "abcdef")
"""Addresses."""

LONG_AGO = 1e9
"""In 2001."""


def stage(value: float = 1.0, n: int = 4) -> StageOne:
    return StageOne(
        state={"model": {"weight": torch.full((n,), value)}, "optimizers": None, "lr": 0.1},
        features={"val": torch.arange(6.0).view(2, 3)},
        history=(
            StepReport(7, 1, 1, 1, seconds=2.0, scalars={"loss": 2.5}),
            StepReport(7, 1, 1, 2, seconds=3.0, value=0.5),
        ),
        metric="mAP",
        trained_by="run/7",
        trainer="tiny",
    )

"""Learning-rate schedules as pure functions of a batch's position in its stage."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "onecycle"]

RISE, START_DIVISOR, END_DIVISOR = 0.3, 25.0, 1e4
"""`onecycle`: its rising share, the first rate's distance from the top and the last's from the first (PyTorch's)."""


def learning_rate(
    schedule: Schedule, batch: int, total: int, top: float, *, floor: float = 0.0, warmup: float = 0.0
) -> float:
    """The rate of batch `batch` (from 0) of `total`.

    - `constant`: `top`.
    - `cosine`: for the first `warmup` (a fraction of all batches) a line from `floor` to `top`, then half a cosine back
      to `floor`, which the batch after the last one would have (SGDR, arXiv 1608.03983, Eq 5, without restarts).
    - `onecycle`: half a cosine from top / 25 up to `top` in the first 30 %, then one down to top / 250 000 (Smith &
      Topin, arXiv 1708.07120, as `torch.optim.lr_scheduler.OneCycleLR` has it); no `warmup`, no `floor`.
    """
    if schedule == "constant":
        return top
    if schedule == "cosine":
        first = warmup * total
        if batch < first:
            return floor + (top - floor) * batch / first
        return _half_cosine(top, floor, (batch - first) / (total - first))
    start = top / START_DIVISOR
    peak = RISE * total - 1
    if batch < peak:
        return _half_cosine(start, top, batch / peak)
    return _half_cosine(top, start / END_DIVISOR, (batch - peak) / (total - 1 - peak))


def _half_cosine(begin: float, end: float, done: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * done)) / 2

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from trainers.schedules import Schedule, learning_rate

TOTAL, TOP = 40, 3e-3


def rates(schedule: Schedule, total: int = TOTAL, **options: float) -> list[float]:
    return [learning_rate(schedule, batch, total, TOP, **options) for batch in range(total)]


def of_torch(make: object) -> list[float]:
    assert callable(make)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=TOP)
    scheduler, found = make(optimizer), []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_pytorchs() -> None:
    expected = of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=1e-5))
    np.testing.assert_allclose(rates("cosine", floor=1e-5), expected, rtol=1e-9)


def test_cosine_after_a_warmup_is_a_line_then_a_shorter_cosine() -> None:
    found = rates("cosine", floor=1e-5, warmup=0.25)
    np.testing.assert_allclose(found[:10], 1e-5 + (TOP - 1e-5) * np.arange(10) / 10)
    half = [1e-5 + (TOP - 1e-5) / 2 * (1 + math.cos(math.pi * i / 30)) for i in range(30)]
    np.testing.assert_allclose(found[10:], half)


def test_onecycle_is_pytorchs() -> None:
    expected = of_torch(lambda o: lr_scheduler.OneCycleLR(o, max_lr=TOP, total_steps=TOTAL + 1))
    found = [learning_rate("onecycle", batch, TOTAL + 1, TOP) for batch in range(TOTAL)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_constant_is_constant() -> None:
    assert set(rates("constant", floor=1e-5, warmup=0.5)) == {TOP}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_the_shortest_stages_have_rates_between_nought_and_the_top(schedule: Schedule, total: int) -> None:
    for warmup in (0.0, 0.2, 0.9):
        assert all(0 <= rate <= TOP for rate in rates(schedule, total, warmup=warmup))

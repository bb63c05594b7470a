"""Feature distribution compensation against NumPy, and which way it pushes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from trainers.features.gaussians import Gaussians
from trainers.losses.compensation import FdcMode, FdcSign, fdc

RNG = np.random.default_rng(0)
DISTANCES = RNG.uniform(1, 9, (6, 4))
Y = np.array([0, 1, 2, 0, 1, 2])
PRESENT = np.array([True, True, True, False])


def reference(mode: FdcMode, sign: FdcSign) -> float:
    m = DISTANCES if sign == "paper" else -DISTANCES
    if mode == "softmax":
        return float(-np.mean(log_softmax(-m[:, :3] / 4.0, 1)[np.arange(6), Y]))
    gaps = []
    for row, y in zip(m, Y, strict=True):
        others = [k for k in range(3) if k != y]
        gaps.append(row[y] - np.mean(row[others]))
    return float(np.mean(gaps if mode == "linear" else np.maximum(0, 1.5 + np.array(gaps))))


@pytest.mark.parametrize("sign", ["paper", "released"])
@pytest.mark.parametrize("mode", ["linear", "hinge", "softmax"])
def test_loss_is_that_of_its_equation_over_present_classes(mode: FdcMode, sign: FdcSign) -> None:
    found = fdc(
        torch.tensor(DISTANCES), torch.tensor(Y), torch.tensor(PRESENT), mode=mode, sign=sign, margin=1.5,
        temperature=2.0,
    )  # fmt: skip
    assert found.item() == pytest.approx(reference(mode, sign), rel=1e-5)


@pytest.mark.parametrize("mode", ["linear", "hinge", "softmax"])
def test_a_step_downhill_brings_features_nearer_to_their_own_class(mode: FdcMode) -> None:
    mean = torch.tensor([[[3.0, 0.0], [-3.0, 0.0]]], dtype=torch.float64)
    gaussians = Gaussians.of(mean, torch.eye(2, dtype=torch.float64).expand(1, 2, 2, 2))
    for sign, nearer in (("paper", True), ("released", False)):
        z = torch.tensor([[0.5, 1.0]], requires_grad=True)
        own = torch.tensor([0])
        both = torch.tensor([True, True])
        fdc(gaussians.mahalanobis(z)[0].mT, own, both, mode=mode, sign=sign, margin=100.0).backward()  # type: ignore
        assert z.grad is not None
        moved = (z - 0.01 * z.grad).detach()
        before, after = (gaussians.mahalanobis(x)[0, 0, 0].item() for x in (z.detach(), moved))
        assert (after < before) is nearer

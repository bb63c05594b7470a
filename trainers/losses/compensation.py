"""Feature distribution compensation: pulls features to their own class's Gaussian, away from the others (LMD, stage 2).

Distances are squared Mahalanobis distances M_k(z), see `Gaussians.mahalanobis`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FdcMode = Literal["linear", "hinge", "softmax"]
FdcSign = Literal["paper", "released"]


def fdc(
    distances: Tensor,
    classes: Tensor,
    present: Tensor,
    *,
    mode: FdcMode = "linear",
    sign: FdcSign = "paper",
    margin: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Mean loss of a batch with distances (B, K), class indices (B,) and a mask (K,) of classes that have images.

    With Psi = M_y (attract) and Phi = mean of M_k over the other present classes (repel):

    - `linear`: Psi - Phi, the paper's, unbounded below;
    - `hinge`: max(0, `margin` + Psi - Phi);
    - `softmax`: cross-entropy over the logits -M_k / (2 `temperature`), each class's likelihood up to its determinant.

    `sign` `released` swaps the roles, as the published code does: it pushes features away from their own class.
    """
    m = distances.float() if sign == "paper" else -distances.float()
    if mode == "softmax":
        return F.cross_entropy((-m / (2 * temperature)).masked_fill(~present, -torch.inf), classes)
    own = F.one_hot(classes, m.shape[1]).bool()
    others = present & ~own
    phi = m.masked_fill(~others, 0.0).sum(1) / others.sum(1).clamp(min=1)
    gap = m.gather(1, classes[:, None]).squeeze(1) - phi
    return (gap if mode == "linear" else (margin + gap).clamp(min=0)).mean()

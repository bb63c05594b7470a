"""Closed-form, class-balanced linear discriminants on class statistics, which score a representation."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.features.gaussians import GroupSums, cholesky, moments, scaled_identity, shrink

PROBE_SHRINKAGE = 0.1
"""Shrinkage of a probe's covariance: the same for every trial, so that their probe values can be compared."""


def lda(sums: GroupSums, shrinkage: float = PROBE_SHRINKAGE) -> tuple[Tensor, Tensor]:
    """Linear discriminants with equal priors: weights (P, J, D) and biases (P, J), float64.

    Score of group j of a pool: mu_j^T S^-1 x - mu_j^T S^-1 mu_j / 2, where S is the pool's within-group covariance,
    shrunk towards tr(S) / D * I. For multi-class sums (P = 1) the scores of pool 0 are the logits.
    """
    found = moments(sums)
    target = scaled_identity(found.within, diagonal=found.diagonal)
    within = shrink(found.within, target, shrinkage)
    if found.diagonal:
        weight = found.mean / within.clamp(min=torch.finfo(within.dtype).tiny).unsqueeze(1)
    else:
        weight = torch.cholesky_solve(found.mean.mT, cholesky(within)).mT
    return weight, -(weight * found.mean).sum(-1) / 2


def lda_per_label(sums: GroupSums, shrinkage: float = PROBE_SHRINKAGE) -> tuple[Tensor, Tensor]:
    """Two-group discriminants of multi-label sums, present against absent: weights (C, D) and biases (C,), float64.

    The bias puts the zero halfway between both means (equal priors). A label without any positive gets the logit 0.
    """
    weight, bias = lda(sums, shrinkage)
    return weight[:, 1] - weight[:, 0], bias[:, 1] - bias[:, 0]

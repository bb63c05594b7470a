"""Multi-view relation-aware consistency between a student and its teacher (MRC-VFC, MICCAI 2023; LMD's stage 1).

The student's view is strong, the teacher's weak; the teacher has no gradients. As in the released code, Gram matrices
have rows of unit length unless `normalised` is off: the printed, plain norm is about a thousand times larger, and the
published weights do not fit it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def probability_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL(p' || p) of the teacher's class probabilities from the student's, both given as logits (B, K)."""
    return F.kl_div(
        F.log_softmax(student.float(), 1), F.log_softmax(teacher.float(), 1), reduction="batchmean", log_target=True
    )


def sample_relation(student: Tensor, teacher: Tensor, *, normalised: bool = True) -> Tensor:
    """1 / B * || rn(z z^T) - rn(z' z'^T) ||_F^2 of features (B, D): which images resemble which."""
    return _gram_distance(student.float(), teacher.float(), normalised) / len(student)


def channel_relation(student: Tensor, teacher: Tensor, *, normalised: bool = True) -> Tensor:
    """1 / B * || rn(z^T z) - rn(z'^T z') ||_F^2 of features (B, D): which channels go together; 1 / D where printed."""
    by = len(student) if normalised else student.shape[1]
    return _gram_distance(student.float().mT, teacher.float().mT, normalised) / by


def _gram_distance(a: Tensor, b: Tensor, normalised: bool) -> Tensor:
    one, two = a @ a.mT, b @ b.mT
    if normalised:
        one, two = F.normalize(one, dim=1), F.normalize(two, dim=1)
    return (one - two).square().sum()

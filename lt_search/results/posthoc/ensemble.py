"""Ensembles of models, also class-wise: for each class its best models.

Class-wise choice is the paper's (arXiv 2308.08853). It compares every model on every class, which over-fits classes of
few positives; those keep all models.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_POSITIVES = 30
"""Positives that a class needs where its models are chosen; our recommendation, the paper gives none."""


def choose_members(quality: Tensor, positives: Tensor, m: int, min_positives: int = MIN_POSITIVES) -> Tensor:
    """Which models are averaged for which class: bool (M, C).

    For class c those `m` of the M models with the highest `quality` (M, C), such as the average precision; of equal
    ones the first. All models where the class has fewer than `min_positives` of `positives` (C,), or where the quality
    of one is NaN. Choose on one split and score on another: chosen on the split that is scored, the score is too good.
    Raises `ValueError` unless 1 <= m <= M.
    """
    n_models = len(quality)
    if not 1 <= m <= n_models:
        raise ValueError(f"m is {m}, but there are {n_models} models: m is between 1 and {n_models}")
    best = quality.argsort(stable=True, dim=0, descending=True)[:m]
    members = torch.zeros(quality.shape, dtype=torch.bool, device=quality.device).scatter_(0, best, True)
    unsure = (positives < min_positives) | quality.isnan().any(0)
    return members | unsure


def combine(scores: Tensor, members: Tensor) -> Tensor:
    """The mean of scores (M, N, C) over each class's members (M, C): (N, C).

    Scores are probabilities, or anything else in which the models are comparable. Raises `ValueError` for a class
    without a member.
    """
    if not bool(members.any(0).all()):
        empty = (~members.any(0)).nonzero().squeeze(1).tolist()
        raise ValueError(f"classes without a model: {', '.join(map(str, empty))}")
    chosen = torch.where(members[:, None], scores, 0)  # a product would keep the NaN of a model that is left out
    return chosen.sum(0) / members.sum(0)

"""Decision thresholds per label that maximise F1, in place of probability 0.5."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_POSITIVES = 20
"""Positives that a label needs for a threshold of its own; our recommendation, published work gives none."""


def f1_thresholds(
    logits: Tensor, labels: Tensor, min_positives: int = MIN_POSITIVES, *, positives: Tensor | None = None
) -> Tensor:
    """The logit t_c above which label c is predicted such that its F1 is largest, float64 (C,).

    Args:
        logits: (N, C).
        labels: (N, C) of 0 / 1.
        min_positives: a label with fewer positives keeps 0, the logit of probability 0.5.
        positives: (C,) those that are counted for that; None: the ones of `labels`.

    A threshold lies half-way between two logits that occur; of equally good ones the largest is taken. Subtracted from
    the logits, thresholds leave every ranking within a label as it is.
    """
    if not len(logits):
        return torch.zeros(logits.shape[1], dtype=torch.float64)
    ranked, order = logits.double().sort(dim=0, descending=True, stable=True)
    truth = labels.to(torch.bool).gather(0, order).double()
    present = truth.sum(0)
    hits, predicted = truth.cumsum(0), torch.arange(1, len(ranked) + 1, dtype=torch.float64)[:, None]
    f1 = 2 * hits / (predicted + present)
    below = torch.cat((ranked[1:], ranked[-1:] - 1))
    f1[ranked == below] = -1.0  # no threshold parts equal logits
    best = f1.argmax(0, keepdim=True)
    found = ((ranked + below) / 2).gather(0, best).squeeze(0)
    return torch.where((present if positives is None else positives) >= min_positives, found, 0.0)

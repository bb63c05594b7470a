"""Weights of hard classes, which are found on held-out training images.

Hong et al. (arXiv 2308.08853) weigh nine classes that did badly on the development set by 2 or 3. Which, and by what
rule, is not available; here it is the average precision on an inner part of the training patients, so that the split
that trials are compared on decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def inner_part(labels: Tensor, groups: Sequence[str] | None, fraction: float, generator: torch.Generator) -> Tensor:
    """Which images stage 1 leaves out: bool (N,) on CPU, about `fraction` of them and of each label's positives.

    Iterative stratification (Sechidis et al., ECML PKDD 2011) of whole groups: labels are served from the rarest on,
    each group goes where more positives of that label are still wanted. So a label with positives in a single group
    keeps them for training. A group of which every image has an unknown label (NaN) stays in training, because scores
    need known ones; of other groups such images go with the rest, and the caller does not score them.

    Args:
        labels: (N, C), 1 present, 0 absent, NaN unknown.
        groups: (N,) what must stay together, such as the patient; None: every image by itself.
        fraction: in [0, 1).
        generator: a CPU one; decides between groups that serve a label equally.

    Raises:
        ValueError: if there is not one group per image.
    """
    n = len(labels)
    if groups is not None and len(groups) != n:
        raise ValueError(f"there are {len(groups)} groups, but {n} images; there must be one per image")
    member = np.arange(n) if groups is None else np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
    n_groups = int(member.max(initial=-1)) + 1
    values = labels.cpu().double().numpy()
    positives = np.zeros((n_groups, values.shape[1]))
    np.add.at(positives, member, np.nan_to_num(values))
    sizes = np.bincount(member, minlength=n_groups)
    known = np.bincount(member, weights=~np.isnan(values).any(1), minlength=n_groups) > 0

    order = torch.randperm(n_groups, generator=generator).numpy()
    order = order[known[order]]
    shares = np.array([1 - fraction, fraction])
    wanted = shares[:, None] * positives[order].sum(0)
    images_wanted = shares * sizes[order].sum()
    inner, open_ = np.zeros(n_groups, bool), known.copy()

    def place(group: int, need: np.ndarray) -> None:
        side = int(need[1] > need[0])
        inner[group], open_[group] = bool(side), False
        wanted[side] -= positives[group]
        images_wanted[side] -= sizes[group]

    while (left := positives[open_].sum(0)).any():
        label = int(np.where(left > 0, left, np.inf).argmin())
        for group in order[open_[order] & (positives[order, label] > 0)]:
            place(group, wanted[:, label])
    for group in order[open_[order]]:
        place(group, images_wanted)
    return torch.from_numpy(inner[member])


def hardest_first(scores: Tensor, labels: Tensor, counts: Tensor) -> list[int]:
    """Labels by their average precision on the inner part, the lowest first.

    Labels whose precision is not defined there, for want of positives, come before all others, the rarest first:
    they are the tail. Labels without a training image are left out. Of equals the rarer comes first, then the lower
    index.

    Args:
        scores: (N', C) of the inner part; only their order within a label counts, NaN counts as 0.
        labels: (N', C), 0 / 1.
        counts: (C,) training images of each label.
    """
    predicted, truth = scores.nan_to_num().cpu().double().numpy(), (labels > 0.5).cpu().numpy()
    keys = []
    for label, count in enumerate(counts.tolist()):
        positive = truth[:, label]
        precision = average_precision(predicted[:, label], positive) if positive.any() else -1.0
        if count > 0:
            keys.append((precision, count, label))
    return [label for *_, label in sorted(keys)]


def average_precision(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """Sum over thresholds of (R_n - R_{n-1}) P_n, not interpolated; equal scores share a threshold.

    `scores` and `positive` (N,), with at least one positive. scikit-learn's costs a worker seconds to import.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positive[order].cumsum()
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    precision = hits[ends] / (ends + 1)
    return float((precision * np.diff(hits[ends], prepend=0)).sum() / hits[-1])


def class_weights(
    hardest: Sequence[int], n_classes: int, n_hard: int, high_share: float, mid: float, high: float
) -> Tensor:
    """Weights v_c, float32 (C,): `high` for the first of the hard classes, `mid` for the rest of them, 1 for others.

    Hard are the first `n_hard` of `hardest`, but at most half of all classes: beyond that the others would be the
    exception. `high_share` of them, rounded down, have the higher weight.
    """
    hard = list(hardest)[: min(n_hard, n_classes // 2)]
    n_high = int(high_share * len(hard) + 1e-9)
    weights = torch.ones(n_classes)
    weights[hard[:n_high]] = high
    weights[hard[n_high:]] = mid
    return weights

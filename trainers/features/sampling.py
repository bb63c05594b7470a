"""Class-balanced and reverse sampling of images and labels."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-9
"""Added to a frequency before it is inverted (paper, section 3.4)."""


def reverse_probabilities(counts: Tensor, alpha: float, mean_positives: float = 1.0) -> Tensor:
    """Probability p_c that label c is present, float64 (C,), from its positive images `counts` (C,).

    p_c = (1 / (F_c + eps))^alpha / sum_j (1 / (F_j + eps))^alpha (LDRNet Eq 12), so that p sums to 1 and a virtual
    image has one positive on average; alpha = 0 is uniform sampling. `mean_positives` multiplies p; what it raises
    stops at 0.5, and at 1 it changes nothing. A label without positives gets 0: Eq 12 would give it all the mass, but
    there is nothing to draw its positives from.
    """
    counts = counts.to(torch.float64)
    # Relative to the rarest label, which leaves the ratio as it is and keeps the powers near 1.
    rarest = counts[counts > 0].min() if bool((counts > 0).any()) else counts.new_ones(())
    share = ((rarest + EPS) / (counts + EPS)) ** alpha * (counts > 0)
    p = share / share.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.minimum(p * mean_positives, p.clamp(min=0.5))


def same_number_each(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` image indices of every class that has an image, drawn with replacement, class by class; int64 on CPU.

    One label per image, (N,). `generator` is a CPU one.
    """
    labels = labels.cpu()
    by_class = labels.argsort(stable=True)
    sizes = torch.unique(labels, return_counts=True)[1]
    picks = torch.rand((len(sizes), n), generator=generator, dtype=torch.float64)
    places = (picks * sizes[:, None]).long() + (sizes.cumsum(0) - sizes)[:, None]
    return by_class[places.flatten()]


def class_balanced_order(labels: Tensor, n: int, exponent: float, generator: torch.Generator) -> Tensor:
    """`n` image indices, drawn with replacement so that rare classes come as often as frequent ones; int64 on CPU.

    One label per image, (N,): image i has probability ~ n_{y_i}^-exponent, so 0 is plain sampling, 1 class-balanced.
    Several labels, (N, C): a class is drawn with probability ~ n_c^(1 - exponent), then one of its images; images
    without any label are never drawn. `generator` is a CPU one.
    """
    labels = labels.cpu()
    if labels.dim() == 1:
        counts = torch.bincount(labels).to(torch.float64)
        return torch.multinomial(counts[labels] ** -exponent, n, replacement=True, generator=generator)
    counts = labels.to(torch.float64).sum(0)
    chance = torch.where(counts > 0, counts.clamp(min=1) ** (1 - exponent), 0.0)
    classes = torch.multinomial(chance, n, replacement=True, generator=generator)
    picks = torch.rand(n, generator=generator, dtype=torch.float64)
    members = [(column > 0.5).nonzero().squeeze(1) for column in labels.unbind(1)]
    order = torch.empty(n, dtype=torch.int64)
    for label in torch.unique(classes).tolist():
        own = classes == label
        order[own] = members[label][(picks[own] * len(members[label])).long()]
    return order

"""How often each label is present in a virtual image (LDRNet Eq 12)."""

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

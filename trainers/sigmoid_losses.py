"""Multi-label losses on logits, in float32 whatever autocast does.

Every loss takes logits and 0 / 1 targets of one shape (B, C), optional weights of a shape that broadcasts to it, and
returns the mean of weight * loss over all entries.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GceForm = Literal["valid", "signfix", "bce"]


def bce(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy (LDRNet Eq 7)."""
    return _mean(F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none"), weights)


def gce(
    logits: Tensor,
    targets: Tensor,
    q: float,
    form: GceForm = "valid",
    weights: Tensor | None = None,
) -> Tensor:
    """Generalised cross-entropy of independent labels (Zhang & Sabuncu, arXiv 1805.07836; LDRNet Eq 16).

    With p = sigmoid(logit) and 0 < q <= 1:

    - `valid`: y (1 - p^q) / q + (1 - y) (1 - (1 - p)^q) / q. q -> 0 is BCE, q = 1 is the mean absolute error;
      a larger q trusts confident predictions more. Gradient: -p^q (1 - p) for positives, (1 - p)^q p for negatives.
    - `signfix`: y (1 - p^q)^(1/q) + (1 - y) p, the paper's printed form with the sign inside its bracket mended.
      As printed it is NaN for every positive.
    - `bce`: binary cross-entropy, the control; q is not used.

    Powers are taken as exp(q log sigmoid): finite for any logit, with a gradient where a clamped p would have none.
    """
    if form == "bce":
        return bce(logits, targets, weights)
    if not 0 < q <= 1:
        raise ValueError(f"q is {q}; generalised cross-entropy needs 0 < q <= 1")
    z, y = logits.float(), targets.float()
    if form == "valid":
        # The probability of the true value is sigmoid(z) for a positive and sigmoid(-z) for a negative.
        return _mean(-torch.expm1(q * F.logsigmoid(torch.where(y > 0.5, z, -z))) / q, weights)
    missed = (-torch.expm1(q * F.logsigmoid(z))) ** (1 / q)
    return _mean(y * missed + (1 - y) * torch.sigmoid(z), weights)


def focal_bce(logits: Tensor, targets: Tensor, gamma: float, alpha: float | None = None) -> Tensor:
    """Binary cross-entropy times (1 - p_t)^gamma, p_t the probability of the true value (Lin et al., arXiv 1708.02002).

    `alpha` weights positives by alpha and negatives by 1 - alpha; None leaves both at 1.
    """
    z, y = logits.float(), targets.float()
    # log(1 - p_t) by the other side's sigmoid: its power keeps a gradient where 1 - p_t rounds to 0.
    signed = z * (2 * y - 1)
    losses = torch.exp(gamma * F.logsigmoid(-signed)) * -F.logsigmoid(signed)
    return _mean(losses, None if alpha is None else y * alpha + (1 - y) * (1 - alpha))


def asymmetric(logits: Tensor, targets: Tensor, gamma_pos: float, gamma_neg: float, margin: float) -> Tensor:
    """Asymmetric loss (Ridnik et al., arXiv 2009.14119), reduced by the mean; its code sums, which needs other rates.

    -[y (1 - p)^gamma_pos log p + (1 - y) p_m^gamma_neg log(1 - p_m)], p_m = max(p - margin, 0): negatives below
    the margin weigh nothing.
    """
    z, y = logits.float(), targets.float()
    missed = torch.exp(gamma_pos * F.logsigmoid(-z))
    positive = missed * -F.logsigmoid(z)
    shifted = (torch.sigmoid(z) - margin).clamp(min=0)
    # Where p_m is 0 the loss is 0; the floor keeps 0^gamma's gradient finite.
    focus = shifted.clamp(min=torch.finfo(torch.float32).tiny) ** gamma_neg
    # log(1 - p) loses its digits near p = 1, so without a margin it is taken from the logit.
    left = F.logsigmoid(-z) if margin == 0 else torch.log1p(-shifted)
    return (y * positive + (1 - y) * focus * -left).mean()


def positive_weights(counts: Tensor, images: int, power: float) -> Tensor:
    """((1 - r_c) / r_c)^power, float32 (C,), r_c the share of `images` that have label c; for positives' terms.

    A label without positives counts as one with a single positive.
    """
    rate = (counts.to(torch.float64).clamp(min=1) / images).clamp(max=1 - 1e-9)
    return (((1 - rate) / rate) ** power).float()


def reweight(counts: Tensor, power: float) -> Tensor:
    """Weights (C,), float32, of labels with `counts` (C,) positives: (n_max / n_c)^power with mean 1; 0 gives ones.

    A label without positives counts as one with a single positive.
    """
    counts = counts.to(torch.float64).clamp(min=1)
    raw = (counts.max() / counts) ** power
    return (raw / raw.mean()).float()


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (losses * weights).mean()

"""Multi-label losses on logits, in float32 whatever autocast does.

Every loss takes logits and 0 / 1 targets of one shape (B, C), optional weights of a shape that broadcasts to it, and
returns the mean of weight * loss over all entries. Released code of some of them sums: B C times as much, which needs
other learning rates.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.losses.softmax import class_balanced_weights

GceForm = Literal["valid", "signfix", "bce"]


def bce(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy (LDRNet Eq 7)."""
    return _mean(F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none"), weights)


def weighted_bce(
    logits: Tensor, targets: Tensor, positive: Tensor, negative: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy with the weights `positive` and `negative` (C,) on its terms.

    -[w+ y log p + w- (1 - y) log(1 - p)].
    """
    z, y = logits.float(), targets.float()
    return _mean(-positive * y * F.logsigmoid(z) - negative * (1 - y) * F.logsigmoid(-z), weights)


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
    return _mean(_focal_entries(z, y, gamma), None if alpha is None else y * alpha + (1 - y) * (1 - alpha))


def class_balanced(logits: Tensor, targets: Tensor, counts: Tensor, beta: float) -> Tensor:
    """Binary cross-entropy whose positives weigh (1 - beta) / (1 - beta^n_c) (Cui et al., arXiv 1901.05555).

    `counts` (C,) are positive images per label; weights have mean 1 over labels. Negatives weigh 1, as the effective
    number is one of positives; beta = 0 is plain binary cross-entropy.
    """
    y = targets.float()
    return bce(logits, y, 1 + y * (class_balanced_weights(counts, beta) - 1))


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    gamma_pos: float,
    gamma_neg: float,
    margin: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss (Ridnik et al., arXiv 2009.14119), reduced by the mean; its code sums, which needs other rates.

    -[y (1 - p)^gamma_pos log p + (1 - y) p_m^gamma_neg log(1 - p_m)], p_m = max(p - margin, 0): negatives below
    the margin weigh nothing.
    """
    z, y = logits.float(), targets.float()
    positive = torch.exp(gamma_pos * F.logsigmoid(-z)) * -F.logsigmoid(z)
    return _mean(y * positive + (1 - y) * _asymmetric_negatives(z, gamma_neg, margin), weights)


def robust_asymmetric(
    logits: Tensor,
    targets: Tensor,
    gamma_pos: float,
    gamma_neg: float,
    margin: float,
    hill: float | None,
    epsilons: tuple[float, float],
    weights: Tensor | None = None,
) -> Tensor:
    """Robust asymmetric loss (Park et al., arXiv 2308.05542, and its released code), by the mean; the code sums.

    With p = sigmoid(logit), p_m = max(p - margin, 0), L = `hill` and `epsilons` (e1, e2) of the polynomial:

    - positives: -(1 - p)^gamma_pos [log p + e1 (1 - p) + e2 / 2 (1 - p)^2]; the release's e2 of -2.5 is halved, too;
    - negatives: -p_m^gamma_neg log(1 - p_m) times Hill's factor (L - p) p^2 (L - 1 + p_m), L >= 1; None leaves it out.

    Without both (e1 = e2 = 0, `hill` None), the asymmetric loss.
    """
    z, y = logits.float(), targets.float()
    missed = torch.sigmoid(-z)
    polynomial = -F.logsigmoid(z) - epsilons[0] * missed - epsilons[1] / 2 * missed**2
    positive = torch.exp(gamma_pos * F.logsigmoid(-z)) * polynomial
    negative = _asymmetric_negatives(z, gamma_neg, margin)
    if hill is not None:
        p = torch.sigmoid(z)
        negative = negative * (hill - p) * p**2 * (hill - 1 + (p - margin).clamp(min=0))
    return _mean(y * positive + (1 - y) * negative, weights)


def distribution_balanced(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor,
    images: int,
    *,
    centre: float,
    scale: float,
    kappa: float,
    gamma: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Distribution-balanced focal loss (Wu et al., arXiv 2007.09654, and its released code), by the mean.

    For data sampled class by class. 2 w_bc (1 - p_t)^gamma (-log p_t) of z + nu_c for positives and L (z + nu_c) for
    negatives, whose weight is also divided by L = `scale` (negative tolerance); w_bc as `rebalancing_weights` gives
    it, nu_c = -kappa / L log(1 / r_c - 1), r_c = n_c / N the share of `images` that have the label.

    Args:
        logits: (B, C).
        targets: (B, C).
        counts: positive images per label (C,).
        images: N.
        centre: mu of the re-balancing weights.
        scale: L >= 1; 1 treats negatives as positives.
        kappa: 0 leaves logits where they are.
        gamma: of the focal loss; 0 leaves it out.
        weights: further weights.
    """
    z, y = logits.float(), targets.float()
    rate = _rates(counts, images)
    bias = (torch.log(rate) - torch.log1p(-rate)).float() * (kappa / scale)
    tolerance = torch.where(y > 0.5, 1.0, scale)
    balance = 2 * rebalancing_weights(y, counts, centre) / tolerance
    return _mean(balance * _focal_entries(tolerance * (z + bias), y, gamma), weights)


def rebalancing_weights(targets: Tensor, counts: Tensor, centre: float) -> Tensor:
    """0.1 + sigmoid(10 (rho_bc - centre)), float32 (B, C), of `distribution_balanced`, which undoes co-occurrence.

    rho_bc = (1 / n_c) / sum_{k in labels of b} (1 / n_k): how often label c would choose the image over how often any
    of the image's labels does. An image without labels, for which that is undefined, has rho = 0.
    """
    inverse = 1 / counts.to(torch.float32).clamp(min=1)
    repeats = (targets.float() * inverse).sum(1, keepdim=True)
    rho = inverse / torch.where(repeats > 0, repeats, torch.inf)
    return 0.1 + torch.sigmoid(10 * (rho - centre))


def positive_weights(counts: Tensor, images: int, power: float) -> Tensor:
    """((1 - r_c) / r_c)^power, float32 (C,), r_c the share of `images` that have label c; for positives' terms.

    A label without positives counts as one with a single positive.
    """
    rate = _rates(counts, images)
    return (((1 - rate) / rate) ** power).float()


def exponential_weights(counts: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """exp(1 - r_c) for positives and exp(r_c) for negatives, float32 (C,), r_c the share of `images` with label c.

    CheXFusion (arXiv 2308.03968).
    """
    rate = counts.to(torch.float64) / images
    return torch.exp(1 - rate).float(), torch.exp(rate).float()


def reweight(counts: Tensor, power: float) -> Tensor:
    """Weights (C,), float32, of labels with `counts` (C,) positives: (n_max / n_c)^power with mean 1; 0 gives ones.

    A label without positives counts as one with a single positive.
    """
    counts = counts.to(torch.float64).clamp(min=1)
    raw = (counts.max() / counts) ** power
    return (raw / raw.mean()).float()


def _rates(counts: Tensor, images: int) -> Tensor:
    """n_c / N, float64 (C,), inside (0, 1)."""
    return (counts.to(torch.float64).clamp(min=1) / images).clamp(max=1 - 1e-9)


def _focal_entries(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    # log(1 - p_t) by the other side's sigmoid: its power keeps a gradient where 1 - p_t rounds to 0.
    signed = z * (2 * y - 1)
    return torch.exp(gamma * F.logsigmoid(-signed)) * -F.logsigmoid(signed)


def _asymmetric_negatives(z: Tensor, gamma: float, margin: float) -> Tensor:
    """-p_m^gamma log(1 - p_m), p_m = max(sigmoid(z) - margin, 0)."""
    shifted = (torch.sigmoid(z) - margin).clamp(min=0)
    # Where p_m is 0 the loss is 0; the floor keeps 0^gamma's gradient finite.
    focus = shifted.clamp(min=torch.finfo(torch.float32).tiny) ** gamma
    # log(1 - p) loses its digits near p = 1, so without a margin it is taken from the logit.
    left = F.logsigmoid(-z) if margin == 0 else torch.log1p(-shifted)
    return focus * -left


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (losses * weights).mean()

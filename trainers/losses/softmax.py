"""Losses for one label per image, on logits, in float32 whatever autocast does.

Every loss takes logits (B, K) and class indices (B,), and returns the mean over images unless it says otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log p_y; with class weights (K,) the weighted mean, sum_i w_y l_i / sum_i w_y.

    `targets` may also be class probabilities (B, K), as MixUp makes them, without weights.
    """
    return F.cross_entropy(logits.float(), targets, weights)


def softmax_gce(logits: Tensor, targets: Tensor, q: float) -> Tensor:
    """Generalised cross-entropy (1 - p_y^q) / q (Zhang & Sabuncu, arXiv 1805.07836), 0 < q <= 1."""
    if not 0 < q <= 1:
        raise ValueError(f"q is {q}; generalised cross-entropy needs 0 < q <= 1")
    log_p = F.log_softmax(logits.float(), 1).gather(1, targets[:, None])
    return (-torch.expm1(q * log_p) / q).mean()


def label_smoothing(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(1 - s) (-log p_y) + s mean_k(-log p_k) (Szegedy et al., arXiv 1512.00567); s = 0 is cross-entropy."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """-(1 - p_y)^gamma log p_y (Lin et al., arXiv 1708.02002, without alpha)."""
    log_p = F.log_softmax(logits.float(), 1).gather(1, targets[:, None])
    # 1 - p as -expm1 keeps its digits, and a gradient, where p rounds to 1.
    missed = -torch.expm1(log_p)
    return -(missed.clamp(min=torch.finfo(torch.float32).tiny) ** gamma * log_p).mean()


def logit_adjusted(logits: Tensor, targets: Tensor, counts: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy on z_k + tau log pi_k (Menon et al., arXiv 2007.07314); tau = 1 is the balanced softmax.

    `counts` are training images per class (K,); a class without any counts as one image.
    """
    return F.cross_entropy(logits.float() + tau * log_prior(counts), targets)


def vector_scaling(logits: Tensor, targets: Tensor, counts: Tensor, gamma: float, tau: float) -> Tensor:
    """Cross-entropy on (n_k / n_max)^gamma z_k + tau log pi_k (VS loss, Kini et al., arXiv 2103.01550).

    `counts` as in `logit_adjusted`, which gamma = 0 is. Predictions take the logits as they are.
    """
    n = counts.to(torch.float64).clamp(min=1)
    return logit_adjusted(logits.float() * ((n / n.max()) ** gamma).float(), targets, counts, tau)


SEESAW_FLOOR = 0.01
"""Least probability of the image's own class in seesaw's compensation; the released code's."""


def seesaw(logits: Tensor, targets: Tensor, counts: Tensor, p: float, q: float) -> Tensor:
    """Cross-entropy with each rival's exp(z_k) times M_k C_k (Wang et al., arXiv 2008.10032); p = q = 0 is plain.

    Mitigation M_k = min(1, n_k / n_y)^p spares classes rarer than the image's own y, compensation
    C_k = max(1, s_k / s_y)^q, with s the softmax and no gradient, punishes those more probable than it. `counts` are
    training images per class (K,), where the paper counts those seen so far.
    """
    z = logits.float()
    log_n = counts.to(torch.float32).clamp(min=1).log()
    log_s = F.log_softmax(z.detach(), 1)
    own = log_s.gather(1, targets[:, None]).clamp(min=math.log(SEESAW_FLOOR))
    mitigation = (log_n - log_n[targets, None]).clamp(max=0)
    # Both are 0 at the image's own class, so that no mask is needed.
    return F.cross_entropy(z + p * mitigation + q * (log_s - own).clamp(min=0), targets)


def log_prior(counts: Tensor) -> Tensor:
    """log(n_k / N), float32 (K,); a class without images counts as one image, which keeps it finite."""
    counts = counts.to(torch.float64).clamp(min=1)
    return (counts / counts.sum()).log().float()


def ldam(cosines: Tensor, targets: Tensor, margins: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """Label-distribution-aware margins (Cao et al., arXiv 1906.07413): cross-entropy on s (cos_k - 1[k = y] m_k).

    `cosines` (B, K) must come from a head with normalised features and class weights: an ordinary head diverges at
    s = 30. With class weights (K,), the weighted mean as in `cross_entropy`.
    """
    own = F.one_hot(targets, cosines.shape[1]).to(torch.float32)
    return F.cross_entropy(scale * (cosines.float() - own * margins), targets, weights)


def ldam_margins(counts: Tensor, largest: float) -> Tensor:
    """m_k = c n_k^(-1/4), float32 (K,), with c such that the rarest class has the margin `largest`."""
    raw = counts.to(torch.float64).clamp(min=1) ** -0.25
    return (raw * (largest / raw.max())).float()


def gaussian_clouded(cosines: Tensor, targets: Tensor, clouds: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Cross-entropy on s (cos_k - clouds_k noise_k) (GCL, Li et al., CVPR 2022): rare classes learn in a cloud.

    `cosines` (B, K) as for `ldam`, `clouds` (K,) from `cloud_sizes`, `noise` (B, K) from `cloud_noise`.
    """
    return F.cross_entropy(scale * (cosines.float() - clouds * noise), targets)


def cloud_sizes(counts: Tensor, largest: float) -> Tensor:
    """(log n_max - log n_k) in units of its maximum, times `largest`, float32 (K,); zeros where classes are equal."""
    log_n = counts.to(torch.float64).clamp(min=1).log()
    gap = log_n.max() - log_n
    return (gap * (largest / gap.max().clamp(min=torch.finfo(torch.float64).tiny))).float()


def cloud_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """min(|e|, 1), e ~ N(0, 1/3^2), float32 on the generator's device: the released code's one-sided noise."""
    return (torch.randn(shape, generator=generator, device=generator.device) / 3).abs().clamp(max=1)


def label_aware_smoothing(logits: Tensor, targets: Tensor, smoothing: Tensor) -> Tensor:
    """(1 - e_y) (-log p_y) + e_y mean_k(-log p_k), e_y the `smoothing` (K,) of the image's class (Zhong et al., MiSLAS,
    arXiv 2104.00466)."""
    losses = -F.log_softmax(logits.float(), 1)
    e = smoothing[targets]
    return ((1 - e) * losses.gather(1, targets[:, None]).squeeze(1) + e * losses.mean(1)).mean()


def smoothing_by_count(counts: Tensor, head: float, tail: float) -> Tensor:
    """e_k = tail + (head - tail) sin(pi (n_k - n_min) / (2 (n_max - n_min))), float32 (K,): frequent classes more."""
    n = counts.to(torch.float64)
    share = (n - n.min()) / (n.max() - n.min()).clamp(min=1)
    return (tail + (head - tail) * torch.sin(share * (torch.pi / 2))).float()


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_k), float32 (K,), normalised to sum K (Cui et al., arXiv 1901.05555)."""
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; effective numbers need 0 <= beta < 1")
    raw = (1 - beta) / (1 - beta ** counts.to(torch.float64).clamp(min=1))
    return (raw * (len(raw) / raw.sum())).float()

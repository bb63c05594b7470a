"""Linear classification head with class re-balancing: cosine, scales, tau-normalisation, nearest mean, offsets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClassHead(nn.Module):
    """Logits z_k = f_k (w_k^T x + b_k) + o_k; initially an ordinary linear layer (f = 1, o = 0).

    With `cosine`, features and class weights are normalised first and b is left out: z_k = f_k cos(w_k, x) + o_k.
    """

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(n_classes, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_classes).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.ones(n_classes))
        self.register_buffer("offset", torch.zeros(n_classes))
        self.offset: Tensor
        self.cosine = False

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (B, K)."""
        inner = self.cosines(features) if self.cosine else F.linear(features, self.weight, self.bias)
        return self.scale * inner + self.offset

    def cosines(self, features: Tensor) -> Tensor:
        """Cosines (B, K) between features and class weights."""
        return F.linear(F.normalize(features), F.normalize(self.weight))


@dataclass(frozen=True)
class LinearHead:
    """Norms and biases of a linear head z_k = w_k^T x + b_k, which its logits do not show."""

    norms: Tensor
    """|w_k|, float32 (C,)."""
    biases: Tensor
    """b_k, float32 (C,)."""

    def tau_normalised(self, logits: Tensor, tau: float) -> Tensor:
        """What the head's logits (..., C) become by `tau_normalise`: (z_k - b_k) / |w_k|^tau."""
        return (logits - self.biases) / _safe(self.norms) ** tau


@torch.no_grad()
def linear_head(head: nn.Module) -> LinearHead | None:
    """The norms and biases of a linear head on CPU; None for a head that is not linear in its features."""
    if isinstance(head, ClassHead) and not head.cosine:
        norms, biases = (head.scale * head.weight.norm(dim=1)).abs(), head.scale * head.bias + head.offset
    elif isinstance(head, nn.Linear):
        norms, biases = head.weight.norm(dim=1), head.weight.new_zeros(len(head.weight))
        if head.bias is not None:
            biases = head.bias
    else:
        return None
    return LinearHead(norms.detach().float().cpu(), biases.detach().float().cpu())


@torch.no_grad()
def tau_normalise(head: ClassHead, tau: float) -> None:
    """w_k <- w_k / |w_k|^tau, b = 0 (Kang et al., arXiv 1910.09217): 0 keeps the weights, 1 makes unit vectors."""
    head.weight.div_(_safe(head.weight.norm(dim=1, keepdim=True)) ** tau)
    head.bias.zero_()


@torch.no_grad()
def to_nearest_mean(head: ClassHead, means: Tensor) -> None:
    """The nearest class mean by cosine (Kang et al.); `means` (K, D)."""
    head.cosine = True
    head.weight.copy_(means)
    head.scale.fill_(1.0)
    head.offset.zero_()


def _safe(norms: Tensor) -> Tensor:
    return norms.clamp(min=torch.finfo(torch.float32).tiny)

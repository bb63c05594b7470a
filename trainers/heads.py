"""One linear head, of which the classifier-side remedies are settings: cosine, scales, tau-norm, NCM, offsets."""

from __future__ import annotations

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


@torch.no_grad()
def tau_normalise(head: ClassHead, tau: float) -> None:
    """w_k <- w_k / |w_k|^tau, b = 0 (Kang et al., arXiv 1910.09217): 0 keeps the weights, 1 makes unit vectors."""
    norms = head.weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    head.weight.div_(norms**tau)
    head.bias.zero_()


@torch.no_grad()
def to_nearest_mean(head: ClassHead, means: Tensor) -> None:
    """The nearest class mean by cosine (Kang et al.); `means` (K, D)."""
    head.cosine = True
    head.weight.copy_(means)
    head.scale.fill_(1.0)
    head.offset.zero_()

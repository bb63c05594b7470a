"""Label decoupling: a transformer over labels and image tokens that gives one feature vector per image and label.

LDRNet section 3.2-3.3 (Huang et al., ACM MM 2024, doi 10.1145/3664647.3680606), Eq 2-6; the group-wise classifier is
Query2Label's (arXiv 2107.10834).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sine_positions(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """2-D sine encoding (H * W, D), D a multiple of 4: half of D for the row, half for the column.

    Normalised to (0, 2 pi] with temperature 10,000, sine and cosine in turn, as DETR and Query2Label have it.
    """
    half = dim // 2
    power = torch.arange(half, device=device, dtype=torch.float32).div(2, rounding_mode="floor") * 2 / half

    def encode(n: int) -> Tensor:
        place = torch.arange(1, n + 1, device=device, dtype=torch.float32) / n * 2 * math.pi
        angle = place[:, None] / 10_000**power
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)

    rows, columns = encode(height), encode(width)
    both = (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1))
    return torch.cat(both, -1).flatten(0, 1)


class EncoderLayer(nn.Module):
    """A post-norm transformer encoder layer: self-attention, then a ReLU feed-forward net, each with dropout.

    Equals `nn.TransformerEncoderLayer`, and can compute a few of its output tokens only.
    """

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn1, self.ffn2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for layer in (self.query, self.key_value):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.query, self.key_value, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, wanted: slice) -> Tensor:
        """Tokens (B, T, D) to the `wanted` ones of the layer's output, (B, T', D)."""
        kept = x[:, wanted]
        q = self._split(self.query(kept))
        k, v = (self._split(part) for part in self.key_value(x).chunk(2, -1))
        p = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        attended = self.out(attended.transpose(1, 2).flatten(2))
        kept = self.norm1(kept + F.dropout(attended, p, self.training))
        hidden = F.dropout(self.ffn1(kept).relu(), p, self.training)
        normed: Tensor = self.norm2(kept + F.dropout(self.ffn2(hidden), p, self.training))
        return normed

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, heads, T, D / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class LabelDecoder(nn.Module):
    """Class-aware features of a feature map: (B, channels, H, W) to (B, C, D).

    `dim` is D, or None for the backbone's channels without a projection. `prompt` are text tokens (M, D') or None.
    """

    tokens: Tensor | None

    def __init__(
        self,
        channels: int,
        n_classes: int,
        *,
        dim: int | None,
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        positions: bool,
        prompt: Tensor | None = None,
    ) -> None:
        super().__init__()
        width = channels if dim is None else dim
        check_width(width, heads, positions=positions)
        self.dim, self.n_classes, self.positions = width, n_classes, positions
        self.n_tokens = 0 if prompt is None else len(prompt)
        self.project = nn.Identity() if dim is None else nn.Conv2d(channels, width, 1)
        # Part of the state, so that an exported model predicts without the file they came from.
        self.register_buffer("tokens", prompt)
        if prompt is not None:
            self.prompt_mlp = nn.Sequential(nn.Linear(prompt.shape[1], width), nn.ReLU(), nn.Linear(width, width))
            self.word_type = nn.Parameter(torch.randn(1, width) * 0.02)
        self.labels = nn.Parameter(torch.randn(n_classes, width))
        self.label_type = nn.Parameter(torch.randn(1, width) * 0.02)
        self.query_positions = nn.Parameter(torch.randn(self.n_tokens + n_classes, width) * 0.02)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, ffn, dropout) for _ in range(layers))

    def queries(self) -> Tensor:
        """Q = [W + P_word ; L + P_label] + P_pos, (M + C, D) (Eq 2)."""
        q = self.labels + self.label_type
        if self.tokens is not None:
            q = torch.cat((self.prompt_mlp(self.tokens) + self.word_type, q))
        return q + self.query_positions

    def forward(self, feature_map: Tensor) -> Tensor:
        """Class-aware features X'[:, M:M+C] (Eq 3-5)."""
        x: Tensor = self.project(feature_map)
        height, width = x.shape[-2:]
        x = x.flatten(2).mT
        if self.positions:
            x = x + sine_positions(height, width, self.dim, x.device).to(x.dtype)
        q = self.queries()
        x = torch.cat((q.to(x.dtype).expand(len(x), -1, -1), x), 1)
        labels = slice(self.n_tokens, self.n_tokens + self.n_classes)
        for i, layer in enumerate(self.encoder):
            # Nothing reads the last layer's other tokens, and they are most of its cost.
            x = layer(x, labels if i == len(self.encoder) - 1 else slice(None))
        return x


class PooledFeatures(nn.Module):
    """No decoupling (ablation): the globally average-pooled map, shared by all classes: (B, C, D), a view."""

    def __init__(self, channels: int, n_classes: int, *, dim: int | None) -> None:
        super().__init__()
        self.dim, self.n_classes = (channels if dim is None else dim), n_classes
        self.project = nn.Identity() if dim is None else nn.Linear(channels, dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, C, D)."""
        pooled: Tensor = self.project(feature_map.mean((2, 3)))
        return pooled[:, None].expand(-1, self.n_classes, -1)


class GroupWiseLinear(nn.Module):
    """One weight vector and bias per class: logit_c = <w_c, x_c> + b_c (Eq 6); initially uniform in +-1 / sqrt(D)."""

    def __init__(self, n_classes: int, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(n_classes, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_classes).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, D) to logits (B, C)."""
        logits: Tensor = (features * self.weight).sum(-1) + self.bias
        return logits


def check_width(dim: int, heads: int, *, positions: bool) -> None:
    """Raises `ValueError` where D does not split into heads, or into the four parts of a 2-D sine encoding."""
    if dim % heads:
        raise ValueError(f"the feature width {dim} is not a multiple of heads = {heads}; change d_model or heads")
    if positions and dim % 4:
        raise ValueError(f"the feature width {dim} is not a multiple of 4, as the 2-D encoding needs; change d_model")

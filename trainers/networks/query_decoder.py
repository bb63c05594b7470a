"""Transformer decoder with the labels as queries and the feature map as memory.

Hong et al., arXiv 2308.08853, after Query2Label (arXiv 2107.10834); sizes and norms are those of KAD (arXiv
2302.14042), the same group's published code, but that its one layer norm for queries, memory and output is three here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.networks.label_decoder import check_width, sine_positions


class LabelQueryDecoder(nn.Module):
    """Class-aware features of a feature map: (B, channels, H, W) to (B, C, D), D = `dim`.

    Queries are an MLP of the label names' text `embeddings` (C, D'), which are not trained, or, without them,
    learned vectors, initially of unit variance (Query2Label). Layers are pre-norm: self-attention among the labels,
    attention to the map, feed-forward net. Initial weights are normal with variance 1 / inputs, so that every width
    begins with signals of the same size; KAD's standard deviation of 0.02 is about half of that at its width of 768,
    and at 64 leaves features nearly blind to the image.
    Raises `ValueError` for a width that does not split, or embeddings of another number of labels.
    """

    embeddings: Tensor | None

    def __init__(
        self,
        channels: int,
        n_classes: int,
        *,
        dim: int,
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        positions: bool,
        embeddings: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_width(dim, heads, positions=positions)
        if embeddings is not None and len(embeddings) != n_classes:
            raise ValueError(f"there are embeddings of {len(embeddings)} labels, but the data has {n_classes}")
        self.dim, self.positions = dim, positions
        self.memory = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dim))
        # Part of the state, so that an exported model predicts without the file they came from.
        self.register_buffer("embeddings", embeddings)
        if embeddings is None:
            self.labels = nn.Parameter(torch.randn(n_classes, dim))
        else:
            self.text = nn.Sequential(nn.Linear(embeddings.shape[1], dim), nn.GELU(), nn.Linear(dim, dim))
        self.query_norm, self.memory_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(dim, heads, ffn, dropout, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self._initialise()

    def queries(self) -> Tensor:
        """One query per label, (C, D)."""
        queries: Tensor = self.labels if self.embeddings is None else self.text(self.embeddings)
        return queries

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, C, D)."""
        height, width = feature_map.shape[-2:]
        tokens = self.memory(feature_map.flatten(2).mT)
        if self.positions:
            tokens = tokens + sine_positions(height, width, self.dim, tokens.device).to(tokens.dtype)
        tokens = self.memory_norm(tokens)
        x = self.query_norm(self.queries()).expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, tokens)
        features: Tensor = self.dropout(self.norm(x))
        return features

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=module.embed_dim**-0.5)


class SharedLinear(nn.Module):
    """One weight vector and bias for all classes: logit_c = <w, x_c> + b; the baseline of separate classifiers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, D) to logits (B, C)."""
        logits: Tensor = self.linear(features).squeeze(-1)
        return logits

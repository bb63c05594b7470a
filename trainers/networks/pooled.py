"""A backbone with global average pooling and a head: the network of single-vector methods."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from trainers.base import Weights
from trainers.image_trainer import Network
from trainers.networks.backbones import build, load_trunk


class PooledNetwork(Network):
    """Features (B, D) are the mean of the backbone's map. Initial weights come from torch's global generator.

    Args:
        backbone: name, see `backbones.build`.
        weights: the backbone's initial weights; None leaves random ones.
        head: builds the head from D.
    """

    def __init__(self, backbone: str, weights: Weights | None, head: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.backbone, self.dim = build(backbone)
        if weights is not None:
            load_trunk(self.backbone, weights, backbone)
        self.head = head(self.dim)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D)."""
        pooled: Tensor = self.backbone(images).mean((2, 3))
        return pooled

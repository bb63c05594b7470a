"""Networks of an encoder and a head: their base class, and a backbone with global average pooling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from trainers.networks.backbones import build, load_trunk
from trainers.types import Weights


class Network(nn.Module, ABC):
    """An encoder and its head. Sub-classes register `head` and define how images become features."""

    head: nn.Module
    dim: int
    """Width D of a feature vector."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (B, D), or (B, C, D) for class-aware methods, of normalised images (B, 3, S, S)."""

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but the head's."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in head)


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

"""Virtual features of one-label data: class-balanced draws from class Gaussians, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainers.features.gaussians import Gaussians

BLOCK = 4096
"""Features drawn at once: each class's factor is read once a block, and no more features than these are held."""


def balanced_virtual_batches(
    gaussians: Gaussians, classes: Tensor, per_class: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (features (B, D) float32, class indices (B,)) until each of `classes` had exactly `per_class` features.

    Classes come in random order; `gaussians` has one pool. The last batch may be smaller. The same distribution as
    drawing all len(classes) * per_class features first and shuffling them, without storing them; only their order is
    stored, 8 bytes a feature.
    """
    total = len(classes) * per_class
    order = torch.randperm(total, generator=generator, device=generator.device)
    batches_per_block = max(1, BLOCK // batch_size)
    for block in torch.split(order, batches_per_block * batch_size):
        targets = classes[block % len(classes)]
        features = gaussians.sample(targets[:, None], generator)[:, 0]
        yield from zip(torch.split(features, batch_size), torch.split(targets, batch_size), strict=True)

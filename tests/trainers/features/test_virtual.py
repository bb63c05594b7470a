from __future__ import annotations

import numpy as np
import torch

from trainers.features import virtual
from trainers.features.gaussians import Gaussians
from trainers.features.virtual import balanced_virtual_batches


def two_gaussians() -> Gaussians:
    mean = torch.tensor([[[0.0, 0.0], [9.0, 9.0], [5.0, -5.0]]], dtype=torch.float64)
    cov = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    return Gaussians.of(mean, cov.expand(1, 3, 2, 2))


def drawn(per_class: int, batch_size: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return list(balanced_virtual_batches(two_gaussians(), torch.tensor([0, 2]), per_class, batch_size, generator))


def test_every_class_asked_for_gets_exactly_its_number_in_batches_of_mixed_classes() -> None:
    batches = drawn(5_003, 100)
    assert [len(targets) for _, targets in batches[:-1]] == [100] * (len(batches) - 1)
    targets = torch.cat([targets for _, targets in batches])
    assert torch.bincount(targets).tolist() == [5_003, 0, 5_003]
    assert all(set(targets.tolist()) == {0, 2} for _, targets in batches[:5])


def test_moments_are_those_of_the_class() -> None:
    batches = drawn(20_000, 352)
    features, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    own = features[targets == 2].numpy()
    np.testing.assert_allclose(own.mean(0), [5, -5], atol=0.05)
    np.testing.assert_allclose(np.cov(own.T), [[2.0, 0.8], [0.8, 1.0]], atol=0.06)


def test_a_batch_larger_than_a_block_is_whole() -> None:
    size = virtual.BLOCK + 10
    assert [len(targets) for _, targets in drawn(size, size)] == [size, size]

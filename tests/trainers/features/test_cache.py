from __future__ import annotations

import numpy as np
import torch

from trainers.features.cache import KEPT_ARRAYS, FeatureCache


def test_keeps_features_by_the_array_itself() -> None:
    cache, images = FeatureCache(), np.zeros((3, 1, 2, 2), np.uint8)
    assert cache.get(images) is None
    cache.put(images, torch.ones(3, 5))
    assert cache.get(images) is not None
    assert cache.get(images.copy()) is None
    cache.clear()
    assert cache.get(images) is None


def test_the_newest_arrays_stay() -> None:
    cache = FeatureCache()
    arrays = [np.full((1, 1, 1, 1), i, np.uint8) for i in range(KEPT_ARRAYS + 1)]
    for images in arrays:
        cache.put(images, torch.zeros(1, 1))
    assert [cache.get(images) is not None for images in arrays] == [False] + [True] * KEPT_ARRAYS


def test_has_room_for_what_is_within_the_limit() -> None:
    images = np.zeros((10, 1, 2, 2), np.uint8)
    assert FeatureCache(limit=10 * 6 * 4).has_room(images, torch.zeros(3, 2, 3))
    assert not FeatureCache(limit=10 * 6 * 4 - 1).has_room(images, torch.zeros(3, 2, 3))

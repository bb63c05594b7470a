"""Cache of the features of image arrays, valid until the encoder changes."""

from __future__ import annotations

from torch import Tensor

from trainers.types import Images

KEPT_BYTES = 2**30
"""Largest feature array of one split that is kept; larger ones are recomputed in every pass.

ChestX-ray14's 87,000 training images have 0.7 GiB of a ResNet-50's features."""

KEPT_ARRAYS = 3
"""Number of image arrays whose features are kept, the latest ones: training, validation and one more."""


class FeatureCache:
    """Features by the image array that they were computed from, compared by identity and not by content.

    Args:
        limit: bytes of one array of features; larger ones are not kept.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        # References to the images keep their ids, which are the keys, from being reused.
        self._kept: dict[int, tuple[Images, Tensor]] = {}

    def get(self, images: Images) -> Tensor | None:
        """The features (N, ..., D) of these images, if they are kept."""
        _, features = self._kept.get(id(images), (None, None))
        return features

    def put(self, images: Images, features: Tensor) -> None:
        """Keeps features, whatever their size, and drops the oldest ones beyond `KEPT_ARRAYS`."""
        self._kept.pop(id(images), None)
        while len(self._kept) >= KEPT_ARRAYS:
            del self._kept[next(iter(self._kept))]
        self._kept[id(images)] = (images, features)

    def has_room(self, images: Images, some: Tensor) -> bool:
        """Whether all features of `images` may be kept, judged by those (B, ..., D) of some of them."""
        return some.numel() // max(1, len(some)) * some.element_size() * len(images) <= self.limit

    def clear(self) -> None:
        """Drops everything, because the encoder has changed."""
        self._kept.clear()

"""Features of whole image arrays, kept as long as the encoder that made them does not change."""

from __future__ import annotations

from torch import Tensor

from trainers.types import Images

KEPT_BYTES = 2**30
"""Largest feature array of one split that is kept; wider or longer ones are computed anew in every pass.

ChestX-ray14's 87,000 training images have 0.7 GiB of a ResNet-50's features."""

KEPT_ARRAYS = 3
"""Image arrays whose features are kept at once, the newest ones: training, validation and one more."""


class FeatureCache:
    """Features by the array of images they were computed from; the array itself is meant, not its content.

    Args:
        limit: bytes of one array of features; larger ones are not kept.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        # The images are held on to, so that no other array can take the place in memory that is their key.
        self._kept: dict[int, tuple[Images, Tensor]] = {}

    def get(self, images: Images) -> Tensor | None:
        """The features (N, ..., D) of these images, if they are kept."""
        _, features = self._kept.get(id(images), (None, None))
        return features

    def put(self, images: Images, features: Tensor) -> None:
        """Keeps features, whatever their size, in place of the oldest ones where there are too many."""
        self._kept.pop(id(images), None)
        while len(self._kept) >= KEPT_ARRAYS:
            del self._kept[next(iter(self._kept))]
        self._kept[id(images)] = (images, features)

    def has_room(self, images: Images, some: Tensor) -> bool:
        """Whether all features of `images` may be kept, judged by those (B, ..., D) of some of them."""
        return some.numel() // max(1, len(some)) * some.element_size() * len(images) <= self.limit

    def clear(self) -> None:
        """Forgets everything: the encoder has changed."""
        self._kept.clear()

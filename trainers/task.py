"""Classification tasks. Apart from `trainers.base`, so that reading tables does not import torch."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """Kind of classification: what the labels of an image are."""

    MULTI_CLASS = "multi-class"
    """Exactly one class per image; labels are class indices of shape (N,)."""
    MULTI_LABEL = "multi-label"
    """Any number of classes per image, also none; labels are 0 / 1 of shape (N, C)."""

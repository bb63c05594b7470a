"""Batches of P classes x S images, for metric losses, which need several images of a class in a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_batches(labels: Tensor, n: int, classes: int, images: int, generator: torch.Generator) -> Tensor:
    """`n` batches of P classes with S images each: image indices, int64 (n, P * S) on CPU, class after class.

    P is `classes`, or the number of classes that have an image where that is less; a batch's classes are all different
    and drawn anew each time. Of a class with at least S = `images` images, a batch gets S different ones: they go
    through the class in random order, and in another one once fewer than S are left. A class with fewer gives S drawn
    with replacement, so that images come twice. `labels` (N,) has one label per image; `generator` is a CPU one.
    """
    labels = labels.cpu()
    present = torch.unique(labels)
    chosen = torch.rand((n, len(present)), generator=generator).argsort(1)[:, :classes]
    picks = torch.empty((*chosen.shape, images), dtype=torch.int64)
    for place, label in enumerate(present.tolist()):
        members = (labels == label).nonzero().squeeze(1)
        mine = chosen == place
        times = int(mine.sum())
        if times:
            picks[mine] = members[_draws(len(members), times, images, generator)]
    return picks.flatten(1)


def _draws(size: int, times: int, images: int, generator: torch.Generator) -> Tensor:
    """Places (times, images) within a class of `size` images."""
    if size < images:
        return torch.randint(size, (times, images), generator=generator)
    blocks = size // images
    orders = [torch.randperm(size, generator=generator)[: blocks * images] for _ in range(math.ceil(times / blocks))]
    return torch.cat(orders).view(-1, images)[:times]

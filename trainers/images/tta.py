"""Test-time augmentation: views of an image, and merging of their logits.

Which views the paper takes (arXiv 2308.08853) could not be read; it merges by the geometric mean. Here one view is the
image itself, two add its mirror image, as CheXFusion has it (arXiv 2308.03968), and more add small zooms and turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.images.augment import Geometry, evaluation_images, lookup, normalise, output_side

Merge = Literal["geometric", "arithmetic", "logit_mean"]


@dataclass(frozen=True)
class View:
    """How an image is looked at; the default is the evaluation image itself."""

    flip: bool = False
    """Mirrored left to right."""
    zoom: float = 1.0
    """Input pixels per output pixel: below 1 a smaller part of the image is seen."""
    degrees: float = 0.0
    """Turned by so much about the centre."""


VIEWS = (
    View(),
    View(flip=True),
    View(zoom=0.9),
    View(degrees=5),
    View(degrees=-5),
    View(flip=True, zoom=0.9),
    View(flip=True, degrees=5),
    View(flip=True, degrees=-5),
)
"""The views in the order they are added: T views are the first T."""


def view_images(images: Tensor, crop: float, view: View) -> Tensor:
    """A view of the centre crop, normalised: uint8 (B, 1 or 3, S, S) to float32 (B, 3, S', S').

    Places outside the image are black, as in training.
    """
    if view.zoom == 1 and view.degrees == 0:
        plain = evaluation_images(images, crop)
        return plain.flip(-1) if view.flip else plain
    count, side = len(images), images.shape[-1]
    out = output_side(side, crop)
    whole = torch.ones(count, device=images.device)
    mirror = torch.stack((whole, whole * (-1 if view.flip else 1)), 1)
    centre = torch.full((count, 2), (side - out) // 2 + (out - 1) / 2, device=images.device)
    geometry = Geometry(centre=centre, mirror=mirror, angle=whole * math.radians(view.degrees), zoom=whole * view.zoom)
    return normalise(lookup(images.float(), out, geometry).div(255))


def merge_views(logits: Tensor, how: Merge) -> Tensor:
    """Merges the logits (T, N, C) of T views to the logits (N, C) of their merged probability, float32.

    With p = sigmoid(logit), the merged probability is

    - `geometric`: exp(mean_t log p_t) (arXiv 2308.08853);
    - `arithmetic`: mean_t p_t;
    - `logit_mean`: sigmoid(mean_t logit_t), the geometric mean of the odds.

    Taken by log-sigmoids in float64, so that no probability rounds to 0 or 1: logits beyond +-17 have float32
    probabilities of 1, or logarithms of -inf.
    """
    z = logits.double()
    if how == "logit_mean":
        return z.mean(0).float()
    if how == "geometric":
        log_p = F.logsigmoid(z).mean(0)
        log_rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(torch.float64).tiny).log()
    else:
        log_p = F.logsigmoid(z).logsumexp(0) - math.log(len(z))
        log_rest = F.logsigmoid(-z).logsumexp(0) - math.log(len(z))
    return (log_p - log_rest).float()


def merge_class_views(logits: Tensor, how: Merge) -> Tensor:
    """As `merge_views` for one label an image, with p = softmax(logits): logits (T, N, C) to log p (N, C), float32.

    The geometric mean and the mean of logits are the same once they are normalised.
    """
    log_p = F.log_softmax(logits.double(), -1)
    merged = log_p.logsumexp(0) if how == "arithmetic" else log_p.mean(0)
    return F.log_softmax(merged, -1).float()

"""Weak and strong views of training images, for consistency between a student and its teacher.

MRC-VFC (Pan et al., MICCAI 2023) names the kinds of transforms, its code their strengths. Here they are batched on
the images' device: one lookup serves flips, shift, zoom, rotation and distortion, and what its code draws from several
similar transforms (three blurs, three distortions) is one of each kind.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.images.augment import Geometry, lookup, normalise

Flips = Literal["none", "horizontal", "both"]

SHIFT, ZOOM, DEGREES = 0.0625, 0.2, 45.0
"""Largest shift (fraction of the side), zoom (1 +- this) and rotation of the strong view."""

DISTORTION, DISTORTION_CELLS = 0.03, 5
"""Standard deviation (fraction of the side) of the displacements at a grid of so many points a side."""

BRIGHTNESS, CONTRAST, CHANNEL_SHIFT = 0.2, 0.2, 15 / 255
"""Largest change of brightness, of contrast, and of each channel by itself, on a scale of 0 to 1."""

HOLE_SHARE, HOLES = 0.5, 10
"""Grid dropout: holes of this share of a cell's side, in a grid of so many cells a side."""

CHANCES = {"affine": 0.5, "distortion": 0.7, "blur": 0.5, "channels": 0.5, "light": 0.5, "holes": 0.2}
"""Probability of each kind of transform in the strong view."""


def weak_view(images: Tensor, flips: Flips, generator: torch.Generator) -> Tensor:
    """Flips only, normalised: uint8 (B, 1 or 3 V, S, S) to float32 (B, 3 V, S, S)."""
    return normalise(_flip(images, flips, _uniform(len(images), 2, generator)).float().div(255))


def strong_view(images: Tensor, flips: Flips, strength: float, generator: torch.Generator) -> Tensor:
    """Flips and the transforms of `CHANCES`, each per image, normalised: as `weak_view`.

    `strength` multiplies the chances (those above 1 count as 1); 0 leaves the flips.
    """
    draws = _uniform(len(images), 20, generator)
    side = images.shape[-1]
    cells = torch.randn((len(images), 2, DISTORTION_CELLS, DISTORTION_CELLS), generator=generator, device=images.device)
    chosen = {
        kind: draws[:, index] < chance * strength for index, (kind, chance) in enumerate(CHANCES.items(), start=2)
    }
    x = _flip(images, flips, draws[:, :2]).float().div(255)
    x = _move(x, chosen["affine"], chosen["distortion"], draws[:, 8:12], cells * DISTORTION * side)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.where(_each(chosen["blur"]), blurred, x)
    of_channel = draws[:, 12:15].repeat(1, max(1, x.shape[1] // 3))
    shifts = (2 * of_channel - 1)[:, : x.shape[1], None, None] * CHANNEL_SHIFT
    x = x + shifts * _each(chosen["channels"])
    light, contrast = _each(2 * draws[:, 15] - 1) * BRIGHTNESS, 1 + _each(2 * draws[:, 16] - 1) * CONTRAST
    x = torch.where(_each(chosen["light"]), x * contrast + light, x).clamp(0, 1)
    return normalise(x * ~(_holes(side, draws[:, 17:19]) & _each(chosen["holes"])))


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.rand((rows, columns), generator=generator, device=generator.device)


def _each(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _flip(images: Tensor, flips: Flips, draws: Tensor) -> Tensor:
    if flips != "none":
        images = torch.where(_each(draws[:, 0] < 0.5), images.flip(-1), images)
    if flips == "both":
        images = torch.where(_each(draws[:, 1] < 0.5), images.flip(-2), images)
    return images


def _move(x: Tensor, affine: Tensor, distorted: Tensor, draws: Tensor, cells: Tensor) -> Tensor:
    """Shift, zoom and rotation where `affine`, smooth displacements where `distorted`; draws (B, 4)."""
    side = x.shape[-1]
    spread = (2 * draws - 1) * affine[:, None]
    field = F.interpolate(cells, size=(side, side), mode="bicubic", align_corners=True)
    geometry = Geometry(
        centre=(side - 1) / 2 + spread[:, :2] * SHIFT * side,
        mirror=torch.ones_like(spread[:, :2]),
        angle=spread[:, 2] * math.radians(DEGREES),
        zoom=1 / (1 + spread[:, 3] * ZOOM),
        displacement=field * _each(distorted),
    )
    return lookup(x, side, geometry)


def _holes(side: int, draws: Tensor) -> Tensor:
    """(B, 1, S, S), true inside the holes of a grid that starts anywhere; draws (B, 2)."""
    cell = max(2, side // HOLES)
    start = (draws * cell).floor()
    place = torch.arange(side, device=draws.device)
    row, column = (((place + start[:, i, None]) % cell) < cell * HOLE_SHARE for i in range(2))
    return (row[:, :, None] & column[:, None, :])[:, None]

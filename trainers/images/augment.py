"""Batched augmentation with parameters per image, on the images' device: warp, colours, normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R 601)."""

ROTATE_DEGREES = 15.0
"""Largest rotation to either side where `rotate` is on (LDRNet specification)."""


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for a training image. Off by default: then training sees the evaluation image."""

    crop: float = 1.0
    """Output side as a fraction of the input side, in (0, 1]."""
    random_crop: bool = False
    """A random place for the crop, by whole pixels, instead of the centre."""
    flip: bool = False
    """A horizontal flip of every second image."""
    rotate: bool = False
    """A rotation uniform in +-`ROTATE_DEGREES`."""
    shift: float = 0.0
    """A further shift in both directions, uniform in +- this fraction of the input side, by whole pixels."""
    scale: float = 0.0
    """A zoom, log-uniform in [1 / (1 + scale), 1 + scale]."""
    brightness: float = 0.0
    """A factor on all values, uniform in 1 +- this."""
    contrast: float = 0.0
    """A factor on the distance from the image's mean grey, uniform in 1 +- this."""
    colour: float = 0.0
    """A factor on the distance from each pixel's grey (saturation), uniform in 1 +- this; no effect on grey images."""

    @property
    def warps(self) -> bool:
        """Whether training images differ from the centre crop by more than colours."""
        return self.random_crop or self.flip or self.rotate or self.shift > 0 or self.scale > 0


def output_side(side: int, crop: float) -> int:
    """Side of the cropped image in pixels, at least 1."""
    return max(1, round(side * crop))


def evaluation_images(images: Tensor, crop: float) -> Tensor:
    """The normalised centre crop: uint8 (B, 1 or 3 V, S, S) to float32 (B, 3 V, S', S'), V views an image."""
    return normalise(centre_crop(images, crop).float().div(255))


def training_images(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Randomly warped and coloured, normalised images: uint8 (B, 1 or 3 V, S, S) to float32 (B, 3 V, S', S').

    Each image has draws of its own, which its V views share. Every draw is made whether it is used or not, so switching
    one augmentation on leaves the others' draws as they are. Places outside the input are black.
    """
    draws = torch.rand((len(images), 9), generator=generator, device=images.device)
    x = _warp(images.float(), how, draws[:, :6]) if how.warps else centre_crop(images, how.crop).float()
    return normalise(_colour(x.div(255), how, draws[:, 6:]))


def centre_crop(images: Tensor, crop: float) -> Tensor:
    """The middle of images (B, channels, S, S), `output_side` pixels a side; a view."""
    side = images.shape[-1]
    out = output_side(side, crop)
    start = (side - out) // 2
    return images[..., start : start + out, start : start + out]


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of each output image come from, in pixels of the input."""

    centre: Tensor
    """(B, 2) row and column of the output's centre."""
    mirror: Tensor
    """(B, 2) of +-1: -1 flips top and bottom, or left and right."""
    angle: Tensor
    """(B,) rotation in radians."""
    zoom: Tensor
    """(B,) input pixels per output pixel."""
    displacement: Tensor | None = None
    """(B, 2, S', S') further rows and columns to move by."""


def lookup(x: Tensor, out: int, geometry: Geometry) -> Tensor:
    """Float images (B, channels, S, S) to (B, channels, `out`, `out`), bilinear; places outside the input are 0.

    Output pixel o comes from R (o - c_out) + c_in, with c_out the centre of the output and c_in that of the crop in
    the input; whole-pixel moves and flips thus meet pixels exactly. One lookup, so that an image is blurred once at
    most.
    """
    side = x.shape[-1]
    cos = (geometry.angle.cos() * geometry.zoom)[:, None, None]
    sin = (geometry.angle.sin() * geometry.zoom)[:, None, None]
    line = torch.arange(out, device=x.device, dtype=torch.float32) - (out - 1) / 2
    v, u = torch.meshgrid(line, line, indexing="ij")
    v = v * geometry.mirror[:, 0, None, None]
    u = u * geometry.mirror[:, 1, None, None]
    column = cos * u - sin * v + geometry.centre[:, 1, None, None]
    row = sin * u + cos * v + geometry.centre[:, 0, None, None]
    if geometry.displacement is not None:
        row, column = row + geometry.displacement[:, 0], column + geometry.displacement[:, 1]
    # grid_sample without aligned corners: pixel i sits at (2 i + 1) / side - 1.
    grid = (torch.stack((column, row), -1) * 2 + 1) / side - 1
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _warp(x: Tensor, how: Augmentation, draws: Tensor) -> Tensor:
    side, out = x.shape[-1], output_side(x.shape[-1], how.crop)
    free = side - out
    top_left = torch.full((len(x), 2), free // 2, device=x.device, dtype=torch.float32)
    if how.random_crop:
        top_left = (draws[:, :2] * (free + 1)).floor()
    if how.shift > 0:
        reach = round(how.shift * side)
        top_left = top_left + (draws[:, 2:4] * (2 * reach + 1)).floor() - reach
    # One draw serves flip and rotation: its first bit decides the flip, the rest is uniform again.
    turn = draws[:, 4] * 2
    flipped, turn = turn >= 1, turn % 1
    left_right = 1 - 2.0 * (flipped & how.flip)
    geometry = Geometry(
        centre=top_left + (out - 1) / 2,
        mirror=torch.stack((torch.ones_like(left_right), left_right), 1),
        angle=(2 * turn - 1) * math.radians(ROTATE_DEGREES) * how.rotate,
        zoom=(1 + how.scale) ** (1 - 2 * draws[:, 5]),
    )
    return lookup(x, out, geometry)


def _colour(x: Tensor, how: Augmentation, draws: Tensor) -> Tensor:
    if not (how.brightness > 0 or how.contrast > 0 or how.colour > 0):
        return x
    spread = torch.tensor((how.brightness, how.contrast, how.colour), device=x.device)
    brightness, contrast, colour = (1 + spread * (2 * draws - 1))[:, :, None, None, None, None].unbind(1)
    x = _views(x * brightness[:, 0]).clamp(0, 1)
    if how.contrast > 0:
        mean = _grey(x).mean((2, 3, 4), keepdim=True)
        x = (mean + (x - mean) * contrast).clamp(0, 1)
    if how.colour > 0 and x.shape[2] == 3:
        grey = _grey(x)
        x = (grey + (x - grey) * colour).clamp(0, 1)
    return x.flatten(1, 2)


def _views(x: Tensor) -> Tensor:
    """(B, 1, S, S) to (B, 1, 1, S, S), and (B, 3 V, S, S) to (B, V, 3, S, S)."""
    channels = min(3, x.shape[1])
    return x.view(len(x), x.shape[1] // channels, channels, *x.shape[2:])


def _grey(x: Tensor) -> Tensor:
    """The grey values (B, V, 1, S, S) of views."""
    if x.shape[2] == 1:
        return x
    return (x * torch.tensor(GREY, device=x.device)[:, None, None]).sum(2, keepdim=True)


def normalise(x: Tensor) -> Tensor:
    """Three channels a view, each with ImageNet's mean and standard deviation taken out."""
    mean = torch.tensor(IMAGENET_MEAN, device=x.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=x.device)[:, None, None]
    return ((_views(x) - mean) / std).flatten(1, 2)

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainers.images.augment import (
    GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    evaluation_images,
    output_side,
    training_images,
)
from trainers.seeding import generator

MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]

EVERYTHING = Augmentation(
    crop=0.875,
    random_crop=True,
    flip=True,
    rotate=True,
    shift=0.1,
    scale=0.3,
    brightness=0.4,
    contrast=0.4,
    colour=0.4,
)


def pictures(n: int = 12, channels: int = 3, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator("cpu", "pictures"))


def values(x: Tensor) -> Tensor:
    """Undoes the normalisation: back to 0 ... 255."""
    return (x * STD + MEAN) * 255


def augmented(images: Tensor, how: Augmentation, seed: int = 0) -> Tensor:
    return values(training_images(images, how, generator("cpu", seed)))


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_on_is_the_normalised_image(channels: int) -> None:
    images = pictures(channels=channels)
    x = training_images(images, Augmentation(), generator("cpu", 0))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, (images.float().expand(-1, 3, -1, -1) / 255 - MEAN) / STD)
    torch.testing.assert_close(x, evaluation_images(images, 1.0))


@pytest.mark.parametrize("how", [Augmentation(crop=0.75), EVERYTHING])
def test_all_views_of_an_image_are_augmented_alike(how: Augmentation) -> None:
    images = pictures(channels=6)
    both = training_images(images, how, generator("cpu", 0))
    each = [training_images(view, how, generator("cpu", 0)) for view in images.split(3, 1)]
    torch.testing.assert_close(both, torch.cat(each, 1))
    torch.testing.assert_close(
        evaluation_images(images, 0.75), torch.cat([evaluation_images(view, 0.75) for view in images.split(3, 1)], 1)
    )


@pytest.mark.parametrize(("side", "crop", "out"), [(16, 0.875, 14), (512, 0.875, 448), (256, 0.875, 224), (3, 0.1, 1)])
def test_evaluation_takes_the_centre(side: int, crop: float, out: int) -> None:
    assert output_side(side, crop) == out
    images = pictures(2, side=side)
    start = (side - out) // 2
    expected = images[..., start : start + out, start : start + out].float()
    torch.testing.assert_close(values(evaluation_images(images, crop)), expected, atol=1e-3, rtol=0)


def test_random_crops_are_exact_and_reach_every_place() -> None:
    images = pictures(200)
    out = augmented(images, Augmentation(crop=0.875, random_crop=True))
    seen = set()
    for image, result in zip(images.float(), out, strict=True):
        places = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if torch.allclose(result, image[:, y : y + 14, x : x + 14], atol=0.02)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 9


def test_flips_are_exact_and_as_frequent_as_not() -> None:
    images = pictures(200)
    out = augmented(images, Augmentation(flip=True))
    same = [torch.allclose(o, i, atol=0.02) for o, i in zip(out, images.float(), strict=True)]
    mirrored = [torch.allclose(o, i.flip(-1), atol=0.02) for o, i in zip(out, images.float(), strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 70 < sum(mirrored) < 130


def test_shifts_are_exact_by_whole_pixels_with_black_borders() -> None:
    images = pictures(100) // 2 + 100
    out = augmented(images, Augmentation(shift=2 / 16))
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2))
    seen = set()
    for i, result in enumerate(out):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.allclose(result, padded[i, :, y : y + 16, x : x + 16], atol=0.02)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 20
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))


def test_rotation_turns_around_the_centre_by_at_most_fifteen_degrees() -> None:
    side = 65
    images = torch.zeros(64, 1, side, side, dtype=torch.uint8)
    images[:, :, 32, 32] = 255
    images[:, :, 31:34, 55:58] = 255  # 24 pixels to the right of the centre
    out = augmented(images, Augmentation(rotate=True))[:, 0]
    torch.testing.assert_close(out[:, 32, 32], torch.full((64,), 255.0), atol=0.05, rtol=0)
    line = torch.arange(side) - 32.0
    weight = out * (line.abs()[None, :] > 8)
    weight[:, 32, 32] = 0
    mass = weight.sum((1, 2))
    u, v = (weight.sum(1) * line).sum(1) / mass, (weight.sum(2) * line).sum(1) / mass
    torch.testing.assert_close((u**2 + v**2).sqrt(), torch.full((64,), 24.0), atol=0.3, rtol=0)
    angle = torch.rad2deg(torch.atan2(v, u))
    assert angle.abs().max() < 15.5
    assert angle.max() > 8
    assert angle.min() < -8


def test_zoom_keeps_the_centre_and_scales_distances() -> None:
    side = 65
    images = torch.zeros(64, 1, side, side, dtype=torch.uint8)
    images[:, :, 31:34, 51:54] = 255
    out = augmented(images, Augmentation(scale=0.25))[:, 0]
    line = torch.arange(side) - 32.0
    distance = (out.sum(1) * line).sum(1) / out.sum((1, 2))
    assert distance.min() > 20 / 1.25 - 0.3
    assert distance.max() < 20 * 1.25 + 0.3
    assert distance.max() - distance.min() > 5


def test_brightness_multiplies_and_clamps() -> None:
    images = torch.full((50, 3, 4, 4), 180, dtype=torch.uint8)
    out = augmented(images, Augmentation(brightness=0.5))
    assert (out.amax((1, 2, 3)) - out.amin((1, 2, 3))).max() < 1e-2
    assert out.max() <= 255.01
    assert out.min() >= 90 - 0.01
    assert 30 < (out[:, 0, 0, 0] < 254).sum() < 50


def test_contrast_keeps_the_mean_grey_and_scales_the_rest() -> None:
    images = pictures(20, channels=1) // 4 + 96
    out = augmented(images, Augmentation(contrast=0.5))[:, :1]
    x = images.float()
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(out.mean((1, 2, 3), keepdim=True), mean, atol=0.01, rtol=0)
    factor = (out - mean).flatten(1).norm(dim=1) / (x - mean).flatten(1).norm(dim=1)
    torch.testing.assert_close(out, mean + (x - mean) * factor[:, None, None, None], atol=0.02, rtol=0)
    assert 0.5 <= factor.min() < factor.max() <= 1.5


def test_colour_keeps_every_pixels_grey_and_leaves_grey_images_alone() -> None:
    images = pictures(20) // 4 + 96
    out = augmented(images, Augmentation(colour=0.5))
    weights = torch.tensor(GREY)[:, None, None]
    torch.testing.assert_close((out * weights).sum(1), (images * weights).sum(1), atol=0.01, rtol=0)
    assert not torch.allclose(out, images.float(), atol=1)
    grey = pictures(4, channels=1)
    torch.testing.assert_close(
        augmented(grey, Augmentation(colour=0.5)), grey.float().expand(-1, 3, -1, -1), atol=1e-3, rtol=0
    )


def test_the_same_generator_gives_the_same_images() -> None:
    images = pictures()
    assert torch.equal(augmented(images, EVERYTHING), augmented(images, EVERYTHING))
    assert not torch.equal(augmented(images, EVERYTHING), augmented(images, EVERYTHING, seed=1))


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    images = pictures()
    one = augmented(images, EVERYTHING)
    others = images.clone()
    others[1:] = 255 - others[1:]
    two = augmented(others, EVERYTHING)
    torch.testing.assert_close(one[0], two[0])
    assert not torch.allclose(one[1], two[1], atol=1)


def test_images_of_a_batch_are_augmented_differently() -> None:
    images = pictures(1).expand(8, -1, -1, -1)
    out = augmented(images, EVERYTHING)
    assert all(not torch.allclose(out[0], other, atol=1) for other in out[1:])


def test_switching_one_augmentation_on_leaves_the_others_draws() -> None:
    images = pictures()
    plain = Augmentation(crop=0.875, random_crop=True)
    cropped = augmented(images, plain)
    # Where the additional flip did not happen, the crop is at the same place.
    flipped = augmented(images, replace(plain, flip=True))
    kept = [torch.allclose(a, b, atol=0.02) for a, b in zip(cropped, flipped, strict=True)]
    assert 0 < sum(kept) < len(kept)

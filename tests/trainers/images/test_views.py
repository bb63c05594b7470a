from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.images import views
from trainers.images.augment import IMAGENET_MEAN, IMAGENET_STD, normalise
from trainers.images.views import strong_view, weak_view


def pictures(n: int = 64, channels: int = 3, side: int = 20) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(30, 220, (n, channels, side, side), dtype=np.uint8))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(images: Tensor) -> Tensor:
    return normalise(images.float() / 255)


def only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "CHANCES", {name: 1.0 if name == kind else 0.0 for name in views.CHANCES})


def test_the_weak_view_is_one_of_the_four_flips() -> None:
    images = pictures()
    weak = weak_view(images, "both", draws())
    seen = set()
    for image, view in zip(images, weak, strict=True):
        flips = [plain(image.flip(dims)[None])[0] for dims in ([], [-1], [-2], [-1, -2])]  # type: ignore[arg-type]
        matches = [index for index, flip in enumerate(flips) if torch.allclose(view, flip)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == {0, 1, 2, 3}


def test_flips_can_be_switched_off() -> None:
    images = pictures()
    torch.testing.assert_close(weak_view(images, "none", draws()), plain(images))
    torch.testing.assert_close(strong_view(images, "none", 0.0, draws()), plain(images))


def test_horizontal_flips_never_turn_an_image_upside_down() -> None:
    images = pictures()
    rows = weak_view(images, "horizontal", draws()).mean((1, 3))
    torch.testing.assert_close(rows, plain(images).mean((1, 3)))


@pytest.mark.parametrize("kind", views.CHANCES)
def test_each_kind_of_transform_changes_images_and_each_image_differently(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(kind, monkeypatch)
    images = pictures(1).expand(8, -1, -1, -1).contiguous()
    found = strong_view(images, "none", 1.0, draws())
    assert (found - plain(images)).abs().amax((1, 2, 3)).min() > 0.01
    if kind != "blur":
        assert len({tuple(view.flatten()[:200].tolist()) for view in found}) > 2


def test_chances_are_those_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "CHANCES", {name: 0.4 if name == "blur" else 0.0 for name in views.CHANCES})
    images = pictures(2000, 1, 6)
    changed = ((strong_view(images, "none", 0.5, draws()) - plain(images)).abs().amax((1, 2, 3)) > 1e-3).float()
    assert changed.mean().item() == pytest.approx(0.2, abs=0.03)


def test_blur_is_the_mean_of_a_neighbourhood(monkeypatch: pytest.MonkeyPatch) -> None:
    only("blur", monkeypatch)
    image = pictures(1, 1)
    found = strong_view(image, "none", 1.0, draws())[0, 0, 5, 7]
    mean = image[0, 0, 4:7, 6:9].float().mean() / 255
    assert found.item() == pytest.approx((mean.item() - IMAGENET_MEAN[0]) / IMAGENET_STD[0], abs=1e-4)


def test_holes_cover_a_quarter_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    only("holes", monkeypatch)
    black = normalise(torch.zeros(1, 1, 1, 1))
    found = strong_view(pictures(50, 1, 40), "none", 1.0, draws())
    assert torch.isclose(found, black).all(1).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_a_shift_moves_by_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    only("affine", monkeypatch)
    monkeypatch.setattr(views, "DEGREES", 0.0)
    monkeypatch.setattr(views, "ZOOM", 0.0)
    dot = torch.zeros(40, 1, 32, 32, dtype=torch.uint8)
    dot[:, :, 16, 16] = 255
    found = strong_view(dot, "none", 1.0, draws())[:, 0]
    weight = found - found.amin((1, 2), keepdim=True)
    rows = (weight.sum(2) * torch.arange(32)).sum(1) / weight.sum((1, 2))
    assert (rows - 16).abs().max() <= 0.0625 * 32 + 1e-3
    assert (rows - 16).abs().max() > 1


@pytest.mark.parametrize("view", [weak_view, partial(strong_view, strength=2.0)])
def test_both_eyes_of_an_image_are_transformed_alike(view: Callable[..., Tensor]) -> None:
    images = pictures(6, 6)
    both = view(images, "both", generator=draws())
    torch.testing.assert_close(both, torch.cat([view(eye, "both", generator=draws()) for eye in images.split(3, 1)], 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_normalised_floats_of_three_channels(channels: int) -> None:
    for view in (
        weak_view(pictures(4, channels), "both", draws()),
        strong_view(pictures(4, channels), "both", 1, draws()),
    ):
        assert view.shape == (4, 3, 20, 20)
        assert view.dtype == torch.float32
        assert view.isfinite().all()

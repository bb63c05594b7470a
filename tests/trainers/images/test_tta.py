from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, softmax
from scipy.stats import gmean

from trainers.images.augment import IMAGENET_MEAN, IMAGENET_STD, centre_crop, evaluation_images
from trainers.images.tta import VIEWS, Merge, View, merge_class_views, merge_views, view_images

SIDE = 20


def pictures(n: int = 3, channels: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, channels, side, side), dtype=np.uint8))


def grey_values(images: torch.Tensor) -> torch.Tensor:
    """Undoes the normalisation: 0 to 255."""
    std, mean = (torch.tensor(values)[:, None, None] for values in (IMAGENET_STD, IMAGENET_MEAN))
    return (images * std + mean) * 255


# --- views


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_the_first_view_is_what_evaluation_sees(crop: float) -> None:
    assert torch.equal(view_images(pictures(), crop, VIEWS[0]), evaluation_images(pictures(), crop))


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_the_second_view_is_the_mirror_image(crop: float) -> None:
    expected = evaluation_images(pictures(), crop).flip(-1)
    assert torch.equal(view_images(pictures(), crop, VIEWS[1]), expected)


def test_two_views_are_the_image_and_its_mirror_image_and_all_views_differ() -> None:
    assert VIEWS[:2] == (View(), View(flip=True))
    assert len(set(VIEWS)) == len(VIEWS) == 8


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("side", "crop"), [(20, 1.0), (21, 0.8), (20, 0.85)])
def test_every_view_has_the_shape_of_the_first(view: View, side: int, crop: float) -> None:
    for channels in (1, 3):
        images = pictures(2, channels, side)
        assert view_images(images, crop, view).shape == evaluation_images(images, crop).shape


@pytest.mark.parametrize(("side", "crop"), [(20, 1.0), (21, 0.8)])
def test_a_mirrored_zoom_is_the_zoom_of_the_mirror_image(side: int, crop: float) -> None:
    images = pictures(side=side)
    assert (side - round(side * crop)) % 2 == 0  # so that the crop is in the middle
    mirrored = view_images(images.flip(-1), crop, View(zoom=0.9))
    torch.testing.assert_close(view_images(images, crop, View(flip=True, zoom=0.9)), mirrored, atol=1e-4, rtol=0)


def test_a_quarter_turn_is_numpys() -> None:
    turned = grey_values(view_images(pictures(), 1.0, View(degrees=90)))
    image = pictures().numpy()
    either = [np.rot90(image, k, (2, 3)) for k in (1, -1)]
    assert min(np.abs(turned.numpy() - expected).max() for expected in either) < 0.05


def test_opposite_turns_see_opposite_sides() -> None:
    images = pictures()
    left, right = (view_images(images, 1.0, View(degrees=degrees)) for degrees in (5, -5))
    mirrored = view_images(images.flip(-1), 1.0, View(degrees=-5)).flip(-1)
    torch.testing.assert_close(left, mirrored, atol=1e-3, rtol=0)
    assert not torch.allclose(left, right, atol=0.1)


def test_a_zoom_below_one_sees_the_middle_larger() -> None:
    side = 41
    ramp = torch.arange(side, dtype=torch.uint8).mul(5)[None, None, None].expand(1, 1, side, side)
    seen = grey_values(view_images(ramp, 1.0, View(zoom=0.5)))[0, 0, side // 2]
    middle = side // 2
    expected = (middle + (torch.arange(side) - middle) * 0.5) * 5
    torch.testing.assert_close(seen, expected, atol=0.05, rtol=0)


def test_a_crop_is_turned_about_its_own_middle() -> None:
    images = pictures(side=24)
    whole = grey_values(view_images(images, 1.0, View(degrees=5)))
    cropped = grey_values(view_images(images, 0.5, View(degrees=5)))
    torch.testing.assert_close(cropped, centre_crop(whole, 0.5), atol=0.05, rtol=0)


# --- merging


LOGITS = torch.tensor(np.random.default_rng(1).normal(0, 2, (5, 4, 3)), dtype=torch.float32)


def test_geometric_mean_is_scipys() -> None:
    expected = gmean(expit(LOGITS.double().numpy()), axis=0)
    np.testing.assert_allclose(expit(merge_views(LOGITS, "geometric").double().numpy()), expected, rtol=1e-6)


def test_arithmetic_mean_is_numpys() -> None:
    expected = expit(LOGITS.double().numpy()).mean(0)
    np.testing.assert_allclose(expit(merge_views(LOGITS, "arithmetic").double().numpy()), expected, rtol=1e-6)


def test_mean_of_logits_is_the_geometric_mean_of_odds() -> None:
    p = expit(LOGITS.double().numpy())
    odds = gmean(p / (1 - p), axis=0)
    np.testing.assert_allclose(expit(merge_views(LOGITS, "logit_mean").double().numpy()), odds / (1 + odds), rtol=1e-6)


@pytest.mark.parametrize("how", ["geometric", "arithmetic", "logit_mean"])
def test_one_view_and_equal_views_stay_what_they_are(how: Merge) -> None:
    one = torch.linspace(-60, 60, 41)[None, :, None]
    torch.testing.assert_close(merge_views(one, how), one[0])
    torch.testing.assert_close(merge_views(one.expand(5, -1, -1), how), one[0])


@pytest.mark.parametrize("how", ["geometric", "arithmetic", "logit_mean"])
@pytest.mark.parametrize("size", [50.0, 200.0, 1e4])
def test_extreme_logits_stay_finite_and_in_order(how: Merge, size: float) -> None:
    # float32 probabilities of these are exactly 0 and 1, and their logarithms -inf.
    merged = merge_views(torch.tensor([[[-size, -size, size]], [[-size, size, size]]]), how)[0]
    assert merged.isfinite().all()
    assert merged[0] < merged[1] <= merged[2]
    assert merged[0] == pytest.approx(-size)


def test_a_view_that_is_sure_of_absence_rules_the_geometric_mean() -> None:
    # mean of log-sigmoids of -80 and 80 is -40: sqrt of exp(-80)
    merged = merge_views(torch.tensor([[[-80.0]], [[80.0]]]), "geometric").item()
    assert log_expit(merged) == pytest.approx(-40)
    assert merge_views(torch.tensor([[[-80.0]], [[80.0]]]), "arithmetic").item() == pytest.approx(0, abs=1e-6)


def test_order_of_views_does_not_matter_and_nan_shows() -> None:
    for how in ("geometric", "arithmetic", "logit_mean"):
        torch.testing.assert_close(merge_views(LOGITS.flip(0), how), merge_views(LOGITS, how))  # type: ignore[arg-type]
        assert merge_views(torch.full((2, 1, 1), torch.nan), how).isnan().all()  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["geometric", "arithmetic", "logit_mean"])
def test_views_of_one_label_an_image_merge_their_softmax_probabilities(how: Merge) -> None:
    logits = np.random.default_rng(0).normal(scale=3, size=(4, 6, 5))
    p = softmax(logits, axis=-1)
    merged = {
        "geometric": gmean(p, axis=0),
        "arithmetic": p.mean(0),
        "logit_mean": softmax(logits.mean(0), axis=-1),
    }[how]
    expected = merged / merged.sum(-1, keepdims=True)
    np.testing.assert_allclose(merge_class_views(torch.from_numpy(logits), how).exp(), expected, rtol=1e-5)

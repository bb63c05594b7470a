from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit
from torch import Tensor

from trainers.losses.sigmoid import (
    asymmetric,
    bce,
    class_balanced,
    distribution_balanced,
    exponential_weights,
    focal_bce,
    gce,
    positive_weights,
    rebalancing_weights,
    reweight,
    robust_asymmetric,
    weighted_bce,
)

Array = npt.NDArray[np.float64]
LOGITS = torch.tensor([[-6.0, -1.0, 0.0, 0.3], [2.0, 7.0, -0.5, 1.5]])
TARGETS = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])


def sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def valid(z: Array, y: Array, q: float) -> Array:
    p = np.clip(sigmoid(z), 1e-6, 1 - 1e-6)
    return np.asarray(y * (1 - p**q) / q + (1 - y) * (1 - (1 - p) ** q) / q)


def signfix(z: Array, y: Array, q: float) -> Array:
    p = np.clip(sigmoid(z), 1e-6, 1 - 1e-6)
    return np.asarray(y * (1 - p**q) ** (1 / q) + (1 - y) * p)


def as_arrays() -> tuple[Array, Array]:
    return LOGITS.double().numpy(), TARGETS.double().numpy()


def gradient(z: Tensor, y: Tensor, q: float, form: str) -> Array:
    z = z.clone().requires_grad_()
    gce(z, y, q, form).backward()  # type: ignore[arg-type, no-untyped-call]
    assert z.grad is not None
    return np.asarray(z.grad.double().numpy() * z.numel())


def test_bce_is_the_mean_negative_log_likelihood() -> None:
    z, y = as_arrays()
    p = sigmoid(z)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert bce(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-6)


def test_weighted_bce_weighs_each_term() -> None:
    z, y = as_arrays()
    y = np.where(y == 1, 0.7, 0.0)  # soft, as of mixtures
    positive, negative = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.1, 1.0, 2.0, 0.7])
    p = sigmoid(z)
    expected = (-positive * y * np.log(p) - negative * (1 - y) * np.log(1 - p)).mean()
    found = weighted_bce(LOGITS, torch.tensor(y), torch.tensor(positive), torch.tensor(negative))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    further = torch.tensor([1.0, 0.0, 0.0, 0.0])
    only = weighted_bce(LOGITS, torch.tensor(y), torch.tensor(positive), torch.tensor(negative), further)
    first = (-positive * y * np.log(p) - negative * (1 - y) * np.log(1 - p))[:, 0].sum() / z.size
    assert only.item() == pytest.approx(first, rel=1e-6)
    ones = torch.ones(4)
    assert weighted_bce(LOGITS, TARGETS, ones, ones).item() == pytest.approx(bce(LOGITS, TARGETS).item(), rel=1e-6)


def test_exponential_weights_favour_positives_of_rare_labels() -> None:
    positive, negative = exponential_weights(torch.tensor([0, 25, 100]), 100)
    np.testing.assert_allclose(positive, np.exp([1.0, 0.75, 0.0]), rtol=1e-6)
    np.testing.assert_allclose(negative, np.exp([0.0, 0.25, 1.0]), rtol=1e-6)


@pytest.mark.parametrize("q", [0.05, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(("form", "reference"), [("valid", valid), ("signfix", signfix)])
def test_gce_is_its_formula(q: float, form: str, reference: object) -> None:
    assert callable(reference)
    assert gce(LOGITS, TARGETS, q, form).item() == pytest.approx(reference(*as_arrays(), q).mean(), rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("q", [0.05, 0.3, 0.8, 1.0])
def test_gradient_of_the_valid_form_is_its_closed_form(q: float) -> None:
    z, y = as_arrays()
    p = sigmoid(z)
    expected = np.where(y == 1, -(p**q) * (1 - p), (1 - p) ** q * p)
    np.testing.assert_allclose(gradient(LOGITS, TARGETS, q, "valid"), expected, rtol=1e-4)


@pytest.mark.parametrize("q", [0.3, 0.8, 1.0])
@pytest.mark.parametrize(("form", "reference"), [("valid", valid), ("signfix", signfix)])
def test_gradients_agree_with_finite_differences(q: float, form: str, reference: object) -> None:
    assert callable(reference)
    z, y = as_arrays()
    h = 1e-5
    expected = (reference(z + h, y, q) - reference(z - h, y, q)) / (2 * h)
    np.testing.assert_allclose(gradient(LOGITS, TARGETS, q, form), expected, rtol=1e-3, atol=1e-6)


def test_a_badly_missed_positive_counts_for_little() -> None:
    missed = torch.log(torch.tensor([[0.01 / 0.99]]))
    one = torch.ones(1, 1)
    assert gradient(missed, one, 0.8, "valid").item() == pytest.approx(-0.025, abs=5e-4)
    assert gradient(missed, one, 0.8, "bce").item() == pytest.approx(-0.99, abs=1e-6)


def test_q_towards_zero_is_bce_and_q_one_is_the_absolute_error() -> None:
    assert gce(LOGITS, TARGETS, 1e-6).item() == pytest.approx(bce(LOGITS, TARGETS).item(), rel=1e-4)
    error = (torch.sigmoid(LOGITS) - TARGETS).abs().mean()
    assert gce(LOGITS, TARGETS, 1.0).item() == pytest.approx(error.item(), rel=1e-6)
    assert gce(LOGITS, TARGETS, 1.0, "signfix").item() == pytest.approx(error.item(), rel=1e-6)


@pytest.mark.parametrize("form", ["valid", "signfix", "bce"])
@pytest.mark.parametrize("q", [0.05, 0.8, 1.0])
def test_extreme_logits_have_finite_losses_and_gradients(form: str, q: float) -> None:
    z = torch.tensor([[-1e4, -50.0, 50.0, 1e4]]).repeat(2, 1)
    y = torch.tensor([[1.0], [0.0]]).expand(2, 4)
    assert np.isfinite(gce(z, y, q, form).item())  # type: ignore[arg-type]
    assert np.isfinite(gradient(z, y, q, form)).all()


@pytest.mark.parametrize("form", ["valid", "signfix", "bce"])
def test_nan_logits_give_nan(form: str) -> None:
    assert gce(torch.tensor([[torch.nan, 0.0]]), torch.tensor([[1.0, 0.0]]), 0.8, form).isnan()  # type: ignore[arg-type]


def test_low_precision_logits_are_computed_in_float32() -> None:
    loss = gce(LOGITS.bfloat16(), TARGETS, 0.8)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(gce(LOGITS.bfloat16().float(), TARGETS, 0.8).item(), rel=1e-6)


@pytest.mark.parametrize("form", ["valid", "signfix", "bce"])
def test_weights_scale_entries_before_the_mean(form: str) -> None:
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0])
    entries = torch.stack([gce(LOGITS[:, i], TARGETS[:, i], 0.8, form) for i in range(4)])  # type: ignore[arg-type]
    weighted = gce(LOGITS, TARGETS, 0.8, form, weights)  # type: ignore[arg-type]
    assert weighted.item() == pytest.approx((entries * weights).mean().item(), rel=1e-6)


@pytest.mark.parametrize("q", [0.0, -0.5, 1.5, float("nan")])
def test_q_out_of_range_is_refused_with_its_value(q: float) -> None:
    with pytest.raises(ValueError, match=f"q is {q}"):
        gce(LOGITS, TARGETS, q)


def test_reweighting_follows_the_power_and_has_mean_one() -> None:
    counts = torch.tensor([1000.0, 100, 10])
    raw = np.array([1.0, 10**0.5, 10])
    np.testing.assert_allclose(reweight(counts, 0.5), raw / raw.mean(), rtol=1e-6)
    assert reweight(counts, 0.0).tolist() == [1, 1, 1]
    assert torch.isfinite(reweight(torch.tensor([5.0, 0.0]), 2.0)).all()


RNG = np.random.default_rng(7)
Z, Y = RNG.normal(0, 2, (5, 3)), (RNG.random((5, 3)) < 0.4).astype(float)
COUNTS, IMAGES = np.array([700.0, 90.0, 4.0]), 1000


def numpy_asymmetric(z: npt.NDArray[np.float64], gamma_pos: float, gamma_neg: float, margin: float) -> float:
    p = expit(z)
    pm = np.maximum(p - margin, 0)
    positive = (1 - p) ** gamma_pos * np.log(p)
    negative = np.where(pm > 0, pm, 1e-30) ** gamma_neg * np.log(1 - pm)
    return float(-np.mean(Y * positive + (1 - Y) * negative))


def numpy_focal(z: npt.NDArray[np.float64], gamma: float, alpha: float | None) -> float:
    p = np.where(Y > 0, expit(z), expit(-z))
    weight = 1.0 if alpha is None else np.where(Y > 0, alpha, 1 - alpha)
    return float(np.mean(-weight * (1 - p) ** gamma * np.log(p)))


def numpy_class_balanced(z: Array, beta: float) -> float:
    weight = (1 - beta) / (1 - beta**COUNTS)
    weight *= 3 / weight.sum()
    return float(-np.mean(weight * Y * np.log(expit(z)) + (1 - Y) * np.log(expit(-z))))


def numpy_robust_asymmetric(
    z: Array, gamma_pos: float, gamma_neg: float, margin: float, hill: float, e1: float, e2: float
) -> float:
    """Entry by entry, in the terms of the released code, whose sum is divided by the number of entries."""
    total = 0.0
    for place in np.ndindex(*z.shape):
        p = 1 / (1 + np.exp(-z[place]))
        if Y[place] == 1:
            total -= (np.log(p) + e1 * (1 - p) + e2 * 0.5 * (1 - p) ** 2) * (1 - p) ** gamma_pos
        else:
            u = min(1 - p + margin, 1)
            total -= np.log(u) * (hill - p) * p**2 * (hill - u) * (1 - u) ** gamma_neg
    return total / z.size


def numpy_rebalancing(labels: Array, centre: float) -> Array:
    """Image by image."""
    weights = np.empty_like(labels)
    for image, row in enumerate(labels):
        repeats = sum(1 / n for n, y in zip(COUNTS, row, strict=True) if y)
        rho = 1 / COUNTS / repeats if repeats else np.zeros(3)
        weights[image] = 0.1 + 1 / (1 + np.exp(-10 * (rho - centre)))
    return weights


def numpy_distribution_balanced(z: Array, centre: float, scale: float, kappa: float, gamma: float) -> float:
    moved = z - np.log(IMAGES / COUNTS - 1) * kappa / scale
    p_t = np.where(Y == 1, expit(moved), expit(-scale * moved))
    weight = numpy_rebalancing(Y, centre) * np.where(Y == 1, 1, 1 / scale)
    return float(np.mean(-2 * weight * (1 - p_t) ** gamma * np.log(p_t)))


def robust(z: Tensor, y: Tensor) -> Tensor:
    return robust_asymmetric(z, y, 0.0, 4.0, 0.05, 1.5, (1.0, -2.5))


def balanced(z: Tensor, y: Tensor) -> Tensor:
    return distribution_balanced(z, y, torch.tensor(COUNTS), IMAGES, centre=0.2, scale=2.0, kappa=0.05, gamma=2.0)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (lambda z, y: class_balanced(z, y, torch.tensor(COUNTS), 0.99), lambda z: numpy_class_balanced(z, 0.99)),
        (robust, lambda z: numpy_robust_asymmetric(z, 0.0, 4.0, 0.05, 1.5, 1.0, -2.5)),
        (
            lambda z, y: robust_asymmetric(z, y, 0.7, 1.5, 0.2, 1.2, (0.5, -4.0)),
            lambda z: numpy_robust_asymmetric(z, 0.7, 1.5, 0.2, 1.2, 0.5, -4.0),
        ),
        (balanced, lambda z: numpy_distribution_balanced(z, 0.2, 2.0, 0.05, 2.0)),
        (
            lambda z, y: distribution_balanced(
                z, y, torch.tensor(COUNTS), IMAGES, centre=0.3, scale=5.0, kappa=0.2, gamma=1.0
            ),
            lambda z: numpy_distribution_balanced(z, 0.3, 5.0, 0.2, 1.0),
        ),
        (lambda z, y: asymmetric(z, y, 1.0, 4.0, 0.05), lambda z: numpy_asymmetric(z, 1.0, 4.0, 0.05)),
        (lambda z, y: asymmetric(z, y, 0.0, 2.0, 0.0), lambda z: numpy_asymmetric(z, 0.0, 2.0, 0.0)),
        (lambda z, y: focal_bce(z, y, 2.0), lambda z: numpy_focal(z, 2.0, None)),
        (lambda z, y: focal_bce(z, y, 1.5, 0.25), lambda z: numpy_focal(z, 1.5, 0.25)),
    ],
)
def test_long_tail_losses_are_those_of_their_equations_with_their_gradients(
    loss: Callable[[Tensor, Tensor], Tensor], reference: Callable[[npt.NDArray[np.float64]], float]
) -> None:
    z = torch.tensor(Z, dtype=torch.float32, requires_grad=True)
    value = loss(z, torch.tensor(Y))
    assert value.item() == pytest.approx(reference(Z), rel=1e-4)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    for place in np.ndindex(*Z.shape):
        step = np.zeros_like(Z)
        step[place] = 1e-5
        slope = (reference(Z + step) - reference(Z - step)) / 2e-5
        assert z.grad[place].item() == pytest.approx(slope, rel=1e-2, abs=1e-5)


def test_asymmetric_loss_without_focus_and_margin_is_bce_by_the_mean() -> None:
    z, y = torch.tensor(Z).float(), torch.tensor(Y).float()
    torch.testing.assert_close(asymmetric(z, y, 0.0, 0.0, 0.0), bce(z, y))
    torch.testing.assert_close(asymmetric(z.repeat(9, 1), y.repeat(9, 1), 1.0, 4.0, 0.05), asymmetric(z, y, 1, 4, 0.05))


def test_robust_asymmetric_loss_without_its_polynomial_and_hill_factor_is_the_asymmetric_one() -> None:
    z, y = torch.tensor(Z).float(), torch.tensor(Y).float()
    found = robust_asymmetric(z, y, 1.0, 4.0, 0.05, None, (0.0, 0.0))
    torch.testing.assert_close(found, asymmetric(z, y, 1.0, 4.0, 0.05))


@pytest.mark.parametrize("loss", [robust, balanced])
def test_losses_that_are_released_as_sums_do_not_grow_with_the_batch(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    z, y = torch.tensor(Z).float(), torch.tensor(Y).float()
    torch.testing.assert_close(loss(z.repeat(9, 1), y.repeat(9, 1)), loss(z, y))


def test_class_balanced_loss_without_overlap_is_bce_and_negatives_weigh_one() -> None:
    z, y, counts = torch.tensor(Z).float(), torch.tensor(Y).float(), torch.tensor(COUNTS)
    torch.testing.assert_close(class_balanced(z, y, counts, 0.0), bce(z, y))
    torch.testing.assert_close(class_balanced(z, 0 * y, counts, 0.999), bce(z, 0 * y))


def test_distribution_balanced_loss_without_tolerance_shift_and_focus_is_weighted_bce() -> None:
    z, y, counts = torch.tensor(Z).float(), torch.tensor(Y).float(), torch.tensor(COUNTS)
    found = distribution_balanced(z, y, counts, IMAGES, centre=0.2, scale=1.0, kappa=0.0, gamma=0.0)
    torch.testing.assert_close(found, 2 * bce(z, y, rebalancing_weights(y, counts, 0.2)))


def test_rebalancing_weights_are_defined_for_images_without_labels_and_labels_without_images() -> None:
    labels = np.array([[0.0, 0, 0], [1, 0, 1], [1, 1, 1]])
    found = rebalancing_weights(torch.tensor(labels), torch.tensor(COUNTS), 0.3).numpy()
    np.testing.assert_allclose(found, numpy_rebalancing(labels, 0.3), rtol=1e-5)
    assert rebalancing_weights(torch.tensor(labels), torch.tensor([5, 3, 0]), 0.3).isfinite().all()


@pytest.mark.parametrize("loss", [
    lambda z, y, w: asymmetric(z, y, 1.0, 4.0, 0.05, w),
    lambda z, y, w: robust_asymmetric(z, y, 0.0, 4.0, 0.05, 1.5, (1.0, -2.5), w),
    lambda z, y, w: distribution_balanced(
        z, y, torch.tensor(COUNTS), IMAGES, centre=0.2, scale=2.0, kappa=0.05, gamma=2.0, weights=w
    ),
])  # fmt: skip
def test_weights_of_long_tail_losses_scale_labels_before_the_mean(loss: Callable[..., Tensor]) -> None:
    z, y, weights = torch.tensor(Z).float(), torch.tensor(Y).float(), torch.tensor([0.5, 3.0, 2.0])
    single = torch.stack([loss(z, y, row) for row in torch.eye(3)])
    torch.testing.assert_close(loss(z, y, weights), (weights * single).sum())
    torch.testing.assert_close(loss(z, y, None), single.sum())


def test_long_tail_losses_stay_finite_for_extreme_logits() -> None:
    plain = (lambda z, y: asymmetric(z, y, 1, 4, 0.05), lambda z, y: asymmetric(z, y, 0, 2, 0), focal_two)
    for loss in (*plain, robust, balanced):
        for target in (0.0, 1.0):
            z = torch.tensor([[90.0, -90.0, 0.0]], requires_grad=True)
            value = loss(z, torch.full((1, 3), target))
            value.backward()
            assert value.isfinite()
            assert z.grad is not None and z.grad.isfinite().all()


def focal_two(z: Tensor, y: Tensor) -> Tensor:
    return focal_bce(z, y, 2.0)


def test_positive_weights_are_a_power_of_the_odds_against() -> None:
    counts = torch.tensor([50, 10, 1, 0])
    expected = (np.array([50, 90, 99, 99]) / np.array([50, 10, 1, 1])) ** 0.5
    np.testing.assert_allclose(positive_weights(counts, 100, 0.5).numpy(), expected, rtol=1e-6)
    assert (positive_weights(counts, 100, 0.0) == 1).all()

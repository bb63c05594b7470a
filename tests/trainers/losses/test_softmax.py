"""Each loss against NumPy written from its equation, and its gradient against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from torch import Tensor

from trainers.losses.softmax import (
    class_balanced_weights,
    cloud_noise,
    cloud_sizes,
    cross_entropy,
    focal,
    gaussian_clouded,
    label_aware_smoothing,
    label_smoothing,
    ldam,
    ldam_margins,
    log_prior,
    logit_adjusted,
    seesaw,
    smoothing_by_count,
    softmax_gce,
    vector_scaling,
)

COUNTS = torch.tensor([500, 60, 20, 3])
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (6, 4))
Y = np.array([0, 1, 2, 3, 1, 0])
ROWS = np.arange(6)
WEIGHTS = np.array([0.2, 1.0, 1.3, 1.5])
NOISE = RNG.random((6, 4))

Array = npt.NDArray[np.float64]


def numpy_gce(z: Array, q: float) -> float:
    return float(np.mean((1 - softmax(z, 1)[ROWS, Y] ** q) / q))


def numpy_focal(z: Array, gamma: float) -> float:
    p = softmax(z, 1)[ROWS, Y]
    return float(np.mean(-((1 - p) ** gamma) * np.log(p)))


def numpy_adjusted(z: Array, tau: float) -> float:
    prior = COUNTS.numpy() / COUNTS.sum().item()
    return float(-np.mean(log_softmax(z + tau * np.log(prior), 1)[ROWS, Y]))


def numpy_ldam(z: Array, s: float) -> float:
    raw = COUNTS.numpy() ** -0.25
    z = z.copy()
    z[ROWS, Y] -= (raw * 0.5 / raw.max())[Y]
    return float(-np.mean(log_softmax(s * z, 1)[ROWS, Y]))


def numpy_smoothed(z: Array) -> float:
    n = COUNTS.numpy().astype(float)
    e = 0.05 + (0.4 - 0.05) * np.sin(np.pi * (n - n.min()) / (2 * (n.max() - n.min())))
    losses = -log_softmax(z, 1)
    return float(np.mean((1 - e[Y]) * losses[ROWS, Y] + e[Y] * losses.mean(1)))


def numpy_weighted(z: Array) -> float:
    return float(np.sum(WEIGHTS[Y] * -log_softmax(z, 1)[ROWS, Y]) / WEIGHTS[Y].sum())


def numpy_label_smoothing(z: Array, s: float) -> float:
    losses = -log_softmax(z, 1)
    return float(np.mean((1 - s) * losses[ROWS, Y] + s * losses.mean(1)))


def numpy_vector_scaling(z: Array, gamma: float, tau: float) -> float:
    n = COUNTS.numpy().astype(float)
    delta = (1 / n) ** gamma / ((1 / n) ** gamma).min()
    return float(-np.mean(log_softmax(z / delta + tau * np.log(n / n.sum()), 1)[ROWS, Y]))


def numpy_seesaw(z: Array, p: float, q: float, at: Array = LOGITS) -> float:
    """Image by image, with its factors S_k in the denominator; those of the compensation are of the logits `at`."""
    n, losses = COUNTS.numpy().astype(float), []
    for row, s, y in zip(z, softmax(at, 1), Y, strict=True):
        denominator = np.exp(row[y])
        for k in range(4):
            if k != y:
                mitigation = (n[k] / n[y]) ** p if n[k] < n[y] else 1.0
                ratio = s[k] / max(s[y], 0.01)
                denominator += mitigation * (ratio**q if ratio > 1 else 1.0) * np.exp(row[k])
        losses.append(-np.log(np.exp(row[y]) / denominator))
    return float(np.mean(losses))


def numpy_clouded(z: Array, s: float) -> float:
    log_n = np.log(COUNTS.numpy())
    clouds = 0.5 * (log_n.max() - log_n) / (log_n.max() - log_n).max()
    return float(-np.mean(log_softmax(s * (z - clouds * NOISE), 1)[ROWS, Y]))


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Array], float]]] = {
    "ce": (cross_entropy, lambda z: log_loss(Y, softmax(z, 1), labels=range(4))),
    "ce weighted": (lambda z, y: cross_entropy(z, y, torch.tensor(WEIGHTS).float()), numpy_weighted),
    "gce 0.8": (lambda z, y: softmax_gce(z, y, 0.8), lambda z: numpy_gce(z, 0.8)),
    "gce 1": (lambda z, y: softmax_gce(z, y, 1.0), lambda z: float(np.mean(1 - softmax(z, 1)[ROWS, Y]))),
    "focal 2": (lambda z, y: focal(z, y, 2.0), lambda z: numpy_focal(z, 2.0)),
    "focal 0 is ce": (lambda z, y: focal(z, y, 0.0), lambda z: log_loss(Y, softmax(z, 1), labels=range(4))),
    "adjusted": (lambda z, y: logit_adjusted(z, y, COUNTS, 1.0), lambda z: numpy_adjusted(z, 1.0)),
    "adjusted 0.5": (lambda z, y: logit_adjusted(z, y, COUNTS, 0.5), lambda z: numpy_adjusted(z, 0.5)),
    "smoothed": (lambda z, y: label_aware_smoothing(z, y, smoothing_by_count(COUNTS, 0.4, 0.05)), numpy_smoothed),
    "label smoothing": (lambda z, y: label_smoothing(z, y, 0.1), lambda z: numpy_label_smoothing(z, 0.1)),
    "label smoothing 0 is ce": (lambda z, y: label_smoothing(z, y, 0.0), lambda z: numpy_adjusted(z, 0.0)),
    "vs": (lambda z, y: vector_scaling(z, y, COUNTS, 0.3, 1.2), lambda z: numpy_vector_scaling(z, 0.3, 1.2)),
    "vs 0 is adjusted": (lambda z, y: vector_scaling(z, y, COUNTS, 0.0, 0.7), lambda z: numpy_adjusted(z, 0.7)),
    "seesaw": (lambda z, y: seesaw(z, y, COUNTS, 0.8, 2.0), lambda z: numpy_seesaw(z, 0.8, 2.0)),
    "seesaw 0 is ce": (lambda z, y: seesaw(z, y, COUNTS, 0.0, 0.0), lambda z: numpy_adjusted(z, 0.0)),
    "gcl": (
        lambda z, y: gaussian_clouded(z, y, cloud_sizes(COUNTS, 0.5), torch.tensor(NOISE[: len(z)]).float(), 3.0),
        lambda z: numpy_clouded(z, 3.0),
    ),
    "gcl without clouds is ce": (
        lambda z, y: gaussian_clouded(z, y, cloud_sizes(COUNTS, 0.0), torch.ones(z.shape), 1.0),
        lambda z: numpy_adjusted(z, 0.0),
    ),
    "ldam": (lambda z, y: ldam(z, y, ldam_margins(COUNTS, 0.5), 3.0), lambda z: numpy_ldam(z, 3.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_equation(name: str) -> None:
    loss, reference = CASES[name]
    z = torch.tensor(LOGITS, dtype=torch.float32, requires_grad=True)
    value = loss(z, torch.tensor(Y))
    assert value.item() == pytest.approx(reference(LOGITS), rel=1e-5)
    value.backward()  # type: ignore[no-untyped-call]
    step = 1e-5
    numeric = np.zeros_like(LOGITS)
    for place in np.ndindex(*LOGITS.shape):
        moved = LOGITS.copy()
        moved[place] += step
        up = reference(moved)
        moved[place] -= 2 * step
        numeric[place] = (up - reference(moved)) / (2 * step)
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), numeric, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_extreme_logits_stay_finite(name: str) -> None:
    loss, _ = CASES[name]
    z = torch.tensor([[80.0, -80.0, 0.0, 1.0], [-80.0, 80.0, 3.0, 0.0]], requires_grad=True)
    value = loss(z, torch.tensor([0, 0]))
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert value.isfinite() and z.grad.isfinite().all()


def test_balanced_softmax_is_logit_adjustment_by_log_counts() -> None:
    z = torch.tensor(LOGITS).float()
    balanced = torch.nn.functional.cross_entropy(z + COUNTS.float().log(), torch.tensor(Y))
    torch.testing.assert_close(logit_adjusted(z, torch.tensor(Y), COUNTS, 1.0), balanced)


def test_class_balanced_weights_follow_the_effective_number_and_sum_to_the_classes() -> None:
    beta = 0.99
    effective = (1 - beta ** COUNTS.numpy().astype(float)) / (1 - beta)
    expected = 1 / effective / (1 / effective).sum() * 4
    np.testing.assert_allclose(class_balanced_weights(COUNTS, beta).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(class_balanced_weights(COUNTS, 0.0).numpy(), np.ones(4))


def test_margins_fall_with_the_fourth_root_and_the_rarest_class_has_the_largest() -> None:
    margins = ldam_margins(COUNTS, 0.5).numpy()
    assert margins.max() == margins[3] == pytest.approx(0.5)
    assert margins[0] / margins[3] == pytest.approx((3 / 500) ** 0.25)


def test_seesaw_compensates_a_hopeless_image_only_to_its_floor() -> None:
    z = torch.tensor([[9.0, -9.0]])
    found = seesaw(z, torch.tensor([1]), torch.tensor([5, 5]), 0.8, 2.0).item()
    assert found == pytest.approx(18 + 2 * np.log(1 / 0.01), abs=1e-4)


def test_clouds_grow_with_the_log_of_rarity_and_vanish_where_classes_are_equal() -> None:
    log_n = np.log(COUNTS.numpy())
    np.testing.assert_allclose(cloud_sizes(COUNTS, 0.4), 0.4 * (log_n[0] - log_n) / (log_n[0] - log_n[3]), rtol=1e-6)
    assert cloud_sizes(torch.tensor([7, 7]), 0.4).tolist() == [0, 0]


def test_cloud_noise_is_a_clamped_half_normal_of_a_third() -> None:
    found = cloud_noise((200, 500), torch.Generator().manual_seed(0)).numpy()
    assert 0 <= found.min() < 1e-4
    assert found.max() == 1
    half_normal = stats.halfnorm(scale=1 / 3)
    for quantile in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(found, quantile) == pytest.approx(half_normal.ppf(quantile), rel=0.03)


def test_a_class_without_images_leaves_priors_weights_and_margins_finite() -> None:
    counts, z, y = torch.tensor([5, 0]), torch.zeros(2, 2), torch.tensor([0, 1])
    for found in (log_prior(counts), class_balanced_weights(counts, 0.999), ldam_margins(counts, 0.5)):
        assert found.isfinite().all()
    for found in (cloud_sizes(counts, 0.5), seesaw(z, y, counts, 0.8, 2.0), vector_scaling(z, y, counts, 0.3, 1.0)):
        assert found.isfinite().all()


@pytest.mark.parametrize("call", [lambda: softmax_gce(torch.zeros(1, 2), torch.tensor([0]), 0.0),
                                  lambda: class_balanced_weights(COUNTS, 1.0)])  # fmt: skip
def test_values_outside_their_range_are_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match="need"):
        call()


def test_smoothing_rises_with_the_class_from_tail_to_head_and_is_flat_where_classes_are_equal() -> None:
    found = smoothing_by_count(COUNTS, 0.4, 0.1)
    assert found[0].item() == pytest.approx(0.4)
    assert found[3].item() == pytest.approx(0.1)
    assert (found[:-1] >= found[1:]).all()
    assert smoothing_by_count(torch.tensor([7, 7]), 0.4, 0.1).isfinite().all()

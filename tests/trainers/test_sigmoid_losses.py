from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from trainers.sigmoid_losses import bce, gce, reweight

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

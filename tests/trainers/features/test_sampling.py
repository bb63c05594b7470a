from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.features.sampling import class_balanced_order, reverse_probabilities, same_number_each

# Training counts of NIH ChestX-ray14, LDRNet Table 2.
NIH = {
    "Atelectasis": 7996, "Cardiomegaly": 1950, "Effusion": 9261, "Infiltration": 13914, "Mass": 3988,
    "Nodule": 4375, "Pneumonia": 978, "Pneumothorax": 3705, "Consolidation": 3263, "Edema": 1690,
    "Emphysema": 1799, "Fibrosis": 1158, "Pleural Thickening": 2279, "Hernia": 144,
}  # fmt: skip


@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0, 1.2])
def test_probabilities_are_equation_12(alpha: float) -> None:
    counts = np.array([500.0, 40, 7, 1])
    inverse = (1 / (counts + 1e-9)) ** alpha
    np.testing.assert_allclose(reverse_probabilities(torch.tensor(counts), alpha), inverse / inverse.sum(), rtol=1e-12)


def test_probabilities_of_nih_are_the_known_ones() -> None:
    p = dict(zip(NIH, reverse_probabilities(torch.tensor(list(NIH.values())), 0.9).tolist(), strict=True))
    known = {"Hernia": 0.500, "Pneumonia": 0.089, "Fibrosis": 0.077, "Atelectasis": 0.014, "Effusion": 0.012,
             "Infiltration": 0.008}  # fmt: skip
    for name, value in known.items():
        assert p[name] == pytest.approx(value, abs=6e-4), name
    assert sum(p.values()) == pytest.approx(1)


def test_alpha_zero_is_uniform() -> None:
    np.testing.assert_allclose(reverse_probabilities(torch.tensor([100, 10, 1, 1]), 0.0), 0.25)


def test_counts_and_rates_give_the_same() -> None:
    counts = torch.tensor([500.0, 40, 7])
    np.testing.assert_allclose(reverse_probabilities(counts, 0.9), reverse_probabilities(counts / 1000, 0.9), rtol=1e-6)


def test_mean_positives_scales_up_to_one_half() -> None:
    counts = torch.tensor([100, 100, 100, 100, 10])
    p = reverse_probabilities(counts, 1.0)
    scaled = reverse_probabilities(counts, 1.0, mean_positives=3.0)
    np.testing.assert_allclose(scaled, [*(3 * p[:4]).tolist(), p[4]], rtol=1e-12)
    assert p[4] > 0.5
    np.testing.assert_allclose(reverse_probabilities(torch.ones(4), 1.0, mean_positives=3.0), 0.5)


def test_labels_without_positives_are_never_drawn() -> None:
    p = reverse_probabilities(torch.tensor([10, 0, 5]), 0.9)
    assert p[1] == 0
    np.testing.assert_allclose(p[[0, 2]], reverse_probabilities(torch.tensor([10, 5]), 0.9))
    assert reverse_probabilities(torch.zeros(3), 0.9).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("exponent", "expected"), [(0.0, [0.7, 0.2, 0.1]), (1.0, [1 / 3] * 3), (0.5, None)])
def test_one_label_images_are_drawn_by_a_power_of_their_class_size(
    exponent: float, expected: list[float] | None
) -> None:
    counts = np.array([70, 20, 10])
    labels = torch.tensor(np.repeat(np.arange(3), counts))
    order = class_balanced_order(labels, 60_000, exponent, torch.Generator().manual_seed(0))
    share = counts ** (1 - exponent) / (counts ** (1 - exponent)).sum() if expected is None else np.array(expected)
    drawn = torch.bincount(labels[order]).numpy() / 60_000
    np.testing.assert_allclose(drawn, share, atol=0.01)
    within = torch.bincount(order, minlength=100)[:70].numpy()
    np.testing.assert_allclose(within / within.sum(), 1 / 70, atol=0.004)


def test_several_label_images_are_drawn_by_class_then_among_its_images() -> None:
    labels = torch.tensor([[1.0, 0], [1, 0], [1, 1], [1, 0], [0, 0]])
    order = class_balanced_order(labels, 40_000, 1.0, torch.Generator().manual_seed(0))
    drawn = torch.bincount(order, minlength=5).numpy() / 40_000
    np.testing.assert_allclose(drawn, [1 / 8, 1 / 8, 1 / 8 + 1 / 2, 1 / 8, 0], atol=0.01)


def test_every_class_with_images_is_drawn_equally_often_and_all_over() -> None:
    labels = torch.tensor([3, 0, 0, 3, 0, 1, 3, 3])
    order = same_number_each(labels, 60, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[order]).tolist() == [60, 60, 0, 60]
    assert torch.bincount(order).min() > 5


def test_draws_of_a_number_each_repeat_with_the_generator() -> None:
    labels = torch.arange(4).repeat(5)
    orders = [same_number_each(labels, 7, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.sampling import reverse_probabilities

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

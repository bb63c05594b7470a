"""Consistency losses against NumPy written from their equations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import rel_entr, softmax

from trainers.losses.relation import channel_relation, probability_consistency, sample_relation

RNG = np.random.default_rng(0)
Z, Z_TEACHER = RNG.normal(size=(5, 7)), RNG.normal(size=(5, 7))


def gram(z: npt.NDArray[np.float64], normalised: bool) -> npt.NDArray[np.float64]:
    g = z @ z.T
    return g / np.linalg.norm(g, axis=1, keepdims=True) if normalised else g


@pytest.mark.parametrize("normalised", [True, False])
def test_relations_are_distances_of_gram_matrices_with_rows_of_unit_length(normalised: bool) -> None:
    student, teacher = torch.tensor(Z), torch.tensor(Z_TEACHER)
    samples = np.sum((gram(Z, normalised) - gram(Z_TEACHER, normalised)) ** 2) / 5
    channels = np.sum((gram(Z.T, normalised) - gram(Z_TEACHER.T, normalised)) ** 2) / (5 if normalised else 7)
    assert sample_relation(student, teacher, normalised=normalised).item() == pytest.approx(samples, rel=1e-5)
    assert channel_relation(student, teacher, normalised=normalised).item() == pytest.approx(channels, rel=1e-5)


def test_normalised_relations_do_not_see_the_scale_of_features() -> None:
    student, teacher = torch.tensor(Z).float(), torch.tensor(Z_TEACHER).float()
    for relation in (sample_relation, channel_relation):
        torch.testing.assert_close(relation(student * 30, teacher), relation(student, teacher))
        assert relation(student, student * 5).item() == pytest.approx(0, abs=1e-6)


def test_probability_consistency_has_the_teacher_as_reference() -> None:
    expected = rel_entr(softmax(Z_TEACHER, 1), softmax(Z, 1)).sum(1).mean()
    swapped = rel_entr(softmax(Z, 1), softmax(Z_TEACHER, 1)).sum(1).mean()
    found = probability_consistency(torch.tensor(Z), torch.tensor(Z_TEACHER)).item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(swapped, rel=1e-2)

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from lt_search.results.posthoc.ensemble import MIN_POSITIVES, choose_members, combine

M, N, C = 4, 6, 3
ENOUGH = torch.full((C,), MIN_POSITIVES)
QUALITY = torch.tensor([[0.1, 0.5, 0.3], [0.4, 0.2, 0.3], [0.2, 0.9, 0.1], [0.3, 0.6, 0.3]])


def test_each_class_has_its_own_best_models() -> None:
    members = choose_members(QUALITY, ENOUGH, 2)
    assert [members[:, c].nonzero().squeeze(1).tolist() for c in range(C)] == [[1, 3], [2, 3], [0, 1]]


def test_all_models_is_the_plain_mean() -> None:
    assert choose_members(QUALITY, ENOUGH, M).all()


def test_classes_of_few_positives_keep_all_models() -> None:
    members = choose_members(QUALITY, torch.tensor([MIN_POSITIVES, MIN_POSITIVES - 1, 0]), 1)
    assert members.sum(0).tolist() == [1, M, M]
    assert choose_members(QUALITY, torch.tensor([0, 0, 0]), 1, min_positives=0).sum(0).tolist() == [1, 1, 1]


def test_a_class_whose_quality_is_not_known_keeps_all_models() -> None:
    quality = QUALITY.clone()
    quality[2, 1] = torch.nan
    assert choose_members(quality, ENOUGH, 1).sum(0).tolist() == [1, M, 1]


@pytest.mark.parametrize("m", [0, M + 1])
def test_a_number_of_members_that_cannot_be_is_refused(m: int) -> None:
    with pytest.raises(ValueError, match=f"m is {m}, but there are 4 models"):
        choose_members(QUALITY, ENOUGH, m)


def test_scores_are_means_over_the_members_of_each_class() -> None:
    rng = np.random.default_rng(0)
    scores, members = rng.random((M, N, C)), rng.random((M, C)) > 0.4
    members[0] = True
    found = combine(torch.from_numpy(scores), torch.from_numpy(members))
    for c in range(C):
        np.testing.assert_allclose(found[:, c], scores[members[:, c], :, c].mean(0))


def test_a_model_that_is_left_out_does_not_count_even_as_nan() -> None:
    scores = torch.tensor([[[0.25]], [[torch.nan]]])
    assert combine(scores, torch.tensor([[True], [False]])).item() == 0.25


def test_a_class_without_a_model_is_named() -> None:
    with pytest.raises(ValueError, match="classes without a model: 1"):
        combine(torch.zeros(1, N, 2), torch.tensor([[True, False]]))


def test_two_models_that_each_know_one_class_are_together_as_good_as_both() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((200, 2)) < 0.3
    noise, signal = rng.random((200, 2)), labels + 0.1 * rng.random((200, 2))
    models = np.stack((np.column_stack((signal[:, 0], noise[:, 1])), np.column_stack((noise[:, 0], signal[:, 1]))))
    quality = [[average_precision_score(labels[:, c], model[:, c]) for c in range(2)] for model in models]
    members = choose_members(torch.tensor(quality), torch.from_numpy(labels.sum(0)), 1)
    together = combine(torch.from_numpy(models), members).numpy()
    assert [average_precision_score(labels[:, c], together[:, c]) for c in range(2)] == [1, 1]

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from trainers.losses.hard_classes import average_precision, class_weights, hardest_first, inner_part

N, C = 600, 5
SHARES = (0.4, 0.2, 0.05, 0.02, 0.01)


def labels_of(seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((N, C)) < np.array(SHARES)).float()


def patients(seed: int = 0, n: int = 150) -> list[str]:
    return [f"p{i}" for i in np.random.default_rng(seed).integers(0, n, N)]


def inner(labels: Tensor, groups: list[str] | None = None, fraction: float = 0.2, seed: int = 0) -> Tensor:
    return inner_part(labels, groups, fraction, torch.Generator().manual_seed(seed))


# --- the inner part


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_inner_part_has_its_share_of_images_and_of_every_labels_positives(fraction: float) -> None:
    labels = labels_of()
    part = inner(labels, fraction=fraction)
    assert part.sum().item() == pytest.approx(fraction * N, abs=0.03 * N)
    for inside, total in zip(labels[part].sum(0), labels.sum(0), strict=True):
        assert inside.item() == pytest.approx(fraction * total.item(), abs=max(1.5, 0.03 * total.item()))


def test_no_patient_is_on_both_sides() -> None:
    groups = patients()
    part = inner(labels_of(), groups).tolist()
    inside = {group for group, chosen in zip(groups, part, strict=True) if chosen}
    outside = {group for group, chosen in zip(groups, part, strict=True) if not chosen}
    assert inside
    assert not inside & outside


def test_a_label_of_a_single_patient_stays_in_training() -> None:
    groups = patients()
    labels = labels_of()
    labels[:, 4] = torch.tensor([group == groups[0] for group in groups]).float()
    for seed in range(10):
        assert labels[inner(labels, groups, seed=seed), 4].sum() == 0


def test_a_patient_of_unknown_labels_alone_stays_in_training() -> None:
    groups, labels = patients(), labels_of()
    labels[5, 2] = torch.nan
    unknown = {groups[i] for i in range(100, 110)}
    labels[[group in unknown for group in groups], 3] = torch.nan
    part = inner(labels, groups)
    assert part.any()
    assert not unknown & {group for group, chosen in zip(groups, part.tolist(), strict=True) if chosen}


def test_a_further_image_of_unknown_labels_bars_no_known_ones() -> None:
    """Every patient has one: as many of the known images are chosen as without these, and theirs with them."""
    groups, labels = patients(), labels_of()
    names = sorted(set(groups))
    further = torch.zeros(len(names), C)
    further[:, 2] = torch.nan
    part = inner(torch.cat([labels, further]), groups + names)
    assert part[:N].sum().item() == pytest.approx(0.2 * N, abs=0.05 * N)
    chosen = {group for group, left_out in zip(groups, part[:N].tolist(), strict=True) if left_out}
    assert [name in chosen for name in names] == part[N:].tolist()


def test_the_part_depends_on_the_seed_alone() -> None:
    labels = labels_of()
    assert torch.equal(inner(labels), inner(labels))
    assert not torch.equal(inner(labels), inner(labels, seed=1))


def test_no_fraction_and_no_labels_are_taken() -> None:
    assert not inner(labels_of(), fraction=0.0).any()
    assert inner(torch.zeros(50, 3)).sum() == 10
    assert inner(torch.zeros(0, 3)).shape == (0,)
    assert not inner(torch.full((6, 3), torch.nan)).any()


def test_groups_are_one_per_image() -> None:
    with pytest.raises(ValueError, match="3 groups, but 600 images"):
        inner(labels_of(), ["a", "b", "c"])


# --- what is hard


@pytest.mark.parametrize("decimals", [1, 8])
def test_average_precision_is_scikit_learns_with_and_without_ties(decimals: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, positive = rng.random(30).round(decimals), rng.random(30) < 0.3
        positive[rng.integers(30)] = True
        expected = average_precision_score(positive, scores)
        assert average_precision(scores, positive) == pytest.approx(expected, rel=1e-12)


def test_labels_are_ranked_by_scikit_learns_average_precision() -> None:
    labels = labels_of()
    scores = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (N, C))) + labels * torch.tensor([0.1, 2, 1, 4, 3])
    expected = np.argsort([average_precision_score(labels[:, c], scores[:, c]) for c in range(C)])
    assert hardest_first(scores, labels, labels.sum(0)) == expected.tolist()


def test_labels_that_cannot_be_judged_come_first_the_rarest_before_others() -> None:
    labels = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    scores = torch.tensor([[0.9, 0.9, 0.0, 0.0], [0.5, 0.1, 0, 0], [0.1, 0.5, 0, 0]])
    assert hardest_first(scores, labels, torch.tensor([50, 40, 7, 3])) == [3, 2, 1, 0]


def test_labels_without_a_training_image_are_never_hard() -> None:
    assert hardest_first(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([5, 0, 4])) == [2, 0]


def test_without_an_inner_part_the_rarest_are_the_hardest() -> None:
    assert hardest_first(torch.zeros(0, 3), torch.zeros(0, 3), torch.tensor([5, 9, 4])) == [2, 0, 1]


def test_scores_of_a_diverged_network_are_ranked_too() -> None:
    labels = labels_of()
    assert sorted(hardest_first(torch.full((N, C), torch.nan), labels, labels.sum(0))) == list(range(C))


# --- weights


def test_the_papers_nine_of_twenty_six() -> None:
    hardest = list(reversed(range(26)))
    weights = class_weights(hardest, 26, n_hard=9, high_share=4 / 9, mid=2, high=3)
    assert weights.tolist() == [1.0] * 17 + [2.0] * 5 + [3.0] * 4


@pytest.mark.parametrize(
    ("n_hard", "share", "expected"),
    [(0, 0.5, [1, 1, 1, 1]), (1, 1.0, [1, 1, 3, 1]), (1, 0.0, [1, 1, 2, 1]), (2, 0.5, [2, 1, 3, 1]),
     (4, 0.5, [2, 1, 3, 1]), (99, 1.0, [3, 1, 3, 1])],
)  # fmt: skip
def test_hard_classes_are_at_most_half_of_all(n_hard: int, share: float, expected: list[float]) -> None:
    assert class_weights([2, 0, 1, 3], 4, n_hard, share, mid=2, high=3).tolist() == expected


def test_fewer_ranked_than_wanted_are_all_hard() -> None:
    assert class_weights([1], 6, 3, 0.0, mid=2, high=3).tolist() == [1, 2, 1, 1, 1, 1]

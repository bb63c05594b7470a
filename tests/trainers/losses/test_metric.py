"""Metric losses and their mining against loops over triplets and pairs, written from the equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.losses.metric import (
    Mined,
    Pairs,
    Selector,
    contrastive,
    mean_negative_distance,
    n_pair,
    squared_distances,
    supervised_contrastive,
    triplet,
    triplet_centre,
)

Array = NDArray[Any]

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4])
IMAGES = np.array([10, 11, 12, 20, 21, 20, 30, 30, 30, 40, 41, 50])
"""Class 1 repeats an image, class 2 holds one image three times, class 4 comes once."""
K = 6
MARGIN = 0.4


def unit(n: int, seed: int = 0, dim: int = 5) -> Array:
    x = np.random.default_rng(seed).normal(size=(n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


E = unit(len(LABELS))
CENTRES = 0.7 * unit(K, seed=1)
PRESENT = np.array([True, True, True, True, True, False])


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs() -> Pairs:
    return Pairs.of(torch.from_numpy(LABELS), torch.from_numpy(IMAGES))


def positives(i: int) -> list[int]:
    return [j for j in range(len(LABELS)) if LABELS[j] == LABELS[i] and IMAGES[j] != IMAGES[i]]


def negatives(i: int) -> list[int]:
    return [j for j in range(len(LABELS)) if LABELS[j] != LABELS[i]]


def squared(x: Array, y: Array) -> float:
    return float(((x - y) ** 2).sum())


def candidate_violations(e: Array, margin: float) -> dict[tuple[int, int], list[float]]:
    """Of every anchor-positive pair, d(a, p) - d(a, n) + m for each negative."""
    return {
        (a, p): [squared(e[a], e[p]) - squared(e[a], e[n]) + margin for n in negatives(a)]
        for a in range(len(LABELS))
        for p in positives(a)
    }


def reference_triplet(e: Array, margin: float, selector: str) -> tuple[float, float]:
    """Loss and active share; of the random selectors, the loss they have on average."""
    rows = candidate_violations(e, margin)
    if selector == "batch_hard":
        hardest = [
            max(squared(e[a], e[p]) for p in positives(a)) - min(squared(e[a], e[n]) for n in negatives(a)) + margin
            for a in range(len(LABELS))
            if positives(a)
        ]
        return float(np.mean(np.maximum(hardest, 0))), float(np.mean(np.array(hardest) > 0))
    if selector == "all":
        every = np.concatenate([np.array(v) for v in rows.values()])
        return float(np.mean(np.maximum(every, 0))), float(np.mean(every > 0))
    top = margin if selector == "semi_hard" else np.inf
    eligible = [[v for v in violations if 0 < v < top] for violations in rows.values()]
    combine = max if selector == "hardest_neg" else np.mean
    losses = [combine(values) for values in eligible if values]
    return (float(np.mean(losses)) if losses else 0.0), len(losses) / len(rows)


def reference_centre(e: Array, margin: float, kind: str) -> tuple[float, float]:
    found, candidates, active = [], 0, 0
    for i, y in enumerate(LABELS):
        own = squared(e[i], CENTRES[y])
        values = [own - squared(e[i], CENTRES[k]) + margin for k in range(K) if k != y and PRESENT[k]]
        violating = [v for v in values if v > 0]
        candidates, active = candidates + len(values), active + len(violating)
        if violating:
            found += [max(violating)] if kind == "worst" else violating
    return (float(np.mean(found)) if found else 0.0), active / candidates


def reference_contrastive(e: Array, margin: float) -> float:
    pull = [squared(e[i], e[j]) for i in range(len(e)) for j in positives(i)]
    push = [max(0.0, margin - squared(e[i], e[j]) ** 0.5) ** 2 for i in range(len(e)) for j in negatives(i)]
    return float(np.mean(pull) + np.mean(push)) / 2


def reference_supcon(e: Array, t: float) -> float:
    losses = []
    for i in range(len(e)):
        total = sum(np.exp(e[i] @ e[a] / t) for a in range(len(e)) if IMAGES[a] != IMAGES[i])
        if positives(i):
            losses.append(-np.mean([np.log(np.exp(e[i] @ e[p] / t) / total) for p in positives(i)]))
    return float(np.mean(losses))


def n_pair_of(e: Array, i: int, p: int) -> float:
    return float(np.log(1 + sum(np.exp(e[i] @ e[n] - e[i] @ e[p]) for n in negatives(i))))


def triplet_of(selector: Selector, margin: float = MARGIN, seed: int = 0) -> Callable[[Tensor], Mined]:
    return lambda e: triplet(e, pairs(), margin, selector, draws(seed))


def loss_of(selector: Selector, e: Tensor) -> Tensor:
    return triplet_of(selector)(e).loss


def centre_of(kind: Any, margin: float = MARGIN) -> Callable[[Tensor], Mined]:
    labels, centres, present = torch.from_numpy(LABELS), torch.from_numpy(CENTRES), torch.from_numpy(PRESENT)
    return lambda e: triplet_centre(e, labels, centres.to(e), present, margin, kind)


def contrastive_of(margin: float = MARGIN) -> Callable[[Tensor], Mined]:
    return lambda e: contrastive(e, pairs(), margin)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: partial(loss_of, name) for name in get_args(Selector)},
    "centre": lambda e: centre_of("all")(e).loss,
    "centre worst": lambda e: centre_of("worst")(e).loss,
    "contrastive": lambda e: contrastive_of()(e).loss,
    "n_pair": lambda e: n_pair(e, pairs(), draws()),
    "supcon": lambda e: supervised_contrastive(e, pairs(), 0.2),
}


def test_distances_are_squared_euclidean() -> None:
    found = squared_distances(torch.from_numpy(E), torch.from_numpy(CENTRES))
    expected = [[squared(x, y) for y in CENTRES] for x in E]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_image_is_no_partner_of_itself() -> None:
    found = pairs()
    for i in range(len(LABELS)):
        assert found.positive[i].nonzero().squeeze(1).tolist() == positives(i)
        assert found.negative[i].nonzero().squeeze(1).tolist() == negatives(i)
    assert not found.positive[6:9].any()


@pytest.mark.parametrize("margin", [0.05, MARGIN, 1.5])
@pytest.mark.parametrize("selector", ["all", "batch_hard", "hardest_neg"])
def test_triplets_without_chance_are_those_of_the_loop(selector: Selector, margin: float) -> None:
    loss, active = triplet_of(selector, margin)(torch.from_numpy(E))
    assert (loss.item(), active.item()) == pytest.approx(reference_triplet(E, margin, selector), rel=1e-6)


@pytest.mark.parametrize("selector", ["random_hard", "semi_hard"])
def test_random_triplets_take_every_eligible_negative_equally_often(selector: Selector) -> None:
    found = [triplet_of(selector, seed=seed)(torch.from_numpy(E)) for seed in range(600)]
    loss, active = reference_triplet(E, MARGIN, selector)
    assert found[0].active.item() == pytest.approx(active)
    values = np.array([mined.loss.item() for mined in found])
    assert values.std() > 0
    assert values.mean() == pytest.approx(loss, abs=4 * values.std() / len(values) ** 0.5)


@pytest.mark.parametrize(("selector", "low", "high"), [("random_hard", 0.0, np.inf), ("semi_hard", 0.0, MARGIN)])
def test_a_random_triplet_is_one_of_the_eligible_ones(selector: Selector, low: float, high: float) -> None:
    two = np.array([True, True, *[False] * 7, True, True, False])  # classes 0 and 3, two images each
    found = Pairs.of(torch.from_numpy(LABELS[two]), torch.from_numpy(IMAGES[two]))
    e = E[two]
    options = []
    for a, p, ns in ((0, 1, (2, 3)), (1, 0, (2, 3)), (2, 3, (0, 1)), (3, 2, (0, 1))):
        values = [squared(e[a], e[p]) - squared(e[a], e[n]) + MARGIN for n in ns]
        options.append([v for v in values if low < v < high] or [None])
    possible = set()
    for choice in np.stack(np.meshgrid(*[range(len(o)) for o in options]), -1).reshape(-1, 4):
        values = [o[c] for o, c in zip(options, choice, strict=True) if o[c] is not None]
        possible.add(round(float(np.mean(values)) if values else 0.0, 9))
    losses = {
        round(triplet(torch.from_numpy(e), found, MARGIN, selector, draws(seed)).loss.item(), 9) for seed in range(60)
    }
    assert losses <= possible
    assert losses == possible or len(possible) > 8


@pytest.mark.parametrize("margin", [0.0, MARGIN, 1.5])
@pytest.mark.parametrize("kind", ["all", "worst"])
def test_centres_of_other_classes_that_are_present_push(kind: str, margin: float) -> None:
    loss, active = centre_of(kind, margin)(torch.from_numpy(E))
    assert (loss.item(), active.item()) == pytest.approx(reference_centre(E, margin, kind), rel=1e-6)


@pytest.mark.parametrize("margin", [MARGIN, 1.3])
def test_contrastive_is_half_pull_and_half_push(margin: float) -> None:
    loss, active = contrastive_of(margin)(torch.from_numpy(E))
    assert loss.item() == pytest.approx(reference_contrastive(E, margin), rel=1e-6)
    near = [squared(E[i], E[j]) ** 0.5 < margin for i in range(len(E)) for j in negatives(i)]
    assert active.item() == pytest.approx(np.mean(near))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_supervised_contrastive_is_its_equation(temperature: float) -> None:
    found = supervised_contrastive(torch.from_numpy(E), pairs(), temperature)
    assert found.item() == pytest.approx(reference_supcon(E, temperature), rel=1e-9)


def test_n_pair_takes_one_positive_per_anchor_at_random() -> None:
    anchors = [i for i in range(len(LABELS)) if positives(i)]
    values = np.array([n_pair(torch.from_numpy(E), pairs(), draws(seed)).item() for seed in range(600)])
    per_anchor = [[n_pair_of(E, i, p) for p in positives(i)] for i in anchors]
    assert np.mean([min(v) for v in per_anchor]) - 1e-9 <= values.min()
    assert values.max() <= np.mean([max(v) for v in per_anchor]) + 1e-9
    assert values.std() > 0
    expected = np.mean([np.mean(v) for v in per_anchor])
    assert values.mean() == pytest.approx(expected, abs=4 * values.std() / len(values) ** 0.5)


def test_n_pair_of_pairs_is_its_equation() -> None:
    two = np.array([0, 1, 3, 4, 9, 10])
    found = Pairs.of(torch.from_numpy(LABELS[two]), torch.from_numpy(IMAGES[two]))
    e = E[two]
    expected = [
        np.log(1 + sum(np.exp(e[i] @ e[n] - e[i] @ e[i ^ 1]) for n in range(6) if n // 2 != i // 2)) for i in range(6)
    ]
    assert n_pair(torch.from_numpy(e), found, draws()).item() == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], torch.from_numpy(E).requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_random_choices_repeat_with_the_generator(name: str) -> None:
    e = torch.from_numpy(E)
    assert torch.equal(LOSSES[name](e), LOSSES[name](e))


APART = torch.eye(K, dtype=torch.float64)[torch.from_numpy(LABELS)]
"""Every class in a place of its own: no margin below 2 is violated."""


@pytest.mark.parametrize("name", [*get_args(Selector), "centre", "centre worst"])
def test_without_an_active_triplet_the_loss_is_zero_and_the_graph_valid(name: str) -> None:
    e = APART.clone().requires_grad_()
    if name.startswith("centre"):
        labels, present = torch.from_numpy(LABELS), torch.from_numpy(PRESENT)
        kind: Any = "worst" if name.endswith("worst") else "all"
        loss, active = triplet_centre(e, labels, torch.eye(K, dtype=torch.float64), present, 0.5, kind)
    else:
        selector: Any = name
        loss, active = triplet_of(selector, 0.5)(e)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert active.item() == 0
    assert e.grad is not None
    assert (e.grad == 0).all()


@pytest.mark.parametrize(
    ("labels", "images"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 3]),  # one class: no negative
        ([0, 1, 2, 3], [0, 1, 2, 3]),  # classes of one image: no positive
        ([0, 0, 1, 1], [5, 5, 6, 6]),  # classes of one image, repeated
        ([0, 0, 0, 0], [5, 5, 5, 5]),  # one image: no partner at all
    ],
)
@pytest.mark.parametrize("name", [*get_args(Selector), "contrastive", "n_pair", "supcon"])
def test_batches_without_partners_have_a_finite_loss_and_gradient(
    name: Any, labels: list[int], images: list[int]
) -> None:
    found = Pairs.of(torch.tensor(labels), torch.tensor(images))
    e = torch.from_numpy(unit(4)).requires_grad_()
    losses: dict[str, Callable[[], Tensor]] = {
        "contrastive": lambda: contrastive(e, found, 0.5).loss,
        "n_pair": lambda: n_pair(e, found, draws()),
        "supcon": lambda: supervised_contrastive(e, found, 0.1),
    }
    loss = losses.get(name, lambda: triplet(e, found, 0.5, name, draws()).loss)()
    loss.backward()  # type: ignore[no-untyped-call]
    assert e.grad is not None
    assert e.grad.isfinite().all()
    if not found.positive.any() and name != "contrastive":
        assert loss.item() == 0
    assert mean_negative_distance(e, found).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_collapsed_embeddings_have_finite_gradients(name: str) -> None:
    e = torch.from_numpy(np.repeat(E[:1], len(LABELS), 0)).requires_grad_()
    loss = LOSSES[name](e)
    loss.backward()  # type: ignore[no-untyped-call]
    assert e.grad is not None
    assert e.grad.isfinite().all()
    if name in ("all", "batch_hard", "hardest_neg", "random_hard"):
        assert loss.item() == pytest.approx(MARGIN)
    assert mean_negative_distance(e, pairs()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_divergence_shows_as_nan(name: str) -> None:
    assert LOSSES[name](torch.full((len(LABELS), 5), torch.nan)).isnan()


def test_the_distance_of_negatives_is_their_mean() -> None:
    expected = np.mean([squared(E[i], E[j]) ** 0.5 for i in range(len(E)) for j in negatives(i)])
    assert mean_negative_distance(torch.from_numpy(E), pairs()).item() == pytest.approx(expected, rel=1e-9)

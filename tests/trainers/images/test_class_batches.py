from __future__ import annotations

import numpy as np
import torch

from trainers.images.class_batches import class_batches

SIZES = (12, 8, 5, 2, 1, 0, 4)
LABELS = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES)))
PRESENT = [k for k, size in enumerate(SIZES) if size]


def draw(n: int = 40, classes: int = 3, images: int = 4, seed: int = 0) -> torch.Tensor:
    return class_batches(LABELS, n, classes, images, torch.Generator().manual_seed(seed))


def test_a_batch_has_as_many_images_of_each_of_its_classes() -> None:
    found = LABELS[draw()].view(40, 3, 4)
    assert (found == found[..., :1]).all()
    assert all(len(set(row.tolist())) == 3 for row in found[..., 0])


def test_every_class_that_has_images_is_drawn_equally_often() -> None:
    drawn = torch.bincount(LABELS[draw(4000)][:, ::4].flatten(), minlength=len(SIZES)).numpy() / 4000
    np.testing.assert_allclose(drawn, [0.5 if size else 0 for size in SIZES], atol=0.03)


def test_more_classes_than_there_are_means_all_of_them() -> None:
    found = LABELS[draw(classes=10)][:, ::4]
    assert found.shape == (40, len(PRESENT))
    assert (found.sort(1).values == torch.tensor(PRESENT)).all()


def test_images_of_a_class_differ_and_come_once_before_any_comes_again() -> None:
    found = draw(42, classes=len(PRESENT))
    for label, batches in ((0, 3), (1, 2), (6, 1)):
        passes = found[LABELS[found] == label].view(42 // batches, batches * 4)
        assert all(len(set(row.tolist())) == SIZES[label] for row in passes)
    of_five = found[LABELS[found] == 2].view(42, 4)
    assert all(len(set(row.tolist())) == 4 for row in of_five)
    assert set(of_five.flatten().tolist()) == set((LABELS == 2).nonzero().squeeze(1).tolist())


def test_orders_within_a_class_change_from_pass_to_pass() -> None:
    found = draw(classes=len(PRESENT))
    of_four = found[LABELS[found] == 6].view(40, 4)
    assert len({tuple(row.tolist()) for row in of_four}) > 5


def test_small_classes_repeat_images_of_their_own() -> None:
    found = draw(400, classes=len(PRESENT)).view(400, len(PRESENT), 4)
    of_two = found[LABELS[found] == 3]
    members = (LABELS == 3).nonzero().squeeze(1)
    share = torch.stack([(of_two == member).float().mean() for member in members])
    np.testing.assert_allclose(share, 0.5, atol=0.05)
    assert found[LABELS[found] == 4].unique().tolist() == (LABELS == 4).nonzero().squeeze(1).tolist()


def test_batches_repeat_with_the_generator() -> None:
    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(seed=1))

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.images.batches import in_order, load, split, step_order


def test_a_full_step_is_a_permutation_that_changes_with_step_stage_and_seed() -> None:
    orders = [step_order(50, None, *where) for where in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in orders}) == 4


@given(n=st.integers(1, 20), m=st.integers(1, 50), steps=st.integers(1, 6))
def test_short_or_long_steps_walk_through_the_same_epochs(n: int, m: int, steps: int) -> None:
    walked = np.concatenate([step_order(n, m, 5, 1, step) for step in range(steps)])
    epochs = np.concatenate([step_order(n, None, 5, 1, epoch) for epoch in range(-(-len(walked) // n))])
    assert len(walked) == m * steps
    np.testing.assert_array_equal(walked, epochs[: len(walked)])


@given(n=st.integers(1, 40), size=st.integers(2, 10))
def test_batches_keep_the_order_and_none_has_a_single_image(n: int, size: int) -> None:
    batches = split(np.arange(n), size)
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(n))
    assert all(len(batch) <= size + 1 for batch in batches)
    assert n == 1 or all(len(batch) > 1 for batch in batches)


@pytest.mark.parametrize("n", [1, 6, 7])
def test_loading_in_order_gives_all_images(n: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (n, 1, 2, 2), dtype=np.uint8)
    loaded = list(load(images, in_order(n, 3), torch.device("cpu")))
    assert torch.cat([index for index, _ in loaded]).tolist() == list(range(n))
    np.testing.assert_array_equal(torch.cat([raw for _, raw in loaded]), images)


def test_memory_mapped_images_are_only_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.full((4, 1, 2, 2), 7, np.uint8))
    images = np.load(path, mmap_mode="r")
    for _, raw in load(images, in_order(4, 2), torch.device("cpu")):
        raw.zero_()
    assert (np.load(path) == 7).all()

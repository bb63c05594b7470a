from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_search.data.splits import SHARES, TEST, TRAIN, VAL, split_groups

Membership = npt.NDArray[np.uint8]


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[Membership, list[str]]:
    """Any small multi-label table with groups of any size; every class has an image."""
    n, n_classes = draw(st.integers(2, 40)), draw(st.integers(1, 5))
    rows = st.lists(st.integers(0, 1), min_size=n_classes, max_size=n_classes)
    membership = np.array(draw(st.lists(rows, min_size=n, max_size=n)), np.uint8)
    membership[draw(st.integers(0, n - 1))] = 1
    groups = draw(st.lists(st.integers(0, 15).map(str), min_size=n, max_size=n))
    return membership, groups


def one_hot(counts: list[int]) -> Membership:
    return np.eye(len(counts), dtype=np.uint8)[np.repeat(np.arange(len(counts)), counts)]


@given(labelled_groups(), st.integers(0, 1000))
def test_groups_stay_whole_and_every_class_is_in_training(table: tuple[Membership, list[str]], seed: int) -> None:
    membership, groups = table
    parts = split_groups(membership, groups, seed)
    assert set(parts) <= {TRAIN, VAL, TEST}
    for group in set(groups):
        assert len(set(parts[np.array(groups) == group])) == 1
    assert membership[parts == TRAIN].any(axis=0).all()


@given(st.lists(st.integers(3, 30), min_size=2, max_size=6), st.integers(1, 4), st.integers(0, 1000))
def test_a_class_with_three_groups_reaches_every_part(counts: list[int], per_group: int, seed: int) -> None:
    membership = np.repeat(one_hot(counts), per_group, axis=0)
    groups = [str(index // per_group) for index in range(len(membership))]
    parts = split_groups(membership, groups, seed)
    for part in (TRAIN, VAL, TEST):
        assert membership[parts == part].any(axis=0).all()


@given(st.lists(st.integers(10, 60), min_size=2, max_size=5), st.integers(0, 1000))
def test_single_images_are_divided_7_to_1_to_2_in_every_class(counts: list[int], seed: int) -> None:
    membership = one_hot(counts)
    parts = split_groups(membership, [str(index) for index in range(len(membership))], seed)
    for part, share in enumerate(SHARES):
        np.testing.assert_allclose(
            membership[parts == part].sum(axis=0), np.array(counts) * share / sum(SHARES), atol=1.5
        )


@given(labelled_groups(), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(table: tuple[Membership, list[str]], seed: int, random: Random) -> None:
    membership, groups = table
    order = np.argsort([random.random() for _ in groups])
    shuffled = split_groups(membership[order], [groups[index] for index in order], seed)
    np.testing.assert_array_equal(shuffled, split_groups(membership, groups, seed)[order])


def test_the_seed_and_nothing_else_moves_images() -> None:
    membership = one_hot([60, 20, 8])
    groups = [str(index) for index in range(len(membership))]
    splits = {tuple(split_groups(membership, groups, seed)) for seed in (0, 1, 2, 0, 1)}
    assert len(splits) == 3


def test_two_groups_reach_training_and_one_other_part() -> None:
    membership = one_hot([40, 2])
    parts = split_groups(membership, [str(index) for index in range(42)], 0)
    assert TRAIN in parts[40:] and len(set(parts[40:])) == 2


def test_unlabelled_images_are_divided_7_to_1_to_2_too() -> None:
    membership = np.zeros((200, 2), np.uint8)
    membership[:50, 0] = membership[50:100, 1] = 1
    parts = split_groups(membership, [str(index) for index in range(200)], 0)
    assert np.bincount(parts[100:]).tolist() == [70, 10, 20]


@pytest.mark.parametrize("seed", range(5))
def test_a_large_patient_does_not_unbalance_a_small_part(seed: int) -> None:
    """One patient with most images of a rare class, as in real chest X-ray tables, belongs into training."""
    membership = one_hot([300, 30])
    groups = [str(index) for index in range(300)] + ["one"] * 27 + ["a", "b", "c"]
    parts = split_groups(membership, groups, seed)
    assert (parts[300:327] == TRAIN).all()
    assert {VAL, TEST} <= set(parts[327:])


@pytest.mark.parametrize("seed", range(5))
def test_training_comes_before_what_others_lose(seed: int) -> None:
    """Each group alone holds a class, and one of them has to give up its place in another part."""
    parts = split_groups(np.array([[1, 1, 0], [0, 1, 1]], np.uint8), ["a", "b"], seed)
    assert (parts == TRAIN).all()


def test_nothing_is_left_for_other_parts_where_every_class_has_one_group() -> None:
    parts = split_groups(one_hot([1, 1, 1]), ["a", "b", "c"], 0)
    assert (parts == TRAIN).all()


def test_shares_of_two_parts_divide_into_two() -> None:
    groups = [str(index // 2) for index in range(160)]
    parts = split_groups(one_hot([80, 80]), groups, 0, shares=(7, 1))
    assert np.bincount(parts).tolist() == [140, 20]
    assert all(len(set(parts[index : index + 2])) == 1 for index in range(0, 160, 2))

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_search.metrics.class_groups import ClassGroups, class_groups


@pytest.mark.parametrize(
    ("counts", "head", "medium", "tail"),
    [
        ([5, 9], (1,), (), (0,)),
        ([5, 9, 1], (1,), (0,), (2,)),
        ([1, 2, 3, 4], (3,), (2, 1), (0,)),
        ([50, 40, 30, 20, 10], (0, 1), (2,), (3, 4)),
        ([3, 3, 3], (0,), (1,), (2,)),  # ties go by class order
        ([0, 7, 0, 7], (1,), (3, 0), (2,)),
    ],
)
def test_thirds_by_rank(
    counts: list[int], head: tuple[int, ...], medium: tuple[int, ...], tail: tuple[int, ...]
) -> None:
    assert class_groups(counts) == ClassGroups(head, medium, tail)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=60))
def test_groups_partition_the_classes_by_count(counts: list[int]) -> None:
    groups = class_groups(counts)
    ranked = groups.head + groups.medium + groups.tail
    assert sorted(ranked) == list(range(len(counts))) and groups.n_classes == len(counts)
    assert [counts[index] for index in ranked] == sorted(counts, reverse=True)
    assert len(groups.head) == len(groups.tail) == round(len(counts) / 3)
    assert groups.medium or len(counts) == 2


@pytest.mark.parametrize("counts", [[], [4]])
def test_fewer_than_two_classes_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        class_groups(counts)


def test_describe_names_the_classes() -> None:
    groups = class_groups([5, 9, 1])
    assert groups.describe(["a", "b", "c"]) == (
        "Classes by training images, most frequent first: head: b; medium: a; tail: c."
    )
    assert "medium: none" in class_groups([1, 2]).describe(["x", "y"])
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        groups.describe(["a", "b"])

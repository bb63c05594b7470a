"""Which images of several data sets stay together."""

from __future__ import annotations

from typing import cast

import numpy as np

from lt_search.data.groups import joined_groups, tied_groups
from lt_search.data.table import ImageSource, Part

NO_SOURCE = cast("ImageSource", None)


def part(*ties: str) -> Part:
    """A training part of images with these keys, separated by blanks."""
    keys = tuple(tuple(key.split()) for key in ties)
    ids = tuple(str(number) for number in range(len(keys)))
    return Part("train", ids, np.zeros((len(keys), 2), np.uint8), tied_groups(keys), NO_SOURCE, "", keys)


def together(*parts: Part) -> set[frozenset[int]]:
    """The groups as sets of images, counted through all parts."""
    groups = joined_groups(parts)
    return {frozenset(i for i, other in enumerate(groups) if other == group) for group in groups}


def test_the_groups_of_one_data_set_are_its_own() -> None:
    own = part("patient:2", "image:a", "group:7 patient:1", "patient:1", "patient:7")
    assert joined_groups([own]) == own.groups


def test_a_patient_is_one_whatever_the_tables_call_him() -> None:
    own = part("patient:17", "group:9")
    assert together(own, part("group:17"), part("subject:9", "patient:17")) == {frozenset({0, 2, 4}), frozenset({1, 3})}


def test_what_is_named_alike_but_of_another_kind_is_not_one_where_the_kinds_match() -> None:
    own = part("patient:1", "group:1")
    assert together(own, part("patient:1", "group:1")) == {frozenset({0, 2}), frozenset({1, 3})}


def test_equal_file_names_tie_nothing() -> None:
    own = part("image:a", "image:b")
    assert len(together(own, part("image:a", "image:b"), part("image:a"))) == 5


def test_a_patient_with_several_keys_ties_all_of_theirs() -> None:
    own = part("group:site1 patient:1", "group:site2 patient:2", "patient:3")
    assert together(own, part("patient:2", "patient:1 patient:3")) == {frozenset({0, 2, 4}), frozenset({1, 3})}

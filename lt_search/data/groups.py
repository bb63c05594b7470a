"""Group ids: which images a patient or a group ties to each other, so that no split divides them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lt_search.data.label_table import Row

if TYPE_CHECKING:
    from lt_search.data.table import Part

_KIND = re.compile(r"^(group|patient|subject|lesion):")
"""The kinds of keys that tie images together; two data sets may use different kinds for the same people."""

_BY_ITSELF = "image:"
"""Prefix of the key of an image that nothing ties to others; two data sets may use one name for different images."""


def group_ids(rows: Sequence[Row]) -> tuple[str, ...]:
    """(N,) the group id of each row: images that share a patient or a group, directly or through others, share an id.

    An image without either has an id of its own. So where all images have a group and no patient (or the reverse),
    ids are just the groups.
    """
    return tied_groups([ties_of(row) for row in rows])


def tied_groups(ties: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """(N,) the group id of each image: the first, in sorted order, of all keys that tie it to others, directly or not.

    Args:
        ties: (N,) the keys of each image, at least one; a key says what it is, since group 7 is not patient 7.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for first, *others in ties:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return tuple(root(first) for first, *_ in ties)


def group_kind(rows: Sequence[Row]) -> str:
    """What group ids stand for, for people: `group`, `patient`, `image`, or several of them."""
    kinds = [
        ("group", any(row.group for row in rows)),
        ("patient", any(row.patient for row in rows)),
        ("image", any(not row.group and not row.patient for row in rows)),
    ]
    return " and ".join(kind for kind, used in kinds if used)


def ties_of(row: Row) -> tuple[str, ...]:
    """The keys that tie this row to others."""
    named = (("group", row.group), ("patient", row.patient))
    return tuple(f"{kind}:{key}" for kind, key in named if key) or (f"image:{row.image}",)


def people_of(part: Part) -> list[set[str]]:
    """The names of patients and groups of each image (N,), without what the data set calls them."""
    return [{_name(key) for key in keys if not key.startswith(_BY_ITSELF)} for keys in _keys_of(part)]


def joined_groups(parts: Sequence[Part]) -> tuple[str, ...]:
    """(N,) group ids of the images of several data sets, one set after another.

    A patient or group of a later set is the one of that name in those before it: of the same kind if there is one,
    otherwise of any kind, since two tables may use different kinds. An image that nothing ties to others stays by
    itself, although another set may have a file of that name. For a single set, these are its own group ids.
    """
    known: dict[str, set[str]] = {}  # keys by name

    def as_known(key: str, number: int) -> set[str]:
        if key.startswith(_BY_ITSELF):
            return {f"{_BY_ITSELF}{number}:{key}"} if number else {key}
        same = known.get(_name(key), {key})
        return {key} if key in same else same

    ties: list[list[str]] = []
    for number, part in enumerate(parts):
        joined = [sorted(set().union(*(as_known(key, number) for key in keys))) for keys in _keys_of(part)]
        for key in set().union(*joined):
            known.setdefault(_name(key), set()).add(key)
        ties += joined
    return tied_groups(ties)


def _keys_of(part: Part) -> list[set[str]]:
    """All keys that tie each image to others."""
    return [{group, *ties} for group, ties in zip(part.groups, part.ties or [()] * len(part), strict=True)]


def _name(key: str) -> str:
    return _KIND.sub("", key)

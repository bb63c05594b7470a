"""What must stay on one side of the split: images tied to each other by a patient or a group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lt_search.data.label_table import Row

if TYPE_CHECKING:
    from lt_search.data.table import Part

_KIND = re.compile(r"^(group|patient|subject|lesion):")
"""What a data set calls that which ties images together; another one may call it otherwise."""

_BY_ITSELF = "image:"
"""What the group of an image begins with that nothing ties to others; two data sets may name different ones alike."""


def units_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """(N,) the unit of each row: images that share a patient or a group, directly or through others, share a unit.

    An image without either is a unit of its own. So where all images have a group and no patient (or the reverse),
    units are just the groups.
    """
    return tied_units([ties_of(row) for row in rows])


def tied_units(ties: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """(N,) the unit of each image: the first, in sorted order, of all keys that tie it to others, directly or not.

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


def unit_name(rows: Sequence[Row]) -> str:
    """What units are, in a word for a person: `group`, `patient`, `image`, or several of them."""
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
    """(N,) what must stay together of the images of several data sets, one set after another.

    A patient or group of a later set is the one of that name in those before it: of the same kind where there is one,
    else of whatever kind, since two tables may call it otherwise. An image that nothing ties to others stays by itself,
    although another set may have a file of that name. The groups of a single set are its own.
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
    return tied_units(ties)


def _keys_of(part: Part) -> list[set[str]]:
    """All keys that tie each image to others."""
    return [{group, *ties} for group, ties in zip(part.groups, part.ties or [()] * len(part), strict=True)]


def _name(key: str) -> str:
    return _KIND.sub("", key)

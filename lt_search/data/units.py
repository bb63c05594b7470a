"""What must stay on one side of the split: images tied to each other by a patient or a group."""

from __future__ import annotations

from collections.abc import Sequence

from lt_search.data.label_table import Row


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

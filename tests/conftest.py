"""The order of the tests, and the priority of Ray's workers in them."""

from __future__ import annotations

import os

import pytest

# Ray runs workers at nice 15: beside a second process of tests, the whole searches would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts whole searches first: where tests run in two processes, the long ones must not be left to the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)

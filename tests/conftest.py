"""The order of the tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts whole searches first: where tests run in two processes, the long ones must not be left to the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)

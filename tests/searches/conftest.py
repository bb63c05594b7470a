"""A small space and table, and a Ray that whole searches share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lt_search.tuning.cluster import ray_cluster
from tests.helpers.searches import Searches
from tests.lt_search.conftest import own_cache, tiny_csv, tiny_space  # noqa: F401 (fixtures)


@pytest.fixture
def searches(tmp_path: Path, tiny_space: Path, tiny_csv: Path) -> Searches:  # noqa: F811
    return Searches(tmp_path / "runs", tiny_space, tiny_csv)


@pytest.fixture(scope="module")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray that many searches of this module run on, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LT_SEARCH_CACHE", str(tmp_path_factory.mktemp("workers-cache")))  # workers keep this one
        with ray_cluster(None):
            yield

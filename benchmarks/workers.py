"""Workers of baselines: fresh processes for every trial, or images decoded anew by every trial."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lt_search.data.decoded import CACHE_VARIABLE
from lt_search.training.inputs import LoadedInputs
from lt_search.tuning import tune_loop, worker


@contextmanager
def fresh_workers() -> Iterator[None]:
    """Starts a process for every trial inside the block."""
    tune_loop.REUSE_ACTORS = False
    try:
        yield
    finally:
        tune_loop.REUSE_ACTORS = True


class UnsharedImagesTrial(worker.StagedTrial):
    """Decodes the images again for every trial."""

    def _take(self, config: dict[str, Any]) -> None:
        super()._take(config)
        self._own_images = tempfile.TemporaryDirectory()  # the one before goes with its last user
        os.environ[CACHE_VARIABLE] = self._own_images.name
        self._loaded = LoadedInputs(self._loaded.inputs, self._loaded.device)


@contextmanager
def unshared_images() -> Iterator[None]:
    """Lets every trial inside the block decode its images."""
    shared = worker.StagedTrial
    worker.StagedTrial = UnsharedImagesTrial  # type: ignore[misc]
    try:
        yield
    finally:
        worker.StagedTrial = shared  # type: ignore[misc]

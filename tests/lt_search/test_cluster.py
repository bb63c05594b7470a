from __future__ import annotations

import pytest

from lt_search.cluster import TrialResources, fit


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "trials"),
    [
        (8, 0, TrialResources(1, 0), 8),
        (8, 0, TrialResources(3, 0), 2),
        (8, 0, TrialResources(1, 1), 0),
        (8, 2, TrialResources(1, 1), 2),
        (8, 2, TrialResources(1, 0.5), 4),
        (8, 2, TrialResources(1, 0.3), 6),
        (8, 4, TrialResources(1, 2), 2),
        (2, 4, TrialResources(1, 1), 2),
    ],
)
def test_trials_that_fit(cpus: int, gpus: int, each: TrialResources, trials: int) -> None:
    assert fit({"CPU": cpus, "GPU": gpus}, each) == trials

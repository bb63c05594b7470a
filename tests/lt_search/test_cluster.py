from __future__ import annotations

import os

import pytest
import ray

from lt_search.cluster import TrialResources, cores_given, fit, ray_cluster
from lt_search.errors import MachineError


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


def test_a_process_held_to_fewer_cores_tells_ray_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 9}, raising=False)
    assert cores_given() == 3


def test_a_process_with_all_cores_leaves_the_count_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert cores_given() is None


def test_a_ray_that_does_not_start_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(MachineError) as found, ray_cluster(None):
        pass
    assert str(found.value) == "Ray did not start on this machine: The current node timed out during startup."

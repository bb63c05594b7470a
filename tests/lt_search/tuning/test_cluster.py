from __future__ import annotations

import os

import pytest
import ray
import torch
from ray._private.utils import get_num_cpus

from lt_search.errors import MachineError
from lt_search.tuning.cluster import (
    TrialResources,
    available_resources,
    cores_given,
    max_parallel_trials,
    ray_cluster,
    trials_that_fit,
)


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
    assert trials_that_fit({"CPU": cpus, "GPU": gpus}, each) == trials


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "most", "trials"),
    [
        (32, 1, TrialResources(1, 1), None, 1),
        (2, 0, TrialResources(1, 0), 64, 2),
        (8, 0, TrialResources(1, 0), 3, 3),
        (8, 0, TrialResources(16, 0), None, 1),
    ],
)
def test_as_many_run_at_a_time_as_fit_and_are_wanted(
    cpus: int, gpus: int, each: TrialResources, most: int | None, trials: int
) -> None:
    assert max_parallel_trials({"CPU": cpus, "GPU": gpus}, each, most) == trials


def _machine(monkeypatch: pytest.MonkeyPatch, cores: int, usable: int, quota: float | None, gpus: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    monkeypatch.setattr(ray._private.utils, "_get_docker_cpus", lambda: quota)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("cores", "usable", "quota", "counted"), [(8, 8, None, 8), (8, 3, None, 3), (8, 8, 2.0, 2), (8, 8, 2.5, 2)]
)
def test_without_a_cluster_there_is_what_ray_would_find(
    monkeypatch: pytest.MonkeyPatch, cores: int, usable: int, quota: float | None, counted: int
) -> None:
    _machine(monkeypatch, cores, usable, quota, gpus=2)
    assert available_resources() == {"CPU": counted, "GPU": 2}
    assert not ray.is_initialized(), "counting starts nothing"


def test_a_connected_cluster_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, 2, 2, None, gpus=0)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 48.0, "GPU": 4.0})
    assert available_resources() == {"CPU": 48, "GPU": 4}


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


def test_rays_private_count_of_cpus_exists_and_counts_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """No public count knows containers: the upper bound of Ray's version is raised only where this still passes."""
    count = get_num_cpus(override_docker_cpu_warning=True)
    cores = os.cpu_count() or 1
    assert count == int(count)
    assert 1 <= count <= cores
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    assert get_num_cpus(override_docker_cpu_warning=True) == cores

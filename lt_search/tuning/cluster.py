"""Ray clusters: how Ray is started or connected to, and how many trials fit on its resources."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lt_search.data.workers import usable_cores
from lt_search.errors import MachineError, Problem, UserError

CONNECT_SECONDS = 5.0
"""Longest wait for a cluster's address to answer."""

_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they cost five times a report, and repeat our own logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C and SIGTERM are handled alike, by us
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # else a searcher is asked for one pending trial at a time
    "TUNE_RESULT_BUFFER_LENGTH": "1",  # a rung must decide before the next step is trained
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # Ray's own experiment state is never used
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class TrialResources:
    """What one trial takes."""

    cpus: int = 1
    """CPU cores; also the threads that torch uses."""
    gpus: float = 0.0
    """GPUs; a fraction lets trials share one."""

    @property
    def device(self) -> str:
        """The kind of device that torch computes on."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connects to a cluster, or starts Ray on this machine and stops it again.

    Args:
        address: `auto`, `HOST:PORT`, or None for this machine alone.

    Raises:
        UserError: if there is no cluster at the address.
        MachineError: if Ray does not start here, as on a machine that has no core to spare for minutes.
    """
    for name, value in _TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    check_address(address)
    try:
        ray.init(
            address=address or "local",
            num_cpus=cores_given() if address is None else None,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except Exception as error:  # Ray's own start raises nothing more special
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise MachineError(f"Ray did not start on this machine: {reason}") from error
        raise UserError(_no_cluster(address, reason)) from error
    try:
        yield
    finally:
        ray.shutdown()


def cores_given() -> int | None:
    """Cores that this process may use, where a batch system or `taskset` gave it fewer than the machine has.

    Ray counts all of the machine's. None: no such limit, and Ray's own count holds, which knows containers.
    """
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or cores) else None


def check_address(address: str | None) -> None:
    """Raises `UserError` for a HOST:PORT where nothing listens; Ray itself would try it for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(_no_cluster(str(address), str(error))) from error


def _no_cluster(address: str, reason: str) -> Problem:
    return Problem(
        "--address",
        f"no Ray cluster answers at {address!r}: {reason}",
        "start one with `ray start --head`, or leave --address out to use this machine",
    )


def available_resources() -> Mapping[str, float]:
    """All CPUs and GPUs of the connected cluster, nodes that joined later included.

    Without a connection, what Ray would find on this machine, which takes no start of it to know.
    """
    import ray

    if ray.is_initialized():
        return dict(ray.cluster_resources())
    from ray._private.utils import get_num_cpus  # respects the limits of containers; no public function does
    from torch.cuda import device_count

    cores = cores_given()
    return {"CPU": get_num_cpus(override_docker_cpu_warning=True) if cores is None else cores, "GPU": device_count()}


def has_gpu(there: Mapping[str, float]) -> bool:
    """Whether a trial can have a GPU of its own."""
    return there.get("GPU", 0) >= 1


def trials_that_fit(there: Mapping[str, float], each: TrialResources) -> int:
    """How many trials fit on a cluster's resources at once. A share of a GPU is never put together from several."""
    by_cpu = int(there.get("CPU", 0) // each.cpus)
    if each.gpus == 0:
        return by_cpu
    gpus = int(there.get("GPU", 0))
    by_gpu = gpus * int(1 / each.gpus) if each.gpus < 1 else int(gpus // each.gpus)
    return min(by_cpu, by_gpu)


def max_parallel_trials(there: Mapping[str, float], each: TrialResources, most: int | None) -> int:
    """How many trials of a search run at once: as many as fit, or `most`, but one at least."""
    there_fit = max(1, trials_that_fit(there, each))
    return there_fit if most is None else min(there_fit, most)


def choose_resources(cpus: int, gpus: str, there: Mapping[str, float]) -> TrialResources:
    """The resources of a trial, `--gpus-per-trial auto` resolved: one GPU if the cluster has any.

    Raises:
        UserError: if no trial fits on these resources.
    """
    amount = (1.0 if has_gpu(there) else 0.0) if gpus == "auto" else float(gpus)
    each = TrialResources(cpus, amount)
    if trials_that_fit(there, each) < 1:
        what = f"a trial takes {cpus} CPUs and {amount:g} GPUs, but the cluster has {there.get('CPU', 0):g} CPUs and "
        raise UserError(
            Problem(
                "--cpus-per-trial, --gpus-per-trial",
                f"{what}{there.get('GPU', 0):g} GPUs in all",
                "ask for less, or connect to a larger cluster with --address",
            )
        )
    return each

"""Provenance of results: versions, code and machine. Kept with every result, and never part of what decides it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RUN_ID = "id"
"""Key of the id of a run."""

CPU_INFO = Path("/proc/cpuinfo")


def provenance() -> dict[str, Any]:
    """Versions, code and machine, for people; and an id, since a later run may have the same name."""
    names = ("lt-search", "torch", "torchvision", "ray", "optuna", "numpy", "scikit-learn")
    return {
        RUN_ID: uuid.uuid4().hex,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": {name: _version(name) for name in names},
        "git": _git_commit(),
    }


def machine(device: str) -> dict[str, str]:
    """The model of a processor and the library versions that decide the last bits of what it computes.

    Args:
        device: a torch device type, `cpu` or `cuda`; of several GPUs, the current one is named.
    """
    return {
        "processor": _cpu_model() if device == "cpu" else _gpu_model(),
        "python": platform.python_version(),
        **{name: _version(name) or "" for name in ("torch", "numpy")},
    }


def _gpu_model() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def _cpu_model() -> str:
    try:
        lines = CPU_INFO.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this file belongs to; None where git does not track it, as in site-packages."""
    file = Path(__file__).resolve()
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=12") or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

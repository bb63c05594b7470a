"""Where a result comes from: versions, code and machine. Kept with every result, and no part of what decides it."""

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


def provenance() -> dict[str, Any]:
    """Versions, code and machine, for people; and an id, since another run may come to have the same name."""
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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip() or None

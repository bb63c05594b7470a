"""Number of decoding threads, and a progress bar."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def usable_cores() -> int:
    """The cores that this process may use, if the system reports them; otherwise all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(shown: bool) -> Progress:
    """A progress bar on standard error; hidden if not `shown` or not on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, disable=not (shown and console.is_terminal), transient=True)

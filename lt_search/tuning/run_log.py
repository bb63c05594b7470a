"""The log of a run, `search.log`, and warnings that are shown as well."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from lt_search.storage.files import FolderStore

LOG = "search.log"


class RunLog:
    """Writes timed lines into a run's `search.log`.

    Args:
        store: the run's files.
        console: where warnings are shown; None: in the log alone.
    """

    def __init__(self, store: FolderStore, console: Console | None = None) -> None:
        self._store = store
        self._console = console

    def write(self, text: str) -> None:
        """Adds a line to the log."""
        self._store.append_line(LOG, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")

    def warn(self, text: str) -> None:
        """Adds a warning to the log and shows it."""
        self.write(f"warning: {text}")
        if self._console is not None:
            self._console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)

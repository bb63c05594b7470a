"""What several benchmarks need: searches that were not cut off, and the code that made what is kept."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lt_search.config.options import RunOptions, SpecOptions

TOP = Path(__file__).parent.parent


def whole_search(options: SpecOptions, how: RunOptions) -> None:
    """A search that says nothing, and that counts only if it ended by itself or with its time.

    Raises:
        KeyboardInterrupt: it was interrupted, of which `search` itself only tells by its exit code.
        RuntimeError: it failed; with what it said.
    """
    from rich.console import Console

    from lt_search.errors import ExitCode
    from lt_search.tuning.search import search

    said = io.StringIO()
    code = search(options, how, Console(file=said, width=200))
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code != ExitCode.DONE:
        raise RuntimeError(f"a search ended with exit code {int(code)}:\n{said.getvalue()}")


@cache
def code_digest(*more: Path) -> str:
    """Of all code and spaces that a search is made of, and of more files."""
    searched = (path for folder in ("lt_search", "trainers", "search_spaces") for path in (TOP / folder).rglob("*.*"))
    files = sorted(path for path in searched if path.suffix in {".py", ".yaml"})
    return hashlib.blake2b(b"\0".join(path.read_bytes() for path in [*files, *more]), digest_size=8).hexdigest()

"""Plain lines of text on a console."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def printer(console: Console) -> Callable[[str], None]:
    """A function that prints a line as it is: no colours, no markup, no wrapping that would break a path in two."""
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)

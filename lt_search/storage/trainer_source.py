"""The code of a trainer of the user's own, who may edit it at any moment."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache

OUR_TRAINERS = "trainers"
"""The package whose trainers' `code_version` is raised with every change that moves results."""


@cache
def source_digest(trainer: type[object]) -> str | None:
    """A digest of the file that defines a trainer of the user's own, who may forget to raise its `code_version`.

    It is of the code that this process has loaded: asked once, soon after that, and kept, since the file may be edited
    while a search runs. None for a built-in trainer, and for one that has no file.
    """
    if trainer.__module__.partition(".")[0] == OUR_TRAINERS:
        return None
    try:
        text = inspect.getsource(inspect.getmodule(trainer) or trainer)
    except (OSError, TypeError):
        return None  # typed into an interpreter
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

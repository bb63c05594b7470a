"""Digest of the source of a user's own trainer, which may be edited at any moment."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache

BUILT_IN = "trainers"
"""The package of the built-in trainers, whose `code_version` is raised with every change that affects results."""


@cache
def source_digest(trainer: type[object]) -> str | None:
    """A digest of the file that defines a user's own trainer, whose `code_version` may not be raised on an edit.

    It is of the code that this process has loaded: computed once, soon after loading, and cached, since the file may be
    edited while a search runs. None for a built-in trainer, and for one without a source file.
    """
    if trainer.__module__.partition(".")[0] == BUILT_IN:
        return None
    try:
        text = inspect.getsource(inspect.getmodule(trainer) or trainer)
    except (OSError, TypeError):
        return None  # defined in an interactive session
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

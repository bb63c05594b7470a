"""User errors that are collected and reported together, and the exit codes of all commands."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One mistake in the user's input."""

    place: str
    """Where it is: an option, a file and line, a field of a space."""
    what: str
    """What is wrong, with the offending value and the rule it breaks."""
    fix: str = ""
    """What to do about it; may be empty where `what` already says it."""

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" + (f"\n    fix: {self.fix}" if self.fix else "")


class UserError(Exception):
    """Input that cannot be used. The command line prints it and exits with code 2.

    Args:
        problems: every mistake found; never empty.
    """

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise ValueError("a UserError needs at least one problem")
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class MachineError(Exception):
    """A failure of the machine and not of the input or the run, such as Ray's start. Exit code 1, no traceback."""


class Problems:
    """Collects mistakes while checks go on, so that the user sees all of them in one message."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, place: str, what: str, fix: str = "") -> None:
        """Records one mistake."""
        problem = Problem(place, what, fix)
        if problem not in self._found:
            self._found.append(problem)

    def has(self, *places: str) -> bool:
        """Whether a mistake was found at one of these places."""
        return any(problem.place in places for problem in self._found)

    def extend(self, error: UserError) -> None:
        """Adds all mistakes of an error raised by a nested check."""
        for problem in error.problems:
            self.add(problem.place, problem.what, problem.fix)

    def collect(self, check: Callable[[], T]) -> T | None:
        """What `check` returns; None, with its mistakes recorded, if it raises `UserError`."""
        try:
            return check()
        except UserError as error:
            self.extend(error)
            return None

    def raise_if_any(self) -> None:
        """Raises `UserError` with everything found so far, if anything was."""
        if self._found:
            raise UserError(*self._found)


def did_you_mean(name: str, known: Iterable[str], listing: str = "") -> str:
    """The fix for an unknown name: the nearest known one, else all of them.

    Args:
        name: as the user gave it.
        known: the valid names.
        listing: what to say instead of a list of all names.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near and (_ratio(name, near[0]) >= NEAR or sorted(name) == sorted(near[0])):
        return f"did you mean {near[0]}?"
    return listing or (f"use one of {', '.join(names)}" if names else "none exist")


NEAR = 0.75
"""Least similarity (`difflib`) of a name that is suggested; transposed letters of short names are less similar."""


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


class ExitCode(IntEnum):
    """Exit codes of all commands."""

    DONE = 0
    FAILED = 1
    """The run failed: no trial finished, or the storage broke."""
    BAD_INPUT = 2
    """The user's input is wrong; one message named every mistake."""
    INTERRUPTED = 130
    """Ended by Ctrl-C or SIGTERM; the run can be resumed."""

"""What the commands tell the shell."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of all commands."""

    DONE = 0
    FAILED = 1
    """The run failed: no trial finished, or the storage broke."""
    BAD_INPUT = 2
    """What the user gave cannot be used; one message named every mistake."""
    INTERRUPTED = 130
    """Ended by Ctrl-C or SIGTERM; the run can be resumed."""

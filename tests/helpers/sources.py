"""Image sources that show how they are used."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.table import ImageHeader, Part, UnreadableImageError, digest


@dataclass(frozen=True)
class PlainImages:
    """Image i is filled with i; each decoded image leaves a byte in a file, and some are unreadable or fatal."""

    log: Path
    unreadable: tuple[int, ...] = ()
    fatal: int = -1
    """Decoding this image kills the process."""
    key: str = "pixels"

    def channels(self) -> int:
        return 1

    def header(self, index: int) -> ImageHeader:
        return ImageHeader("L", 8, 8)

    def decode(self, index: int, size: int) -> npt.NDArray[np.uint8]:
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.unreadable:
            raise UnreadableImageError("broken")
        with self.log.open("ab") as file:
            file.write(b".")
        return np.full((1, size, size), index % 256, np.uint8)

    def check(self, index: int) -> str | None:
        return "broken" if index in self.unreadable else None

    def pixels_key(self) -> str:
        return self.key

    @property
    def decoded(self) -> int:
        """How many images were decoded, by any process."""
        return self.log.stat().st_size if self.log.exists() else 0


def plain_part(source: PlainImages, n: int) -> Part:
    ids = tuple(f"i{index}" for index in range(n))
    return Part("train", ids, np.arange(n) % 2, ids, source, digest(ids))

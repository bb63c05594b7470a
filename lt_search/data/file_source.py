"""Image files as the source of a split's images, and their inspection without decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.csv_cells import listing
from lt_search.data.image_files import GREY_MODES, read_header, read_image
from lt_search.data.table import ImageHeader, UnreadableImageError, digest
from lt_search.errors import Problems

_THREADS = 8


@dataclass(frozen=True)
class FileState:
    """Size, time of change and colour of an image file, known without decoding it."""

    size: int
    """In bytes."""
    changed_ns: int
    """Time of the last change, in nanoseconds."""
    grey: bool


@dataclass(frozen=True)
class FileImages:
    """Images in files: the `ImageSource` of a split read from a table. Image i may be several views, a file each."""

    folder: Path
    names: tuple[str, ...]
    """(V N,) paths from `folder`: the first views of all images, then the second ones."""
    n_channels: int
    """Of one view."""
    key: str
    n_views: int = 1
    sizes: tuple[int, ...] = ()
    """(V N,) of the files, in bytes."""

    @classmethod
    def of(
        cls, folder: Path, names: tuple[str, ...], states: Sequence[FileState], grey: bool, n_views: int = 1
    ) -> FileImages:
        """The files of one split; `grey` is whether every file of the data set is grey."""
        sizes = tuple(state.size for state in states)
        changes = (state.changed_ns for state in states)
        n_channels = 1 if grey else 3
        key = digest((str(folder), n_channels, *names, *sizes, *changes))
        return cls(folder, names, n_channels, key, n_views, sizes)

    def channels(self) -> int:
        """1 if every file of the data set is grey, otherwise 3; times the number of views."""
        return self.n_channels * self.n_views

    def header(self, index: int) -> ImageHeader:
        """Mode and size as the file states them; of several views, those of the smallest."""
        headers = [read_header(path) for path in self.paths(index)]
        return min(headers, key=lambda header: min(header.width, header.height))

    def decode(self, index: int, size: int) -> npt.NDArray[np.uint8]:
        """(channels, size, size) uint8, by the rules of `lt_search.data.image_files`, view after view."""
        return np.concatenate([read_image(path, self.n_channels, size) for path in self.paths(index)])

    def check(self, index: int) -> str | None:
        """Decodes the file of every view at its own size."""
        for path in self.paths(index):
            try:
                read_image(path, self.n_channels)
            except UnreadableImageError as error:
                return str(error) if self.n_views == 1 else f"{path.name}: {error}"
        return None

    def pixels_key(self) -> str:
        """Hash of folder, names, file sizes and times of the last change."""
        return self.key

    def files(self) -> Iterator[tuple[int, Path]]:
        """The files of all views of all images, each with its size."""
        return zip(self.sizes, (self.folder / name for name in self.names), strict=True)

    def paths(self, index: int) -> list[Path]:
        """The file of each view of image `index`."""
        return [self.folder / name for name in self.names[index :: self._images]]

    def sizes_of(self, index: int) -> tuple[int, ...]:
        """The size of the file of each view of image `index`."""
        return self.sizes[index :: self._images]

    @property
    def _images(self) -> int:
        return len(self.names) // self.n_views


@dataclass(frozen=True)
class Inspection:
    """The outcome of looking at files without decoding them."""

    states: tuple[FileState, ...]
    """One per file, in order, where nothing is missing or unreadable."""
    missing: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Names, each with the reason."""


def inspect_files(folder: Path, names: Sequence[str], grey: bool | None = None) -> Inspection:
    """Looks at the size, the time of change and, where that is needed, the header of every file.

    Args:
        folder: what the names are relative to.
        names: (N,) paths from `folder`.
        grey: whether all files are grey, if known: no file is opened then, which is many times faster.
    """

    def is_grey(path: Path) -> bool:
        return read_header(path).mode in GREY_MODES if grey is None else grey

    def inspect(name: str) -> FileState | FileNotFoundError | UnreadableImageError:
        path = folder / name
        try:
            state = path.stat()
            return FileState(state.st_size, state.st_mtime_ns, is_grey(path))
        except (FileNotFoundError, NotADirectoryError):
            return FileNotFoundError(name)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return UnreadableImageError(f"{name} ({reason})")

    # Threads, since on a network drive the time goes into waiting.
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(inspect, names))
    return Inspection(
        states=tuple(one for one in found if isinstance(one, FileState)),
        missing=tuple(str(one) for one in found if isinstance(one, FileNotFoundError)),
        unreadable=tuple(str(one) for one in found if isinstance(one, UnreadableImageError)),
    )


def inspect_images(
    folder: Path,
    names: Sequence[str],
    place: str,
    problems: Problems,
    *,
    all_missing: str,
    grey: bool | None = None,
    searched: Sequence[Path] = (),
) -> tuple[FileState, ...]:
    """The state of every file, in order, unless a file is missing or not an image, which is added to `problems`.

    Args:
        folder: what the names are relative to.
        names: (N,) paths from `folder`.
        place: the table that names them.
        problems: collects the problems.
        all_missing: what to do if not a single file exists.
        grey: see `inspect_files`.
        searched: the folders that the files may be in, where those are not just `folder`.
    """
    found = inspect_files(folder, names, grey)
    if found.missing:
        problems.add(
            place,
            f"{len(found.missing)} of {len(names)} images are missing from {listing(searched or [folder])}: "
            f"{listing(found.missing)}",
            all_missing if len(found.missing) == len(names) else "add the files, or remove their rows",
        )
    if found.unreadable:
        problems.add(
            place,
            f"{len(found.unreadable)} of {len(names)} files are not images: {listing(found.unreadable)}",
            "replace the files, or remove their rows",
        )
    return found.states

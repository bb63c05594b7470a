"""Cache of decoded images: decoded and resized once per node and size, memory-mapped, shared by all trials of the node.

Under the cache folder, `decoded/<part>-<size>-<key>.npy` holds a uint8 array (N, channels, size, size) and the `.json`
beside it the CRC-32 of every block of images; both are written to temporary files, synced and renamed, the `.json`
last, so an array without it is ignored. A `.lock` file, held while building, makes the processes of a node
build an array once. A build that is killed leaves `.part` files, which the next builder of the same array overwrites.

An array is verified when it is opened: header, file size, and the CRC of every block, or of an evenly spread sample
with the first and the last if it is larger than `VERIFIED_BYTES`. A damaged one is logged and built again. The key
holds names, sizes and times of change of the image files, so changed files are decoded anew. Arrays can be deleted at
any time; those in use stay mapped.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from lt_search.data.csv_cells import listing
from lt_search.data.table import Part, UnreadableImageError, digest
from lt_search.data.workers import progress_bar, usable_cores
from lt_search.errors import Problem, UserError
from lt_search.locks import held_after_waiting

FORMAT_VERSION = 1
"""Raised whenever a change of code changes decoded pixels or the layout of the files."""

CACHE_VARIABLE = "LT_SEARCH_CACHE"
"""Environment variable with the cache folder."""

BLOCK_BYTES = 1 << 20
"""Images are decoded, written and verified in blocks of about this size, at least one image each."""

VERIFIED_BYTES = 1 << 30
"""Of larger arrays only a sample of blocks of this size in all is verified."""

_log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """An array that exists but is damaged; the message says how."""


def cache_folder() -> Path:
    """`$LT_SEARCH_CACHE`, else `lt-search` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lt-search"


def open_images(
    part: Part,
    size: int,
    *,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> npt.NDArray[np.uint8]:
    """The images of a part, decoded at most once per node.

    Args:
        part: whose images.
        size: side of the square they are resized to, in pixels.
        cache_dir: where decoded arrays are kept; None for `cache_folder()`.
        workers: decoding threads; None for one per core that this process may use.
        progress: show a progress bar while decoding, where standard error is a terminal.

    Returns:
        (N, channels, size, size) uint8, memory-mapped and read-only, in the order of `part.ids`.

    Raises:
        UserError: images cannot be decoded (all are listed up to a limit, with the count), or the cache folder is
            full or not writable. Nothing half-written stays.
    """
    if size < 1:
        raise ValueError(f"an image size must be at least 1, not {size}")
    array = _Array(part, size, (cache_dir or cache_folder()) / "decoded")
    try:
        found = array.open_or_report()
        if found is not None:
            return found
        array.folder.mkdir(parents=True, exist_ok=True)
        with held_after_waiting(array.lock):
            found = array.open_or_report(quiet=True)
            if found is None:
                array.build(workers or usable_cores(), progress)
                found = array.open()
    except OSError as error:
        raise UserError(
            Problem(
                place=str(array.folder),
                what=f"cannot keep decoded images here: {error.strerror or error}",
                fix=f"make room for {array.gigabytes:.2f} GB, or set {CACHE_VARIABLE} to a folder that has it and "
                "that you may write to",
            )
        ) from error
    except _DamagedError as error:
        raise UserError(
            Problem(str(array.npy), f"just written and already damaged: {error}", "check the disk")
        ) from error
    return found


def pixels_checksum(part: Part, size: int, *, cache_dir: Path | None = None) -> str:
    """Checksum of all decoded images of a part that `open_images` has opened; raises `FileNotFoundError` otherwise."""
    sidecar = _Array(part, size, (cache_dir or cache_folder()) / "decoded")._read_sidecar()
    return digest((FORMAT_VERSION, *sidecar.crc32))


@dataclass(frozen=True)
class _Sidecar:
    """The content of the `.json` beside an array."""

    shape: tuple[int, ...]
    block_images: int
    crc32: tuple[int, ...]
    """Of each block of `block_images` images; the last may be shorter."""


class _Array:
    """One decoded array and its files."""

    def __init__(self, part: Part, size: int, folder: Path) -> None:
        self.part = part
        self.size = size
        self.folder = folder
        self.shape = (len(part), part.source.channels(), size, size)
        name = f"{part.name}-{size}-{digest((part.source.pixels_key(), size, FORMAT_VERSION))}"
        self.npy = folder / f"{name}.npy"
        self.json = folder / f"{name}.json"
        self.lock = folder / f"{name}.lock"
        image_bytes = int(np.prod(self.shape[1:]))
        self.block_images = max(1, BLOCK_BYTES // image_bytes)
        self.gigabytes = self.shape[0] * image_bytes / 1e9

    def blocks(self) -> list[range]:
        """The image indices of each block."""
        n = self.shape[0]
        return [range(start, min(start + self.block_images, n)) for start in range(0, n, self.block_images)]

    def open_or_report(self, quiet: bool = False) -> npt.NDArray[np.uint8] | None:
        """The array if it exists and is sound, otherwise None; a damaged one is logged."""
        try:
            return self.open()
        except FileNotFoundError:
            return None
        except _DamagedError as error:
            if not quiet:
                _log.warning("decoded images %s are damaged (%s): decoding them again", self.npy, error)
            return None

    def open(self) -> npt.NDArray[np.uint8]:
        """Maps and verifies the array. Raises `FileNotFoundError` if absent, `_DamagedError` if unsound."""
        sidecar = self._read_sidecar()
        try:
            array = np.load(self.npy, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise _DamagedError(str(error)) from error
        if array.dtype != np.uint8 or array.shape != self.shape or not array.flags.c_contiguous:
            raise _DamagedError(f"holds {array.dtype} {array.shape} instead of uint8 {self.shape}")
        expected_bytes = array.offset + array.nbytes
        if self.npy.stat().st_size != expected_bytes:
            raise _DamagedError(f"is not {expected_bytes} bytes long")
        blocks = self.blocks()
        limit = max(2, VERIFIED_BYTES // BLOCK_BYTES)
        chosen = np.unique(np.linspace(0, len(blocks) - 1, min(limit, len(blocks))).round().astype(int))
        for index in chosen:
            block = blocks[index]
            if zlib.crc32(array[block.start : block.stop].data) != sidecar.crc32[index]:
                raise _DamagedError(f"images {block.start} to {block.stop - 1} have changed")
        return cast(npt.NDArray[np.uint8], array)

    def build(self, workers: int, progress: bool) -> None:
        """Decodes all images and publishes the array; the caller holds the lock."""
        _log.info("decoding %d %s images into %s", len(self.part), self.part.name, self.npy)
        free = shutil.disk_usage(self.folder).free
        if free < self.gigabytes * 1e9:
            # Better now than after an hour of decoding; the writes below are still checked one by one.
            raise OSError(f"{free / 1e9:.2f} GB are free")
        aside_npy, aside_json = (path.with_suffix(path.suffix + ".part") for path in (self.npy, self.json))
        try:
            crc32 = self._write(aside_npy, workers, progress)
            sidecar = _Sidecar(self.shape, self.block_images, crc32)
            with aside_json.open("w", encoding="utf-8") as file:
                json.dump({"version": FORMAT_VERSION, "images": self.part.name, **asdict(sidecar)}, file)
                file.flush()
                os.fsync(file.fileno())
            self.json.unlink(missing_ok=True)
            aside_npy.replace(self.npy)
            aside_json.replace(self.json)
            _sync_folder(self.folder)
        finally:
            aside_npy.unlink(missing_ok=True)
            aside_json.unlink(missing_ok=True)

    def _write(self, path: Path, workers: int, progress: bool) -> tuple[int, ...]:
        """Writes the array block by block, in order; returns the CRC of each block."""
        crc32 = []
        unreadable: list[str] = []
        with path.open("wb") as file, progress_bar(progress) as bar:
            bar_task = bar.add_task(f"decoding {self.part.name} images", total=len(self.part))
            header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for pixels, failed in self._decoded_blocks(workers):
                # Plain writes and not a writable map: a full disk is then an error and not a bus error.
                file.write(pixels.data)
                crc32.append(zlib.crc32(pixels.data))
                unreadable += failed
                bar.advance(bar_task, len(pixels))
            file.flush()
            os.fsync(file.fileno())
        if unreadable:
            raise UserError(
                Problem(
                    place=f"the {self.part.name} images",
                    what=f"{len(unreadable)} of {len(self.part)} cannot be decoded: {listing(unreadable)}",
                    fix="replace these files, or remove their rows from the table",
                )
            )
        return tuple(crc32)

    def _decoded_blocks(self, workers: int) -> Iterator[tuple[npt.NDArray[np.uint8], list[str]]]:
        """Each block's pixels, and which of its images cannot be decoded; few blocks are in memory at a time."""
        waiting: deque[Future[tuple[npt.NDArray[np.uint8], list[str]]]] = deque()
        # Threads, since Pillow decodes and resizes without holding the interpreter's lock.
        with ThreadPoolExecutor(workers) as pool:
            for block in self.blocks():
                waiting.append(pool.submit(self._decode, block))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _decode(self, block: range) -> tuple[npt.NDArray[np.uint8], list[str]]:
        pixels = np.zeros((len(block), *self.shape[1:]), np.uint8)
        failed = []
        for row, index in enumerate(block):
            try:
                pixels[row] = self.part.source.decode(index, self.size)
            except UnreadableImageError as error:
                failed.append(f"{self.part.ids[index]} ({error})")
        return pixels, failed

    def _read_sidecar(self) -> _Sidecar:
        try:
            found = json.loads(self.json.read_text(encoding="utf-8"))
            sidecar = _Sidecar(tuple(found["shape"]), int(found["block_images"]), tuple(found["crc32"]))
        except (ValueError, LookupError, TypeError) as error:
            raise _DamagedError(f"{self.json.name} cannot be read") from error
        expected = (self.shape, self.block_images, len(self.blocks()))
        if (sidecar.shape, sidecar.block_images, len(sidecar.crc32)) != expected:
            raise _DamagedError(f"{self.json.name} describes another array")
        return sidecar


def _sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

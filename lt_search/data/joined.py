"""Concatenation of decoded image arrays without a copy, so that data sets trained on together are stored once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class JoinedImages:
    """Arrays (N_i, channels, S, S) uint8 as one of (sum of N_i, channels, S, S), without copying them.

    Supports what trainers need: `len`, `shape`, `dtype`, `ndim`, and indexing by an integer, a slice or an
    array of indices, which gives a plain array. `numpy.asarray` copies all of it into memory.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Raises `ValueError` for no array, and for images of different shapes."""
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) != 1:
            raise ValueError(f"images to join must have one shape, not {sorted(shapes)}")
        self._arrays = tuple(arrays)
        self._ends = np.cumsum([len(array) for array in arrays])
        self._rows = np.arange(self._ends[-1])
        self.shape: tuple[int, ...] = (len(self._rows), *shapes.pop())
        self.dtype = np.dtype(np.uint8)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        rows = np.asarray(self._rows[index])
        found = np.empty((*rows.shape, *self.shape[1:]), np.uint8)
        owner = np.searchsorted(self._ends, rows, side="right")
        for number, array in enumerate(self._arrays):
            own = owner == number
            if own.any():
                found[own] = array[rows[own] - (self._ends[number] - len(array))]
        return found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.uint8]:
        if copy is False:
            raise ValueError("images of several arrays cannot be one array without a copy")
        return np.concatenate(self._arrays).astype(dtype or np.uint8, copy=False)

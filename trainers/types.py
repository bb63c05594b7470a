"""Types of the values that trainers take and give: images, weights, state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

State = dict[str, Any]
"""Nested dicts and lists whose leaves are tensors, numbers, strings, booleans or None."""

Weights = Mapping[str, Tensor]
"""A state dict of plain tensors."""

Images = npt.NDArray[np.uint8]
"""(N, channels, S, S) uint8 with 1 (grey), 3 (RGB) or 3 V channels (V RGB views of an image); may be memory-mapped."""

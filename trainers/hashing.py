"""Digests of plain values and of named tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def content_hash(*parts: Any) -> str:
    """A hex digest of plain values (32 digits), independent of the order of mapping keys."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hash_tensors(tensors: Mapping[str, Any]) -> str:
    """A digest of named tensors: names, shapes, types and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        shape: Sequence[int] = array.shape
        digest.update(f"{name} {array.dtype} {tuple(shape)}".encode())
        digest.update(array.view(-1).view(_byte_type()).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()


def _byte_type() -> Any:
    import torch

    return torch.uint8

"""Text embeddings of label names, and the check of an embedding file against the data's labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from trainers.hashing import content_hash, hash_tensors
from trainers.resources import ResourceUnavailable, one_line

Pooling = Literal["cls", "eos", "mean"]
"""Pooling of a label's tokens: the first, where it represents the text, the last, or the mean of all."""

SHOWN = 10
"""Labels that a message lists."""


@dataclass(frozen=True)
class LabelEmbeddings:
    """What a text encoder makes of the labels."""

    model: str
    """Name on the hub, or the folder as it was given."""
    revision: str
    """The hub's commit; `local` for a folder."""
    pooling: Pooling
    """How token states became the embedding of a label."""
    labels: tuple[str, ...]
    """(C,) names, in the data's order."""
    tokens: Tensor
    """(M, D') float32: token states of one sentence with all labels, or one a label where that is too long."""
    embeddings: Tensor
    """(C, D') float32: one embedding a label."""
    identity: str
    """Digest of what decides the tensors (weights, token ids, pooling), equal on machines that round differently."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"tokens": self.tokens, "embeddings": self.embeddings}

    def metadata(self) -> dict[str, str]:
        """What a file of the tensors says of them: model, revision, pooling, labels and a checksum."""
        return {
            "model": self.model,
            "revision": self.revision,
            "pooling": self.pooling,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "checksum": _checksum(self.tensors(), self.labels),
        }


FIX = "write one for this data with `lt-search data embed-labels`"


def check_file(path: Path, labels: Sequence[str]) -> None:
    """Refuses a file made for other labels, or changed since. A file that lists no labels is not checked."""
    if path.suffix != ".safetensors":
        return
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if "labels" not in metadata:
        return
    try:
        found = [str(label) for label in json.loads(metadata["labels"])]
    except (ValueError, TypeError) as error:
        raise ResourceUnavailable(f"{path}: its list of labels cannot be read: {one_line(error)}", FIX) from error
    if metadata.get("checksum") != _checksum(tensors, found):
        raise ResourceUnavailable(f"{path}: its checksum is wrong: it was changed after it was written", FIX)
    if found != list(labels):
        raise ResourceUnavailable(f"{path}: its labels are not the data's: {_differences(found, labels)}", FIX)


def _differences(found: Sequence[str], wanted: Sequence[str]) -> str:
    only_found = [label for label in found if label not in wanted]
    only_wanted = [label for label in wanted if label not in found]
    if only_found or only_wanted:
        parts = (("only in the file", only_found), ("only in the data", only_wanted))
        return "; ".join(f"{where}: {_listed(names)}" for where, names in parts if names)
    if len(found) != len(wanted):
        return f"the file has {len(found)}, some of them twice"
    moved = [f"{one} in place of {other}" for one, other in zip(found, wanted, strict=True) if one != other]
    return f"the same names in another order: {_listed(moved)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _checksum(tensors: Mapping[str, Tensor], labels: Sequence[str]) -> str:
    return content_hash(hash_tensors(tensors), list(labels))

"""Label names as tensors of a frozen text encoder: made, kept in a file, and checked against the data's labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from lt_search.address import content_hash, hash_tensors
from lt_search.errors import Problem, UserError
from lt_search.store import FolderStore
from trainers.base import Resource, Weights
from trainers.resources import ResourceUnavailable, one_line, resolve

Pooling = Literal["cls", "eos", "mean"]
"""What embeds a label: its first token where that stands for the whole text, its last, or the mean of all."""

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

    def save(self, path: Path) -> None:
        """Writes a .safetensors file, atomically, with the model, its revision, pooling, labels and a checksum."""
        from safetensors.torch import save_file

        metadata = {
            "model": self.model,
            "revision": self.revision,
            "pooling": self.pooling,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "checksum": _checksum(self.tensors(), self.labels),
        }
        store = FolderStore(path.parent)
        store.write_with(path.name, lambda partial: save_file(self.tensors(), partial, metadata))


def resolve_text(resource: Resource, labels: Sequence[str]) -> tuple[Weights, str, str]:
    """Prompt tokens or label embeddings for the data's labels.

    Args:
        resource: whose source is a file of tensors, the folder of a text encoder, or its name on the hub.
        labels: (C,) names of the data, in its order.

    Returns:
        The tensor by the resource's name, a digest that tells it from others, and a line that says where it is from.

    Raises:
        ResourceUnavailable: it cannot be had, or is one of other labels.
    """
    path = Path(resource.source)
    if path.is_dir() or resource.published:
        from lt_search.text_encoder import encode_labels

        made = encode_labels(resource.source, tuple(labels))
        tensor = made.tensors()[resource.name]
        note = f"{len(labels)} labels encoded by {made.model}, revision {made.revision}"
        note += f", {made.pooling} pooling" if resource.kind == "label_embeddings" else f": {len(tensor)} tokens"
        return {resource.name: tensor}, content_hash(made.identity, resource.name), f"{resource.field}: {note}"
    tensors = resolve(resource)
    _check_file(path, labels)
    if resource.kind == "label_embeddings" and len(tensors[resource.name]) != len(labels):
        count = len(tensors[resource.name])
        raise ResourceUnavailable(f"{path}: {count} label embeddings, but the data has {len(labels)} labels", _FIX)
    return tensors, hash_tensors(tensors), f"{resource.field}: {path}"


def write_label_embeddings(source: str, labels: Sequence[str], pooling: Pooling | None, path: Path) -> str:
    """Encodes labels and writes the file; returns a line that says what is in it.

    Raises:
        UserError: the encoder cannot be had, or the file cannot be written.
    """
    from lt_search.text_encoder import encode_labels

    try:
        made = encode_labels(source, tuple(labels), pooling)
        made.save(path)
    except ResourceUnavailable as error:
        raise UserError(Problem("--model", str(error), error.fix or "give the folder of a text encoder")) from error
    except OSError as error:
        raise UserError(Problem("--output", f"{path} cannot be written: {error.strerror}")) from error
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in made.tensors().items())
    return f"wrote {path}: {shapes} of {made.model}, revision {made.revision}, {made.pooling} pooling"


_FIX = "write one for this data with `lt-search data embed-labels`"


def _check_file(path: Path, labels: Sequence[str]) -> None:
    """Refuses a file that was made of other labels, or changed since; one that names no labels is the user's word."""
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
        raise ResourceUnavailable(f"{path}: its list of labels cannot be read: {one_line(error)}", _FIX) from error
    if metadata.get("checksum") != _checksum(tensors, found):
        raise ResourceUnavailable(f"{path}: its checksum is wrong: it was changed after it was written", _FIX)
    if found != list(labels):
        raise ResourceUnavailable(f"{path}: its labels are not the data's: {_differences(found, labels)}", _FIX)


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

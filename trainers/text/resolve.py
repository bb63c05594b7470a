"""Prompt tokens and label embeddings for a data set's labels, from a file, a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainers.base import Resource, Weights
from trainers.hashing import content_hash, hash_tensors
from trainers.resources import ResourceUnavailable, resolve
from trainers.text.encoder import encode_labels
from trainers.text.label_embeddings import FIX, check_file


def resolve_text(resource: Resource, labels: Sequence[str]) -> tuple[Weights, str, str]:
    """Prompt tokens or label embeddings for the data's labels.

    Args:
        resource: whose source is a file of tensors, the folder of a text encoder, or its name on the hub.
        labels: (C,) names of the data, in its order.

    Returns:
        The tensor by the resource's name, its digest, and a line that says where it is from.

    Raises:
        ResourceUnavailable: it cannot be read or fetched, or belongs to other labels.
    """
    path = Path(resource.source)
    if path.is_dir() or resource.published:
        made = encode_labels(resource.source, tuple(labels))
        tensor = made.tensors()[resource.name]
        note = f"{len(labels)} labels encoded by {made.model}, revision {made.revision}"
        note += f", {made.pooling} pooling" if resource.kind == "label_embeddings" else f": {len(tensor)} tokens"
        return {resource.name: tensor}, content_hash(made.identity, resource.name), f"{resource.field}: {note}"
    tensors = resolve(resource)
    check_file(path, labels)
    if resource.kind == "label_embeddings" and len(tensors[resource.name]) != len(labels):
        count = len(tensors[resource.name])
        raise ResourceUnavailable(f"{path}: {count} label embeddings, but the data has {len(labels)} labels", FIX)
    return tensors, hash_tensors(tensors), f"{resource.field}: {path}"

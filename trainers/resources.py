"""Reads the tensor files a config needs: weights, prompt tokens, embeddings of labels. Never unpickles objects."""

from __future__ import annotations

import json
import pickle
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.base import Resource

TIMEOUT_S = 15.0
"""Longest wait, in seconds, for the server of published weights to answer before it counts as out of reach."""

PUBLISHED = "imagenet"


class ResourceUnavailable(RuntimeError):  # noqa: N818 - says what it is
    """A tensor file cannot be had; the message is one line with the reason."""


def resolve(resource: Resource, classes: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors of `resource` on CPU, by name; prompt tokens as {"tokens": (M, D')}.

    `imagenet` weights come from torch.hub's cache folder (`TORCH_HOME`), or are downloaded into it. Local files are
    .safetensors, or .pt / .pth read with `weights_only`. Embeddings of labels are {"embeddings": (C, D')}, one row for
    each of `classes`, the data's labels, found by name in the file. Raises `ResourceUnavailable`.
    """
    if resource.kind == "backbone" and resource.source == PUBLISHED:
        return _published(resource.name)
    if resource.kind == "label_embeddings":
        return {"embeddings": _label_embeddings(Path(resource.source), classes)}
    tensors = _read(Path(resource.source))
    return {"tokens": _tokens(tensors, resource.source)} if resource.kind == "prompt" else tensors


def _published(name: str) -> dict[str, Tensor]:
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError) as error:
        raise ResourceUnavailable(f"there are no published weights for backbone {name!r}") from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        if not cached.exists():
            # torch.hub downloads without a time limit; a server that does not answer this does not answer that.
            urllib.request.urlopen(urllib.request.Request(weights.url, method="HEAD"), timeout=TIMEOUT_S).close()
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ResourceUnavailable(
            f"the published weights of {name} cannot be loaded from {weights.url} or {cached}: {_one_line(reason)}"
        ) from error
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ResourceUnavailable(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ResourceUnavailable(f"{path}: tensor files are .safetensors, .pt or .pth")
    except ResourceUnavailable:
        raise
    except Exception as error:  # Damaged files raise whatever their parser trips over.
        raise ResourceUnavailable(f"{path}: cannot be read as tensors: {_one_line(error)}") from error
    if isinstance(content, Tensor):
        return {"tokens": content}
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ResourceUnavailable(f"{path}: holds something else than named tensors")
    return {str(key): value for key, value in content.items()}


def _tokens(tensors: dict[str, Tensor], source: str) -> Tensor:
    if len(tensors) != 1:
        raise ResourceUnavailable(f"{source}: prompt tokens are one tensor, but the file has {len(tensors)}")
    (tokens,) = tensors.values()
    if tokens.dim() != 2 or not tokens.is_floating_point() or not len(tokens):
        raise ResourceUnavailable(
            f"{source}: prompt tokens are a float tensor (tokens, width), not {tokens.dtype} {tuple(tokens.shape)}"
        )
    return tokens.float()


def _label_embeddings(path: Path, classes: Sequence[str] | None) -> Tensor:
    """The row of each class, (C, D'), of a file whose metadata names its rows."""
    if classes is None:
        raise ResourceUnavailable(
            f"{path}: embeddings are found by the names of the data's labels, which are not known"
        )
    if path.suffix != ".safetensors":
        raise ResourceUnavailable(f"{path}: embeddings of labels are a .safetensors file that names its labels")
    tensors = _read(path)
    embeddings = tensors.get("embeddings")
    if embeddings is None or embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise ResourceUnavailable(f"{path}: has no float tensor `embeddings` (labels, width)")
    names = _named_rows(path)
    if len(names) != len(embeddings) or len(set(names)) != len(names):
        raise ResourceUnavailable(
            f"{path}: names {len(names)} labels ({len(set(names))} different ones) for {len(embeddings)} rows"
        )
    row_of = {name: row for row, name in enumerate(names)}
    missing = [name for name in classes if name not in row_of]
    if missing:
        raise ResourceUnavailable(
            f"{path}: holds no embedding of the data's label{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"its labels are {', '.join(names)}"
        )
    return embeddings[[row_of[name] for name in classes]].float()


def _named_rows(path: Path) -> list[str]:
    """The labels that a file's metadata names, in the order of its rows."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("labels", "")
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ResourceUnavailable(f"{path}: its metadata has no `labels`, a JSON list of one name per row")
    return names


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text[:200] or type(reason).__name__

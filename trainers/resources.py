"""Loading of the tensors that a config needs: published weights, local files, text tensors. Never unpickles objects."""

from __future__ import annotations

import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.base import Resource

TIMEOUT_S = 15.0
"""Longest wait, in seconds, for the server of published weights to answer before it counts as unreachable."""

PUBLISHED = "imagenet"


class ResourceUnavailable(RuntimeError):  # noqa: N818 - says what it is
    """Tensors are unavailable; the message is the reason in one line, `fix` what to do about it (may be empty)."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


class PublishedUnavailable(ResourceUnavailable):
    """Published tensors cannot be fetched here, which is not the user's mistake: a search may go on without them."""


def resolve(resource: Resource) -> dict[str, Tensor]:
    """The tensors of `resource` on CPU, by name; text as {"tokens": (M, D')} or {"embeddings": (C, D')}, float32.

    `imagenet` weights come from torch.hub's cache folder (`TORCH_HOME`), or are downloaded into it. Local files are
    .safetensors, or .pt / .pth read with `weights_only`. Raises `ResourceUnavailable`.
    """
    if resource.kind == "backbone" and resource.source == PUBLISHED:
        return _published(resource.name)
    tensors = _read(Path(resource.source))
    return tensors if resource.kind == "backbone" else {resource.name: _text(tensors, resource)}


def _published(name: str) -> dict[str, Tensor]:
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError) as error:
        raise PublishedUnavailable(f"there are no published weights for backbone {name!r}") from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        if not cached.exists():
            # torch.hub downloads without a time limit; a server that does not answer this does not answer that.
            urllib.request.urlopen(urllib.request.Request(weights.url, method="HEAD"), timeout=TIMEOUT_S).close()
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise PublishedUnavailable(
            f"the published weights of {name} cannot be loaded from {weights.url} or {cached}: {one_line(reason)}"
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
        raise ResourceUnavailable(f"{path}: cannot be read as tensors: {one_line(error)}") from error
    if isinstance(content, Tensor):
        return {"tokens": content}
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ResourceUnavailable(f"{path}: does not hold named tensors")
    return {str(key): value for key, value in content.items()}


def _text(tensors: dict[str, Tensor], resource: Resource) -> Tensor:
    """The tensor named like the resource; the only one of a file, whatever its name."""
    what, rows = ("prompt tokens", "tokens") if resource.kind == "prompt" else ("label embeddings", "labels")
    if resource.name not in tensors and len(tensors) != 1:
        raise ResourceUnavailable(
            f"{resource.source}: no tensor is named {resource.name}; {what} are one tensor, but the file has "
            f"{len(tensors)}"
        )
    found = tensors[resource.name] if resource.name in tensors else next(iter(tensors.values()))
    if found.dim() != 2 or not found.is_floating_point() or not found.numel():
        raise ResourceUnavailable(
            f"{resource.source}: {what} are a float tensor ({rows}, width), not {found.dtype} {tuple(found.shape)}"
        )
    return found.float()


def one_line(reason: object) -> str:
    """An error's message, shortened to one line."""
    text = " ".join(str(reason).split())
    return text[:200] or type(reason).__name__

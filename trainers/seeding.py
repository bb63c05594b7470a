"""Torch generators seeded by position (seed, stage, step), never by earlier draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainers.seeds import derive_seed


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on `device`, seeded by `derive_seed(*parts)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Seeds torch's global generators inside the block (dropout reads them) and restores them afterwards.

    Those of the CPU and, where `device` is a GPU, of that GPU; `torch.manual_seed` would seed every GPU of the process.
    """
    seed, cuda = derive_seed(*parts), device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield

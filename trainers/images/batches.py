"""Order of the training images of a step, a pure function of (seed, stage, step), and loading of batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.seeding import generator
from trainers.types import Images

Indices = npt.NDArray[np.int64]


def step_order(n: int, per_step: int | None, seed: int, stage: int, step: int) -> Indices:
    """Indices of the images of step `step`: positions [step * m, (step + 1) * m) of an endless sequence.

    The sequence is one permutation of the n images per epoch, seeded by (seed, stage, epoch); m is `per_step`, or n.
    So every image is seen once an epoch however long a step is.
    """
    m = n if per_step is None else per_step
    start, stop = step * m, (step + 1) * m
    first, last = start // n, (stop - 1) // n
    epochs = [
        torch.randperm(n, generator=generator("cpu", seed, stage, epoch, "order")).numpy()
        for epoch in range(first, last + 1)
    ]
    return np.concatenate(epochs)[start - first * n : stop - first * n]


def split(order: Indices, size: int) -> list[Indices]:
    """Batches of `size`; a last batch of one image joins the one before it, because batch norm cannot train on one."""
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]


def load(images: Images, batches: list[Indices], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (indices, uint8 images), both on `device`, for each batch.

    On CUDA, the next batch is read and copied while the current one is computed on.
    """
    if device.type != "cuda":
        for batch in batches:
            yield torch.from_numpy(batch), torch.from_numpy(images[batch])
        return

    def fetch(batch: Indices) -> tuple[Tensor, Tensor]:
        host = torch.from_numpy(images[batch])
        return torch.from_numpy(batch).to(device), host.pin_memory().to(device, non_blocking=True)

    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(fetch, batch) for batch in batches[:2]]
        for i in range(len(batches)):
            loaded = waiting.pop(0).result()
            if i + 2 < len(batches):
                waiting.append(reader.submit(fetch, batches[i + 2]))
            yield loaded


def in_order(n: int, size: int) -> list[Indices]:
    """Batches of 0 ... n - 1 as they come, for evaluation."""
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]

"""Images a second into a 224-pixel training batch: the decoded cache against a torchvision `DataLoader` of JPEG files.

    python -m benchmarks.input_pipeline [IMAGES]

One core each. Baseline: 1,024-pixel JPEG files, opened by Pillow, resized to 256, random 224-crop, flip, rotation by up
to 15 degrees, normalised, batched by a `DataLoader` without workers. Ours: the same images decoded once to 256 pixels
in the memory-mapped cache, the same augmentation batched; the decoding that is paid once is printed beside. Bar: 5x.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lt_search.data.decoded import open_images
from lt_search.data.registry import load_dataset
from trainers.images import batches
from trainers.images.augment import IMAGENET_MEAN, IMAGENET_STD, Augmentation, training_images

SIDE, CACHED, CROP, BATCH = 1024, 256, 224, 32


def write_images(folder: Path, count: int) -> Path:
    """Smooth noise as JPEG files of the size of a chest X-ray, in two class folders, and their table."""
    rng = np.random.default_rng(0)
    lines = ["image,label"]
    for index in range(count):
        label = "ab"[index % 2]
        coarse = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        path = folder / label / f"{index:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
        lines.append(f"{path.relative_to(folder)},{label}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def dataloader_rate(folder: Path) -> float:
    steps = v2.Compose(
        [
            v2.Resize((CACHED, CACHED)),
            v2.RandomCrop(CROP),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    started, seen = time.perf_counter(), 0
    for images, _ in DataLoader(ImageFolder(str(folder), steps), batch_size=BATCH, shuffle=True):
        seen += len(images)
    return seen / (time.perf_counter() - started)


def cached_rate(table: Path) -> tuple[float, float]:
    """Images a second into batches, and into the cache."""
    part = load_dataset(str(table)).train
    started = time.perf_counter()
    images = open_images(part, CACHED)
    decoding = len(images) / (time.perf_counter() - started)
    how = Augmentation(crop=CROP / CACHED, random_crop=True, flip=True, rotate=True)
    generator = torch.Generator().manual_seed(0)
    started, seen = time.perf_counter(), 0
    for epoch in range(4):
        order = batches.step_order(len(images), None, 0, 1, epoch)
        for _, raw in batches.load(images, batches.split(order, BATCH), torch.device("cpu")):
            seen += len(training_images(raw, how, generator))
    return seen / (time.perf_counter() - started), decoding


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LT_SEARCH_CACHE"] = f"{scratch}/cache"
        images = Path(scratch) / "images"
        images.mkdir()
        table = write_images(images, count)
        baseline = dataloader_rate(images)
        ours, decoding = cached_rate(table)
    print(f"DataLoader of {SIDE} px JPEG files: {baseline:.0f} images/s")
    print(f"decoded cache:                 {ours:.0f} images/s (filled once, at {decoding:.0f} images/s)")
    print(f"ratio: {ours / baseline:.1f}x (bar: 5x)")


if __name__ == "__main__":
    main()

"""Extra training data for the tiny table of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def extra_table(folder: Path, *labels: str, seed: int = 1) -> Path:
    """A table of grey 8 x 8 images, one for each cell of labels, each of a patient of its own, all for training."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["image,label,patient,split"]
    for number, label in enumerate(labels):
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number:03d}.png")
        lines.append(f"images/{number:03d}.png,{label},{folder.name}{number},train")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table

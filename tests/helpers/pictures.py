"""Image files and label tables made by tests."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_grey(path: Path, seed: int = 0, side: int = 12) -> Path:
    """A noisy grey PNG that differs with its seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A table with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def make_table(folder: Path, rows: Sequence[Mapping[str, str]], missing: Sequence[str] = ()) -> Path:
    """`labels.csv` in a folder with the images its rows name, but for those to be missing; another folder's differ."""
    for index, row in enumerate(rows):
        if row["image"] and row["image"] not in missing:
            save_grey(folder / row["image"], seed=zlib.crc32(f"{folder.name}/{index}".encode()))
    return write_csv(folder / "labels.csv", list(rows[0]), [list(row.values()) for row in rows])


def multi_class_rows(counts: Mapping[str, int]) -> list[dict[str, str]]:
    """One row per image, `counts` images of each class."""
    return [
        {"image": f"{label}/{number:03d}.png", "label": label}
        for label, count in counts.items()
        for number in range(count)
    ]


def multi_label_rows(count: int) -> list[dict[str, str]]:
    """Rows with none, one and two of three labels, two images per patient."""
    labels = ("", "mass", "nodule", "mass|nodule", "edema")
    return [
        {"image": f"x{number:03d}.png", "label": labels[number % len(labels)], "patient": str(number // 2)}
        for number in range(count)
    ]

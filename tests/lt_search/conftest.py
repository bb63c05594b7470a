"""A small labelled folder, a search space for the tiny trainer, and a run made of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_search.config.options import SpecOptions
from lt_search.config.resolver import resolve_spec
from lt_search.config.spec import RunSpec
from lt_search.data.registry import load_dataset

TINY_SPACE = """\
# A space for tests
trainer: tests.tiny:TinyTrainer
metric: mAP
search:
  stage1.lr: loguniform(1e-2, 5)
  stage1.optimiser: choice(sgd, momentum)
  stage1.momentum: {range: "uniform(0.1, 0.9)", when: stage1.optimiser == momentum}
  stage2.bias: uniform(-1, 1)
budgets:
  small:
    trials: 6
    image_size: 8
    rungs: {eta: 2, stage1: [1, 3], stage2: [1]}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded images of a test stay in its folder."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("LT_SEARCH_CACHE", str(cache))
    return cache


@pytest.fixture
def tiny_csv(tmp_path: Path) -> Path:
    """160 grey 8 x 8 images of 40 patients, multi-label: a class brightens its quadrant."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = ["image,label,patient"]
    for index in range(160):
        present = rng.random(3) < (0.6, 0.35, 0.2)
        pixels = rng.normal(100, 25, (8, 8))
        for quadrant in np.flatnonzero(present):
            row, column = divmod(int(quadrant), 2)
            pixels[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 30
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{index:03d}.png")
        label = "|".join(name for name, there in zip("abc", present, strict=True) if there)
        lines.append(f"images/{index:03d}.png,{label},p{index // 4}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


@pytest.fixture
def tiny_space(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_SPACE)
    return path


@pytest.fixture
def tiny_spec(tiny_space: Path, tiny_csv: Path) -> RunSpec:
    options = SpecOptions(str(tiny_space), str(tiny_csv))
    return resolve_spec(options, load_dataset(str(tiny_csv)), gpu=False)

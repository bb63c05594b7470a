"""Virtual features: time against NumPy's multivariate normal, and the memory of LMD's stage 2.

    python -m benchmarks.virtual_features [CLASSES [PER_CLASS]]

D = 512, R = 50,000 a class. Baselines: `numpy.random.Generator.multivariate_normal` with its default method (SVD) and
with `method="cholesky"`, which both hold all R vectors of a class; ours come in batches and are counted, too, with
their factorisation. Bars: 3x the default, no slower than Cholesky. All use as many threads as they like.

Then K = 23: peak memory of two rounds of statistics and M-step with the running Gaussians that the E-step measures by,
in a process of its own, above that of the built model. The E-step itself sees two images: what its forward and
backward passes take is the network's, whatever stage 2 does. Bar: 300 MB.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch

WIDTH, LARGE_K, BATCH = 512, 23, 352

Array = npt.NDArray[np.float64]

Method = Literal["svd", "cholesky"]
"""How NumPy takes the root of a covariance."""


def class_moments(classes: int) -> tuple[Array, Array]:
    """Means (K, D) and covariances (K, D, D) of full rank."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(classes, WIDTH, WIDTH)) / WIDTH**0.5
    return rng.normal(size=(classes, WIDTH)), root @ root.transpose(0, 2, 1) + 0.01 * np.eye(WIDTH)


def numpy_seconds(mean: Array, cov: Array, per_class: int, method: Method) -> float:
    rng = np.random.default_rng(0)

    def draw() -> None:
        for m, c in zip(mean, cov, strict=True):
            rng.multivariate_normal(m, c, per_class, method=method)

    return seconds(draw)


def our_seconds(mean: Array, cov: Array, per_class: int) -> float:
    from trainers.features.gaussians import Gaussians
    from trainers.features.virtual import balanced_virtual_batches

    def draw() -> None:
        gaussians = Gaussians.of(torch.from_numpy(mean)[None], torch.from_numpy(cov)[None])
        generator = torch.Generator().manual_seed(0)
        for _ in balanced_virtual_batches(gaussians, torch.arange(len(mean)), per_class, BATCH, generator):
            pass

    return seconds(draw)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def stage2_memory() -> None:
    """Prints the peak memory of two rounds of LMD's stage 2 with a tiny E-step, above the built model's, in MB."""
    from trainers.base import Task, TrainerInputs
    from trainers.methods.lmd import LMDConfig, LMDTrainer

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (LARGE_K * 30, 1, 32, 32), dtype=np.uint8)
    labels = torch.arange(LARGE_K).repeat_interleave(30)
    stage1 = {"backbone": "resnet18", "weights": "none", "epochs": 1, "use_mrc": False}
    stage2 = {"rounds": 2, "virtual_size": 5_000, "e_step_images": 2}
    config = LMDConfig.model_validate({"stage1": stage1, "stage2": stage2})
    inputs = TrainerInputs(Task.MULTI_CLASS, LARGE_K, images, labels, torch.device("cpu"), 0)
    trainer = LMDTrainer(config, inputs)
    trainer.begin_stage2()
    trainer.current_sums()  # the sums count as stage 2's, what the forward passes took on the way does not
    process = psutil.Process()
    before = process.memory_info().rss - trainer.current_sums().outer.nbytes
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(2):
        trainer.stage2_step(step)
    done.set()
    watcher.join()
    print((max(seen) - before) / 1e6)


def main() -> None:
    classes = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    per_class = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    mean, cov = class_moments(classes)
    ours = our_seconds(mean, cov, per_class)
    print(f"K = {classes}, R = {per_class:,}, D = {WIDTH}: ours {ours:.2f} s")
    bars: dict[Method, float] = {"svd": 3.0, "cholesky": 1.0}
    for method, bar in bars.items():
        baseline = numpy_seconds(mean, cov, per_class, method)
        print(f"  NumPy {method:8}: {baseline:.2f} s, ratio {baseline / ours:.1f}x (bar: {bar:g}x)")
    command = [sys.executable, "-m", "benchmarks.virtual_features", "memory"]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    stored = LARGE_K * 50_000 * WIDTH * 4 / 1e6
    print(f"K = {LARGE_K}: stage 2 takes {peak:.0f} MB above the model (bar: 300; R = 50,000 stored: {stored:,.0f} MB)")


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]:
        stage2_memory()
    else:
        main()

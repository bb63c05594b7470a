"""Peak memory of LDRNet's stage 2 for R = 1,000 and R = 100,000 virtual images a round.

    python -m benchmarks.stage2_memory

Each R runs in a process of its own: C = 14 labels, D = 512, two M-steps. Baseline: R = 1,000. Bar: within 5 %. For
comparison, all virtual features at once would take R x C x D x 4 bytes, which is printed too.
"""

from __future__ import annotations

import resource
import subprocess
import sys

CLASSES, WIDTH = 14, 512


def stage2_peak(r: int) -> None:
    """Runs two rounds of stage 2 and prints the peak resident memory of this process, in MiB."""
    import numpy as np
    import torch

    from trainers.base import Task, TrainerInputs
    from trainers.methods.ldrnet import LDRNetConfig, LDRNetTrainer

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (256, 1, 32, 32), dtype=np.uint8)
    labels = torch.from_numpy(rng.random((256, CLASSES)) < 0.2).float()
    stage1 = {"backbone": "conv4", "weights": "none", "d_model": WIDTH, "epochs": 1}
    stage2 = {"rounds": 2, "virtual_images": r, "update_encoder": False, "cov_type": "full"}
    config = LDRNetConfig.model_validate({"stage1": stage1, "stage2": stage2})
    torch.set_num_threads(1)
    inputs = TrainerInputs(Task.MULTI_LABEL, CLASSES, images, labels, torch.device("cpu"), 0)
    trainer = LDRNetTrainer(config, inputs)
    trainer.begin_stage2()
    for step in range(2):
        trainer.stage2_step(step)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    peaks = {}
    for r in (1_000, 100_000):
        command = [sys.executable, "-m", "benchmarks.stage2_memory", str(r)]
        peaks[r] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        at_once = r * CLASSES * WIDTH * 4 / 2**20
        print(f"R = {r:>7,}: peak {peaks[r]:,.0f} MiB (all virtual features at once: {at_once:,.0f} MiB)")
    print(f"ratio to R = 1,000: {peaks[100_000] / peaks[1_000]:.3f} (bar: 1.05)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stage2_peak(int(sys.argv[1]))
    else:
        main()

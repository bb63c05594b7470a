"""Time from the end of one trial to the end of the next, with warm worker processes and with fresh ones.

    python -m benchmarks.turnaround [TRIALS]

The trials train a linear head for milliseconds, so what is measured is overhead. Baseline: `reuse_actors=False`, a
fresh Ray actor for every trial. Starting Ray and the first worker is not counted. Bar: at least 5x less.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.shared import whole_search
from benchmarks.workers import fresh_workers
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.storage.journal import Journal

SPACE = """\
trainer: tests.tiny:TinyTrainer
metric: mAP
search:
  stage1.lr: loguniform(1e-2, 5)
budgets:
  small: {trials: 10, image_size: 8, set: {stage1.epochs: 1, stage2.rounds: 1}}
"""


def seconds_per_trial(storage: Path, trials: int, *, warm: bool) -> float:
    """Median time between the ends of successive trials, one at a time."""
    space = storage / "instant.yaml"
    space.write_text(SPACE)
    name = "warm" if warm else "fresh"
    how = RunOptions(storage=str(storage), name=name, trials=trials, max_concurrent=1)
    with nullcontext() if warm else fresh_workers():
        whole_search(SpecOptions(str(space), "digits-ml:500"), how)
    ends = [trial.datetime_complete for trial in Journal.reader(storage / name / "journal.log").trials()]
    return median((b - a).total_seconds() for a, b in pairwise(ends) if a and b)


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        fresh = seconds_per_trial(Path(folder), trials, warm=False)
        warm = seconds_per_trial(Path(folder), trials, warm=True)
    print(f"fresh actors (baseline): {fresh:.2f} s a trial")
    print(f"warm actors:             {warm:.2f} s a trial")
    print(f"ratio: {fresh / warm:.1f}x less overhead (bar: 5x)")


if __name__ == "__main__":
    main()

"""The benchmarks of a group, one after another.

    python -m benchmarks stage1 [--results FOLDER]
    python -m benchmarks tables [--mhsma FOLDER] [--chula FOLDER] [--results FOLDER]

Each runs in a process of its own, with its defaults; what it prints is shown at once. With --results it is also kept
there, as NAME.txt, and the same command goes on where it was left: a finished benchmark is shown again and not run as
long as the code is the same, one that keeps its searches goes on with them, and any other starts again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.shared import TOP, code_digest

INTERRUPTED = 130

STOPPED = (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a benchmark that was told to stop."""

DATA = {"mhsma": "mhsma_sperm", "chula": "chula_rbc_cells"}
"""Data sets that users have in a folder, by the option that names it."""


def printing_code() -> str:
    """Digest of all code that decides what benchmarks print."""
    modules = sorted(path for path in (TOP / "benchmarks").glob("*.py") if path != Path(__file__))
    return code_digest(*modules, TOP / "tests" / "tiny.py")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, as `python -m benchmarks` knows it."""

    name: str
    what: str
    time: str
    """On two cores, in words."""
    group: str | None = None
    keeps: tuple[str, str] | None = None
    """The option that makes it go on where it was, and the ending of the file or folder that it keeps for that."""
    takes: tuple[str, ...] = ()
    """Options of the group that it takes, too."""

    def command(self, results: Path, given: Mapping[str, Any]) -> list[str]:
        """What to run, with its files under a folder."""
        more = [f"--{name}={given[name]}" for name in self.takes if given[name]]
        kept = [f"{self.keeps[0]}={results / self.name}{self.keeps[1]}"] if self.keeps else []
        return ["-m", f"benchmarks.{self.name}", *more, *kept]


BENCHMARKS = (
    Benchmark(
        "reuse",
        "a plain Ray Tune script against this harness, at equal time",
        "eight hours",
        "stage1",
        ("--results", ".jsonl"),
    ),
    Benchmark(
        "sampler",
        "proposals that know what a stage costs against plain TPE, on synthetic problems",
        "half an hour",
        "stage1",
    ),
    Benchmark(
        "overhead",
        "rungs and journal, Ray, and a proposal, against Optuna's and Ray's own",
        "15 minutes",
        "stage1",
    ),
    Benchmark(
        "multi_label_table",
        "BCE, ASL, LDRNet and CXR: test scores over three seeds",
        "35 minutes, and 50 more with mhsma_sperm",
        "tables",
        ("--storage", "-runs"),
        ("mhsma",),
    ),
    Benchmark(
        "one_label_table",
        "LMD and metric learning beside their baselines: test scores over three seeds",
        "15 minutes, and 30 more with chula_rbc_cells",
        "tables",
        ("--storage", "-runs"),
        ("chula",),
    ),
    Benchmark("turnaround", "warm worker processes against fresh ones", "some minutes"),
    Benchmark("stage2_memory", "peak memory against the number of virtual images", "some minutes"),
    Benchmark("winner", "tuned against the paper's values and random search, on the test split", "20 minutes"),
    Benchmark("virtual_features", "virtual features against NumPy, and the memory of LMD's stage 2", "some minutes"),
    Benchmark("compensation", "LMD's FDC loss against one covariance per sample and class", "some minutes"),
    Benchmark("input_pipeline", "the decoded cache against a DataLoader of JPEG files", "some minutes"),
)


def run(name: str, command: Sequence[str], results: Path) -> int:
    """Runs a benchmark, or shows what it printed if this code has finished it before; returns its exit code.

    Raises:
        KeyboardInterrupt: this process or the benchmark's was told to stop.
    """
    title = f"$ python {' '.join(command)}  # code {printing_code()}\n"
    finished, unfinished = results / f"{name}.txt", results / f"{name}.part.txt"
    print(f"\n{title}", end="", flush=True)
    if finished.exists():
        kept_title, _, output = finished.read_text().partition("\n")
        if kept_title + "\n" == title:
            print(f"finished, from {finished}:\n{output}", end="", flush=True)
            return 0
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        unfinished.open("w") as file,
        subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process,
    ):
        file.write(title)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
                file.flush()
            code = process.wait()
        except KeyboardInterrupt as interruption:
            print(f"interrupted; waiting for {name} to end after the steps in hand", flush=True)
            if interruption.args == (signal.SIGTERM,):  # which was sent to this process alone, unlike Ctrl-C
                process.send_signal(signal.SIGINT)
            process.communicate()
            raise
    if code in STOPPED:
        raise KeyboardInterrupt
    if code == 0:
        unfinished.replace(finished)
    return code


def interrupt(number: int, frame: FrameType | None) -> None:
    """Makes a signal end what runs as Ctrl-C does."""
    raise KeyboardInterrupt(number)


def listing() -> str:
    """All benchmarks by group, with their times."""
    lines = []
    for group in ("stage1", "tables", None):
        lines.append(f"\n{group}:" if group else "\nno group, each by itself:")
        for benchmark in BENCHMARKS:
            if benchmark.group == group:
                lines.append(f"  python -m benchmarks.{benchmark.name:18} {benchmark.time}: {benchmark.what}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Runs the benchmarks of a group, one after another. Times are on two cores.",
        epilog=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = parser.add_subparsers(dest="group", required=True, metavar="GROUP")
    for name, what in (("stage1", "what sharing stage 1 gives and costs"), ("tables", "methods on the test split")):
        group = groups.add_parser(name, help=what)
        group.add_argument("--results", type=Path, metavar="FOLDER", help="keeps all output, and goes on where it was")
        for option in sorted({option for b in BENCHMARKS if b.group == name for option in b.takes}):
            group.add_argument(f"--{option}", metavar="FOLDER", help=f"folder of {DATA[option]}, with labels.csv")
    given = parser.parse_args()
    codes = []
    with tempfile.TemporaryDirectory() as scratch:
        results = (given.results or Path(scratch)).absolute()
        results.mkdir(parents=True, exist_ok=True)
        for benchmark in BENCHMARKS:
            if benchmark.group == given.group:
                codes.append(run(benchmark.name, benchmark.command(results, vars(given)), results))
                if codes[-1] != 0:
                    print(f"{benchmark.name} ended with exit code {codes[-1]}", file=sys.stderr, flush=True)
    return max(map(abs, codes))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

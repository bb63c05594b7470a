"""Whole searches of the tiny trainer through Ray, in one storage, and how to watch them."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
from optuna.trial import FrozenTrial

from lt_search.cli import main
from lt_search.samplers import STAGE1_COST
from lt_search.storage.journal import Journal, NoTrialsYetError
from lt_search.storage.schema import REUSED

REPOSITORY = Path(__file__).parent.parent.parent


TRAINING = ("ray::ResourceTrainable", "ray::StagedTrial")
"""Names of a worker process, while it trains and in between."""


class Searches:
    """Runs searches of the tiny trainer in one storage."""

    def __init__(self, storage: Path, space: Path, table: Path) -> None:
        self.storage, self.space, self.table = storage, space, table

    def start(self, *options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "run_search.py", "--storage", str(self.storage), *map(str, options)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def run(self, *options: object, code: int = 0) -> str:
        process = self.start(*options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        assert "Traceback" not in err
        return out + err

    def inline(self, *options: object, code: int | None = 0) -> str:
        """As `run`, in this process and on the tests' shared Ray, which saves starting both."""
        return self.command("search", "--storage", self.storage, *options, code=code)

    def command(self, *argv: object, code: int | None = 0) -> str:
        """A command of `lt-search`, in this process; `code` None allows any exit code."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            found = main([*map(str, argv)])
        assert code is None or found == code, out.getvalue() + err.getvalue()
        return out.getvalue() + err.getvalue()

    def evaluate(self, exported: Path) -> str:
        """Scores an exported model in a process of its own, which knows nothing but the files."""
        code = "from lt_search.cli import entry_point; entry_point()"  # finds the tests' trainer, as no script does
        command = [sys.executable, "-c", code, "evaluate", str(exported)]
        ended = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False, timeout=120)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def new(self, name: str, *options: object) -> tuple[object, ...]:
        return ("--space", self.space, "--dataset", self.table, "--name", name, *options)

    def trials(self, name: str) -> list[FrozenTrial]:
        return Journal.reader(self.storage / name / "journal.log").started()

    def has_trials(self, name: str) -> bool:
        try:
            return (self.storage / name / "journal.log").exists() and bool(self.trials(name))
        except NoTrialsYetError:
            return False

    def truth(self, name: str) -> list[dict[str, Any]]:
        """All that must not depend on when, where and how often a search was interrupted."""
        return [
            {
                "number": trial.number,
                "state": trial.state,
                "value": trial.value,
                "params": trial.params,
                "values": trial.intermediate_values,
                "rungs": {name: entry for name, entry in trial.user_attrs.items() if name.startswith("rung:")},
            }
            for trial in self.trials(name)
        ]


def slow(seconds: float) -> tuple[str, ...]:
    return ("--set", f"stage1.seconds={seconds}", "--set", f"stage2.seconds={seconds}")


ONE_STAGE_1 = ("--set", "stage1.lr=0.5", "--set", "stage1.optimiser=sgd")


TWO_STAGE_1S = ("--search", "stage1.lr=choice(0.25, 0.5)", "--set", "stage1.optimiser=sgd")
"""Options that fix stage 1, or leave two different ones."""


def trained_stage1s(trials: list[FrozenTrial]) -> int:
    """How many trials trained their stage 1 to its end."""
    return sum(STAGE1_COST in trial.user_attrs and REUSED not in trial.user_attrs for trial in trials)


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train for a driver, and Ray's that would start more of them."""
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        return [child for child in children if child.name().startswith((*TRAINING, "raylet", "gcs"))]
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Any, what: str = "waited in vain", seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

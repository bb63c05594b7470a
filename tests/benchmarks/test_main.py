"""`python -m benchmarks`: what is kept of a benchmark, and when it runs again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, main, printing_code, run
from benchmarks.shared import code_digest


def appends(log: Path, code: int = 0) -> list[str]:
    """A command that leaves a mark for each time it is run."""
    return ["-c", f"open({str(log)!r}, 'a').write('x'); print('a table'); raise SystemExit({code})"]


def test_a_finished_benchmark_is_shown_again_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    assert run("one", appends(log), tmp_path) == 0
    first = capsys.readouterr().out
    assert run("one", appends(log), tmp_path) == 0
    assert "a table" in first
    assert "a table" in capsys.readouterr().out
    assert log.read_text() == "x"


def test_another_command_is_run_although_one_is_finished(tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    run("one", appends(log), tmp_path)
    run("one", appends(other), tmp_path)
    assert other.read_text() == "x"


def test_a_finished_benchmark_is_run_by_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    run("one", appends(log), tmp_path)
    monkeypatch.setattr("benchmarks.__main__.printing_code", lambda: "other")
    run("one", appends(log), tmp_path)
    assert log.read_text() == "xx"
    assert (tmp_path / "one.txt").read_text().startswith("$ python -c ")


def test_what_is_printed_is_told_from_that_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("benchmarks/one.py", "lt_search/two.py", "tests/tiny.py"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    monkeypatch.setattr("benchmarks.__main__.TOP", tmp_path)
    monkeypatch.setattr("benchmarks.shared.TOP", tmp_path)
    found = set()
    for path in (None, "benchmarks/one.py", "lt_search/two.py", "tests/tiny.py"):
        if path is not None:
            (tmp_path / path).write_text(path)
        code_digest.cache_clear()
        found.add(printing_code())
    code_digest.cache_clear()
    assert len(found) == 4


def test_a_benchmark_that_failed_runs_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run("one", appends(log, code=3), tmp_path) == 3
    assert run("one", appends(log, code=3), tmp_path) == 3
    assert log.read_text() == "xx"


@pytest.mark.parametrize("end", ["sys.exit(130)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_nothing_goes_on_after_a_benchmark_that_was_told_to_stop(tmp_path: Path, end: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("one", ["-c", f"import os, signal, sys; {end}"], tmp_path)
    assert not (tmp_path / "one.txt").exists()


def test_a_benchmark_is_stopped_by_a_signal_to_the_process_that_runs_it(tmp_path: Path) -> None:
    child = "import time; print('begun', flush=True); time.sleep(300)"
    parent = f"""
import signal
from pathlib import Path
from benchmarks.__main__ import interrupt, run
signal.signal(signal.SIGTERM, interrupt)
run("one", ["-c", {child!r}], Path({str(tmp_path)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert any(line == b"begun\n" for line in process.stdout)
        process.terminate()
        assert "waiting for one" in process.stdout.read().decode()
    assert process.returncode == -signal.SIGINT


def test_help_lists_every_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    here = {path.stem for path in Path("benchmarks").glob("*.py")} - {
        "__init__",
        "__main__",
        "shared",
        "tables",
        "workers",
    }
    assert here == {benchmark.name for benchmark in BENCHMARKS}
    assert all(f"benchmarks.{name}" in shown for name in here)

"""`python -m benchmarks`: what is kept of a benchmark, and when it runs again."""

from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, main, run


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


def test_a_benchmark_that_failed_runs_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run("one", appends(log, code=3), tmp_path) == 3
    assert run("one", appends(log, code=3), tmp_path) == 3
    assert log.read_text() == "xx"


def test_help_lists_every_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    here = {path.stem for path in Path("benchmarks").glob("*.py")} - {"__init__", "__main__", "tables"}
    assert here == {benchmark.name for benchmark in BENCHMARKS}
    assert all(f"benchmarks.{name}" in shown for name in here)

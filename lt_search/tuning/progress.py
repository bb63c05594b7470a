"""Progress of a search: a status that is redrawn on a terminal, and a log line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lt_search.config.durations import show_duration
from lt_search.results.callbacks import SearchCallback

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.pruning.rungs import Rung
    from lt_search.results.summary import RunSummary
    from lt_search.tuning.run_log import RunLog

REDRAW_SECONDS = 1.0
LINE_SECONDS = 60.0


class LiveStatus(SearchCallback):
    """Shows a running search.

    Args:
        spec: the run.
        log: the run's log.
        summarise: returns the current summary of the run; `driven` as of `lt_search.results.summary.summarise`.
        progress: returns the last step of each running trial by number; None for one that waits for its stage 1.
        concurrent: returns how many trials may run at once now.
        console: where to show it; if that is not a terminal, only the log lines are printed.
    """

    def __init__(
        self,
        spec: RunSpec,
        log: RunLog,
        summarise: Callable[..., RunSummary],
        progress: Callable[[], Mapping[int, Rung | None]],
        concurrent: Callable[[], int],
        console: Console,
    ) -> None:
        self._spec = spec
        self._log = log
        self._summarise = summarise
        self._progress = progress
        self._concurrent = concurrent
        self._console = console
        self._started = time.monotonic()
        self._last_draw = 0.0
        self._last_line = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._logged_audit: list[str] = []

    def __enter__(self) -> LiveStatus:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self.line(driven=False)

    def on_loop_end(self) -> None:
        """Redraws and logs when it is time to."""
        now = time.monotonic()
        if self._live and now - self._last_draw >= REDRAW_SECONDS:
            self._last_draw = now
            shown = render_status(self._spec, self._summarise(), self._progress(), self._elapsed, self._concurrent())
            self._live.update(shown)
            self._live.refresh()
        if now - self._last_line >= LINE_SECONDS:
            self.line()

    def line(self, *, driven: bool = True) -> None:
        """Writes a status line to the log, and to the console if that is not a terminal."""
        self._last_line = time.monotonic()
        waiting = sum(rung is None for rung in self._progress().values())
        summary = self._summarise(driven=driven)
        text = status_line(self._spec, summary, self._elapsed, self._concurrent(), waiting)
        self._log.write(text)
        if self._live is None:
            self._console.print(text, highlight=False, soft_wrap=True)
        audit = [str(found) for found in summary.probe_audit]
        if audit != self._logged_audit:
            self._logged_audit = audit
            for line in audit:
                self._log.write(line)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def status_line(spec: RunSpec, summary: RunSummary, elapsed: float | None, concurrent: int, waiting: int = 0) -> str:
    """One line of `name=value` pairs. Of the running trials, `waiting` wait for a stage 1 that others train."""
    best = summary.best
    left = summary.seconds_left(concurrent)
    parts = [
        f"trials={summary.ended}/{summary.target}",
        *_unfinished(summary, waiting),
        *(f"{state}={len(summary.of_state(state))}" for state in ("finished", "pruned", "failed")),
        f"best_{spec.metric}={best.value:.4f} best_trial={best.number}" if best else f"best_{spec.metric}=none",
        "rungs="
        + (",".join(f"{r.rung.stage}:{r.rung.step}:{r.reached - r.stopped}/{r.reached}" for r in summary.rungs)),
    ]
    if spec.reuse:
        saved = show_duration(summary.saved_by_reuse).replace(" ", "")
        parts.append(f"stage1_trained={summary.stage1_trained} stage1_reused={summary.reused} saved={saved}")
    if elapsed is not None:
        parts.append(f"elapsed={show_duration(elapsed).replace(' ', '')}")
    if left is not None and summary.ended < summary.target:
        parts.append(f"left={show_duration(left).replace(' ', '')}")
    return " ".join(parts)


def _unfinished(summary: RunSummary, waiting: int) -> list[str]:
    interrupted = len(summary.of_state("interrupted"))
    if interrupted:
        return [f"interrupted={interrupted}"]
    return [f"running={len(summary.of_state('running')) - waiting}", *([f"waiting={waiting}"] if waiting else [])]


def render_status(
    spec: RunSpec, summary: RunSummary, progress: Mapping[int, Rung | None], elapsed: float | None, concurrent: int
) -> Group:
    """The status as a small table, for a terminal."""
    best = summary.best
    interrupted = bool(summary.of_state("interrupted"))
    states = ["interrupted" if interrupted else "running", "finished", "pruned", "failed"]
    counts = ", ".join(f"{len(summary.of_state(state))} {state}" for state in states)
    table = Table.grid(padding=(0, 2))
    table.add_row("trials", f"{summary.ended} of {summary.target} done: {counts}")
    if progress:
        table.add_row(states[0], ", ".join(_progress(spec, number, rung) for number, rung in progress.items()))
    table.add_row(
        "best", f"{spec.metric} {show_value(best.value, best.standard_error)} (trial {best.number})" if best else "-"
    )
    table.add_row(
        "rungs", ", ".join(f"{r.rung}: {r.reached - r.stopped} of {r.reached} continue" for r in summary.rungs) or "-"
    )
    if spec.reuse:
        saved = f", {show_duration(summary.saved_by_reuse)} saved" if summary.reused else ""
        table.add_row("stage 1", f"{summary.stage1_trained} trained, {summary.reused} reused{saved}")
    for found in summary.probe_audit:
        name, correlation = str(found).split(" ", 1)
        table.add_row(name, Text(correlation))
    times = [f"{show_duration(elapsed)} so far"] if elapsed is not None else []
    left = summary.seconds_left(concurrent)
    if not interrupted and left is not None and summary.ended < summary.target:
        times.append(f"about {show_duration(left)} to go")
    if times:
        table.add_row("time", ", ".join(times))
    title = Text(f"{spec.options['space']} on {spec.data.name}", style="bold")
    return Group(title, table)


def render_leaderboard(spec: RunSpec, summary: RunSummary, limit: int = 10) -> Table:
    """The best finished trials with their parameters."""
    table = Table(title=f"Finished trials by validation {spec.metric}", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column(f"{spec.metric} ± s.e.", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for trial in summary.leaderboard[:limit]:
        drawn = "  ".join(f"{name}={_short(value)}" for name, value in sorted(trial.params.items()))
        seconds = show_duration(sum(trial.seconds.values()))
        table.add_row(str(trial.number), show_value(trial.value, trial.standard_error), seconds, drawn)
    return table


def show_value(value: float | None, standard_error: float | None) -> str:
    """`0.8412 ± 0.011`."""
    if value is None:
        return "-"
    return f"{value:.4f}" + (f" ± {standard_error:.3f}" if standard_error is not None else "")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _progress(spec: RunSpec, number: int, rung: Rung | None) -> str:
    if rung is None:
        return f"trial {number}: waits for its stage 1"
    if rung.stage == 0:
        return f"trial {number}: starting"
    return f"trial {number}: {rung} of {spec.stage_lengths[rung.stage - 1]}"

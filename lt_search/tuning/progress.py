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

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.pruning.rungs import Rung
    from lt_search.results.summary import RunSummary
    from lt_search.storage.files import FolderStore

LOG = "search.log"
REDRAW_SECONDS = 1.0
LINE_SECONDS = 60.0


def log_line(store: FolderStore, text: str) -> None:
    """Adds a line, with the time, to a run's log."""
    store.append_line(LOG, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")


class LiveStatus:
    """Shows a running search.

    Args:
        spec: the run.
        store: the run's files; the log goes there.
        summarise: returns the current summary of the run.
        progress: returns the last step of each running trial by number; None for one that waits for its stage 1.
        concurrent: returns how many trials may run at once now.
        console: where to show it; if that is not a terminal, only the log lines are printed.
    """

    def __init__(
        self,
        spec: RunSpec,
        store: FolderStore,
        summarise: Callable[[], RunSummary],
        progress: Callable[[], Mapping[int, Rung | None]],
        concurrent: Callable[[], int],
        console: Console,
    ) -> None:
        self._spec = spec
        self._store = store
        self._summarise = summarise
        self._progress = progress
        self._concurrent = concurrent
        self._console = console
        self._started = time.monotonic()
        self._last_draw = 0.0
        self._last_line = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._logged_probes: list[str] = []
        self._said: set[str] = set()

    def __enter__(self) -> LiveStatus:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self.line()
        self._log_probes(self._summarise().probe_lines)

    def tick(self) -> None:
        """Called often; redraws and logs when it is time to."""
        now = time.monotonic()
        if self._live and now - self._last_draw >= REDRAW_SECONDS:
            self._last_draw = now
            shown = render_status(self._spec, self._summarise(), self._progress(), self._elapsed, self._concurrent())
            self._live.update(shown)
            self._live.refresh()
        if now - self._last_line >= LINE_SECONDS:
            self.line()

    def line(self) -> None:
        """Writes a status line to the log, and to the console if that is not a terminal."""
        self._last_line = time.monotonic()
        waiting = sum(rung is None for rung in self._progress().values())
        text = status_line(self._spec, self._summarise(), self._elapsed, self._concurrent(), waiting)
        log_line(self._store, text)
        if self._live is None:
            self._console.print(text, highlight=False, soft_wrap=True)

    def trial_ended(self, summary: RunSummary) -> None:
        """Logs the rank correlations of the stage-1 probes, where they changed, and reports rungs that are off."""
        if summary.probe_lines != self._logged_probes:
            self._log_probes(summary.probe_lines)
        for text in summary.notices:
            if text not in self._said:
                self._said.add(text)
                log_line(self._store, text)
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _log_probes(self, lines: list[str]) -> None:
        self._logged_probes = lines
        for line in lines:
            log_line(self._store, line)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def status_line(spec: RunSpec, summary: RunSummary, elapsed: float | None, concurrent: int, waiting: int = 0) -> str:
    """One line of `name=value` pairs. Of the running trials, `waiting` wait for a stage 1 that others train."""
    best = summary.best
    left = summary.seconds_left(concurrent)
    parts = [
        f"trials={summary.ended}/{summary.target}",
        f"running={len(summary.of_state('running')) - waiting}",
        *([f"waiting={waiting}"] if waiting else []),
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


def render_status(
    spec: RunSpec,
    summary: RunSummary,
    progress: Mapping[int, Rung | None],
    elapsed: float | None,
    concurrent: int,
    *,
    driven: bool = True,
) -> Group:
    """The status as a small table, for a terminal. Where no process drives the run, its open trials are interrupted."""
    best = summary.best
    unfinished = "running" if driven else "interrupted"
    states = {"running": unfinished, "finished": "finished", "pruned": "pruned", "failed": "failed"}
    counts = ", ".join(f"{len(summary.of_state(state))} {word}" for state, word in states.items())
    table = Table.grid(padding=(0, 2))
    table.add_row("trials", f"{summary.ended} of {summary.target} done: {counts}")
    if progress:
        table.add_row(unfinished, ", ".join(_progress(spec, number, rung) for number, rung in progress.items()))
    table.add_row(
        "best", f"{spec.metric} {show_value(best.value, best.standard_error)} (trial {best.number})" if best else "-"
    )
    table.add_row(
        "rungs", ", ".join(f"{r.rung}: {r.reached - r.stopped} of {r.reached} continue" for r in summary.rungs) or "-"
    )
    if spec.reuse:
        saved = f", {show_duration(summary.saved_by_reuse)} saved" if summary.reused else ""
        table.add_row("stage 1", f"{summary.stage1_trained} trained, {summary.reused} reused{saved}")
    for line in summary.probe_lines:
        name, values = line.split(" ", 1)
        table.add_row(name, Text(values))
    times = [f"{show_duration(elapsed)} so far"] if elapsed is not None else []
    left = summary.seconds_left(concurrent)
    if driven and left is not None and summary.ended < summary.target:
        times.append(f"about {show_duration(left)} to go")
    if times:
        table.add_row("time", ", ".join(times))
    title = Text(f"{spec.options['space']} on {spec.data.name}", style="bold")
    return Group(title, table, *map(Text, summary.notices))


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

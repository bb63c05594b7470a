"""Figures of the report, as SVG elements for an HTML page.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart; where a colour means
something, a shape says it, too.
"""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lt_search.pruning.rungs import Decision
from lt_search.results.report.content import ReportData, Winner
from lt_search.results.report.text import clean, duration_text, known, parameter_text
from lt_search.results.summary import TrialSummary

_MAX_COORDINATES = 10
"""Parameters on the parallel coordinates; more of them cannot be labelled."""

_INK, _SOFT, _GRID, _PALE = "#1c2430", "#5a6472", "#e3e7ec", "#b4bbc5"
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#b0578d"

_STATE_STYLE: dict[str, tuple[str, str]] = {
    "finished": (_BLUE, "o"),
    "pruned": (_ORANGE, "v"),
    "failed": (_RED, "x"),
    "running": (_PURPLE, "+"),
    "interrupted": (_PURPLE, "*"),
}
_GROUP_STYLE = {"head": (_BLUE, "o"), "medium": (_GREEN, "s"), "tail": (_RED, "D")}

_HALF, _FULL = 5.9, 12.2
"""Widths in inches of a figure that shares a row, and of one that has its own."""

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a $ in a class name is literal
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "axes.edgecolor": _PALE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
}


def optimisation_history(data: ReportData) -> str:
    """Final values by trial number, with the best so far."""
    with _drawing("history", "Final value of each finished trial", _FULL, 3.5) as (axes, done):
        finished = sorted(data.summary.leaderboard, key=lambda trial: trial.number)
        last = max((trial.number for trial in data.summary.trials), default=0)
        colour, marker = _STATE_STYLE["finished"]
        if finished:
            numbers, values = [t.number for t in finished], [t.value or 0.0 for t in finished]
            best = np.maximum.accumulate(values)
            axes.step([*numbers, last], [*best, best[-1]], where="post", color=_INK, lw=1.2, label="best so far")
            axes.errorbar(
                numbers,
                values,
                yerr=[_error(trial.standard_error) for trial in finished],
                fmt=marker,
                color=colour,
                ms=5,
                elinewidth=0.9,
                label=f"finished ({len(finished)})",
            )
            paper = [t for t in finished if t.number == data.default_trial]
            if paper:
                axes.axhline(paper[0].value or 0.0, color=_SOFT, lw=1, ls=(0, (4, 3)), label="the paper's values")
        else:
            axes.text(0.5, 0.5, "no trial has finished yet", transform=axes.transAxes, ha="center", color=_SOFT)
            axes.set_yticks([])
        for state in ("pruned", "failed", "running", "interrupted"):
            marked = [trial.number for trial in data.summary.trials if trial.state == state]
            if marked:
                colour, marker = _STATE_STYLE[state]
                axes.plot(
                    marked,
                    [0.025] * len(marked),
                    marker,
                    color=colour,
                    ms=5,
                    clip_on=False,
                    transform=axes.get_xaxis_transform(),
                    label=f"{state} ({len(marked)})",
                )
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.12 * (high - low), high)  # room for the marks at the lower edge
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{data.metric} (validation, up is better)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(-0.02 * last - 0.5, 1.02 * last + 0.5)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6)
    return done()


def rung_survival(data: ReportData) -> str:
    """For each rung, how many trials continued and how many it stopped."""
    rungs = data.reached_rungs()
    with _drawing("survival", "Trials at each rung", _HALF, 1.3 + 0.36 * len(rungs)) as (axes, done):
        rows = np.arange(len(rungs))
        stopped = np.array([rung.stopped for rung in rungs])
        continued = np.array([rung.reached for rung in rungs]) - stopped
        axes.barh(rows, continued, color=_BLUE, height=0.66, label="continued")
        axes.barh(rows, stopped, left=continued, color=_ORANGE, height=0.66, label="stopped")
        for row, (on, off) in enumerate(zip(continued, stopped, strict=True)):
            axes.annotate(f"{on} of {on + off}", (on + off, row), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(rows, [f"stage {each.rung.stage}, step {each.rung.step}" for each in rungs])
        axes.invert_yaxis()
        axes.set_xlabel("trials")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return done()


def rung_values(data: ReportData) -> str:
    """The values at each rung."""
    rungs = [reached.rung for reached in data.reached_rungs()]
    with _drawing("values", "Values at each rung", _HALF, 3.6) as (axes, done):
        for decision, (colour, marker), label in (
            (Decision.CONTINUE, _STATE_STYLE["finished"], "continued"),
            (Decision.STOP, _STATE_STYLE["pruned"], "stopped"),
        ):
            points = [
                # Spread sideways by trial number, so that equal values do not hide each other.
                (place + 0.5 * (trial.number * 0.618 % 1 - 0.5), entry.value, _error(entry.standard_error))
                for place, rung in enumerate(rungs)
                for trial in data.summary.trials
                if (entry := trial.rungs.get(rung)) and entry.decision is decision and known(entry.value)
            ]
            if points:
                x, y, error = zip(*points, strict=True)
                axes.errorbar(x, y, yerr=error, fmt=marker, color=colour, ms=4, elinewidth=0.7, alpha=0.85, label=label)
        for place, rung in enumerate(rungs[1:], start=1):
            if rung.stage != rungs[place - 1].stage:
                axes.axvline(place - 0.5, color=_SOFT, lw=1, ls=(0, (1, 2)))
        axes.set_xticks(range(len(rungs)), [f"stage {rung.stage}\nstep {rung.step}" for rung in rungs])
        axes.set_xlim(-0.5, len(rungs) - 0.5)
        axes.set_ylabel(f"{data.metric} (validation, up is better)")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return done()


def importance(data: ReportData) -> str:
    """Parameters by importance."""
    ranked = sorted(data.importances.items(), key=lambda item: item[1])
    with _drawing("importance", "Parameter importance", _HALF, 0.9 + 0.27 * len(ranked)) as (axes, done):
        rows = range(len(ranked))
        shares = [share for _, share in ranked]
        axes.barh(rows, shares, color=_BLUE, height=0.62)
        for row, share in enumerate(shares):
            axes.annotate(f"{share:.2f}", (share, row), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(rows, [_short(name, 34) for name, _ in ranked])
        axes.set_xlabel(f"importance for {data.metric} (share, sums to 1)")
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
    return done()


def coordinates(data: ReportData) -> list[str]:
    """The parameters that the parallel coordinates show: those that differ, the most important ones first kept.

    Empty where there is nothing to compare.
    """
    names = [
        name
        for name in data.searched()
        if len({parameter_text(trial.params[name]) for trial in data.summary.trials if name in trial.params}) > 1
    ]
    if len(names) > _MAX_COORDINATES:
        kept = sorted(names, key=lambda name: -data.importances.get(name, 0.0))[:_MAX_COORDINATES]
        names = [name for name in names if name in kept]
    return names


def parallel_coordinates(data: ReportData) -> str:
    """Parameters and final value of every trial, a line each."""
    names = coordinates(data)
    finished = data.summary.leaderboard
    with _drawing("coordinates", "Parameters of every trial", _FULL, 4.2) as (axes, done):
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        places = {}
        for column, name in enumerate(names):
            places[name], ticks = _scale(name, data)
            _axis(axes, column, ticks)
            if any(name not in trial.params for trial in data.summary.trials):
                axes.text(column, _OFF - 0.03, "off", ha="center", va="top", color=_SOFT, fontsize=8)
        values = [trial.value or 0.0 for trial in finished]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        objective, ticks = _linear(low, high)
        _axis(axes, len(names), ticks if finished else [])

        def path(trial: TrialSummary) -> list[float]:
            return [places[n](trial.params[n]) if n in trial.params else _OFF for n in names]

        unfinished = [trial for trial in data.summary.trials if trial.state != "finished"]
        for trial in unfinished:
            axes.plot(range(len(names)), path(trial), color=_PALE, lw=0.7, alpha=0.6, zorder=1)
        shades = mpl.colormaps["Blues"]
        ranks = {trial.number: 1 - rank / len(finished) for rank, trial in enumerate(finished)}
        crowded = len(finished) > 40
        for trial in reversed(finished):
            winner = trial is finished[0]
            height = objective(trial.value or 0.0)
            axes.plot(
                range(len(names) + 1),
                [*path(trial), height],
                color=_RED if winner else shades(0.25 + 0.75 * ranks[trial.number] ** (3 if crowded else 1)),
                lw=2.4 if winner else 0.8 if crowded else 1.2,
                zorder=3 if winner else 2,
            )
        labels = [_in_lines(_short(name, 40)) for name in names]
        axes.set_xticks(range(len(names) + 1), [*labels, f"{data.metric}\n(final)"])
        axes.tick_params(axis="x", length=0, pad=8, labeltop=True, labelbottom=False)
        axes.set_xlim(-0.35, len(names) + 0.45)
        axes.set_ylim(_OFF - 0.1, 1.04)
    return done()


def class_scores(metric: str, winner: Winner) -> str:
    """Scores of groups and classes with their standard errors."""
    classes = winner.by_frequency()
    height = 1.9 + 0.25 * (len(winner.groups) + 1 + len(classes))
    with _drawing("classes", "Scores by group and class", _HALF, height) as (axes, done):
        rows: list[tuple[str, Any, str, str]] = [(f"all ({metric})", winner.overall, _INK, "o")]
        rows += [(f"{name} mean", score, *_GROUP_STYLE[name]) for name, score in winner.groups.items()]
        n_means = len(rows)
        rows += [(f"{_short(c.name, 30)}", c.score, *_GROUP_STYLE[c.group]) for c in classes]
        for row, (_, score, colour, marker) in enumerate(rows):
            place = row if row < n_means else row + 0.6
            if score is None or not known(score.value):
                axes.text(0.01, place, "not scored", va="center", color=_SOFT, fontsize=8)
                continue
            axes.errorbar(
                score.value,
                place,
                xerr=_error(score.standard_error),
                fmt=marker,
                color=colour,
                ms=7 if row < n_means else 5,
                elinewidth=1.6 if row < n_means else 1.1,
            )
        places = [row if row < n_means else row + 0.6 for row in range(len(rows))]
        axes.axhline(n_means - 0.2, color=_PALE, lw=0.8)
        if known(winner.overall.value):
            axes.axvline(winner.overall.value, color=_INK, lw=0.8, ls=(0, (1, 2)), zorder=0)
        axes.set_yticks(places, [label for label, *_ in rows])
        axes.set_ylim(places[-1] + 0.7, -0.7)
        axes.set_xlim(0, 1.02)
        axes.set_xlabel(f"{winner.class_title} (validation, right is better)")
        axes.grid(axis="y", visible=False)
        for name, (colour, marker) in _GROUP_STYLE.items():
            if any(score.group == name for score in classes):
                axes.plot([], [], marker, color=colour, label=f"{name} classes")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
    return done()


def learning_curves(data: ReportData, stage: int) -> str:
    """The objective after each step of one stage, a line a trial."""
    best = data.winner.trial if data.winner else None
    name = f"Stage {stage}: {data.metric} after each step"
    with _drawing(f"curves{stage}", name, _HALF, 3.6) as (axes, done):
        labelled: set[str] = set()
        opacity = 0.75 if len(data.summary.trials) <= 20 else 0.4
        for trial in data.summary.trials:
            steps = [step for step in data.history.get(trial.number, ()) if step.stage == stage]
            points = [(step.step, step.value) for step in steps if known(step.value)]
            if not points:
                continue
            winner = trial.number == best
            colour = _INK if winner else _STATE_STYLE[trial.state][0]
            label = f"trial {best}, winner" if winner else trial.state
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                color=colour,
                lw=2.4 if winner else 1.0,
                alpha=1.0 if winner else opacity,
                marker=_STATE_STYLE[trial.state][1] if len(points) == 1 or not winner else None,
                markevery=[-1],
                ms=4.5,
                zorder=3 if winner else 2,
                label=None if label in labelled else label,
            )
            labelled.add(label)
            heads = [(step.step, value) for step in steps if known(value := data.head_value(step))]
            if winner and heads:
                axes.plot(*zip(*heads, strict=True), color=_INK, lw=1.6, ls=(0, (4, 2)), label="its stage-1 head")
        for rung in (each.rung for each in data.summary.rungs):
            if rung.stage == stage:
                axes.axvline(rung.step, color=_SOFT, lw=0.8, ls=(0, (1, 2)), zorder=0)
        axes.plot([], [], color=_SOFT, lw=0.8, ls=(0, (1, 2)), label="rung")
        axes.set_xlabel("step of stage 1 (epoch)" if stage == 1 else "step of stage 2 (round)")
        axes.set_ylabel(f"{'probe ' if stage == 1 else ''}{data.metric} (validation, up is better)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3)
    return done()


def cost(data: ReportData) -> str:
    """Time spent and saved, as shares of the total."""
    parts = [
        ("spent", data.cost.spent, _BLUE),
        ("saved by pruning", data.cost.saved_by_pruning, _ORANGE),
        ("saved by reuse", data.cost.saved_by_reuse or 0.0, _GREEN),
    ]
    units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    unit, divisor = next((unit for unit in units if data.cost.total >= 2 * unit[1]), units[-1])
    with _drawing("cost", "Time spent and saved", _FULL, 1.35) as (axes, done):
        left = 0.0
        for name, seconds, colour in parts:
            if seconds > 0:
                label = f"{name}: {duration_text(seconds)}"
                axes.barh(0, seconds / divisor, left=left, color=colour, height=0.6, label=label)
                left += seconds / divisor
        axes.set_yticks([])
        axes.set_xlim(0, left)
        axes.set_xlabel(f"{unit}, summed over trials")
        axes.spines["left"].set_visible(False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return done()


_OFF = -0.14
"""Height on the parallel coordinates of a parameter that a trial did not use."""

_Ticks = list[tuple[float, str]]


def _scale(name: str, data: ReportData) -> tuple[Callable[[Any], float], _Ticks]:
    """Map from a parameter's value to its height on the axis, 0 to 1, and the ticks of the axis."""
    values = [trial.params[name] for trial in data.summary.trials if name in trial.params]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values) and all(math.isfinite(number) for number in numbers):
        low, high = min(numbers), max(numbers)
        return _logarithmic(low, high) if name in data.log_parameters and low > 0 else _linear(low, high)
    kinds = sorted({parameter_text(value) for value in values})
    heights = {kind: (index + 0.5) / len(kinds) for index, kind in enumerate(kinds)}
    ticks = [(height, _short(kind, 12)) for kind, height in heights.items()]
    return lambda value: heights[parameter_text(value)], ticks


def _linear(low: float, high: float) -> tuple[Callable[[Any], float], _Ticks]:
    if high == low:
        return lambda _: 0.5, [(0.5, _tick(low))]
    ticks = [(share, _tick(low + share * (high - low))) for share in (0.0, 0.5, 1.0)]
    return lambda value: (float(value) - low) / (high - low), ticks


def _logarithmic(low: float, high: float) -> tuple[Callable[[Any], float], _Ticks]:
    place, ticks = _linear(math.log(low), math.log(high))
    shares = [share for share, _ in ticks]
    return lambda value: place(math.log(value)), [(s, _tick(low * (high / low) ** s)) for s in shares]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _axis(axes: Axes, column: int, ticks: _Ticks) -> None:
    axes.plot([column, column], [0, 1], color=_SOFT, lw=1, zorder=4)
    for height, label in ticks:
        axes.plot([column - 0.012, column + 0.012], [height, height], color=_SOFT, lw=1, zorder=4)
        axes.text(
            column + 0.03,
            height,
            clean(label),
            va="center",
            fontsize=8,
            zorder=5,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8},
        )


def _error(standard_error: float | None) -> float:
    """Length of an error bar; 0 where the standard error is unknown."""
    return standard_error if known(standard_error) else 0.0


def _in_lines(name: str) -> str:
    """A parameter's name in lines short enough to stand beside others: broken at its stage and between words."""
    stage, dot, field = name.rpartition(".")
    lines = textwrap.wrap(field.replace("_", "_ "), 14)
    return "\n".join([stage + dot, *(line.replace("_ ", "_") for line in lines)] if dot else lines)


def _short(text: str, length: int) -> str:
    line = " ".join(clean(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


@contextmanager
def _drawing(name: str, title: str, width: float, height: float) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes to draw on, and a function that returns the SVG once the block has ended."""
    svg = ""
    with mpl.rc_context({**_RC, "svg.hashsalt": name}), warnings.catch_warnings():
        # A script that matplotlib has no font for is still right in the page: the reader's browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), lambda: svg
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
        svg = _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """A matplotlib SVG file as an element of a page: no prologue, no fixed size, no names that two would share."""
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None  # matplotlib always writes one
    body = svg[svg.index(">", view_box.end()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[\w.]+_\d+"', "", body)
    return f'<svg role="img" aria-label="{html.escape(title)}" {view_box.group()}>{body}'

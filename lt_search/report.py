"""One self-contained HTML page about a run: `render(ReportData) -> str`.

The page requests nothing: style and figures (SVG) are inside it. It is made from `ReportData` alone, plain values
that whoever owns a run fills in, so it can be made of a running, an interrupted or a finished search.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lt_search.foresight import BAR, CONFIDENCE, ENOUGH, FEWEST, Correlation, Foresight
from lt_search.rungs import Rung

TrialState = Literal["finished", "pruned", "failed", "running"]

_MAX_OPEN_ROWS = 25
"""Rows of a table that are shown at once; the rest is one click away."""


@dataclass(frozen=True)
class StepValue:
    """What one step of one trial gave."""

    stage: int
    """1 or 2."""
    step: int
    """Steps of this stage that are done, from 1."""
    value: float
    """The objective on the validation split: of the probe in stage 1, of the model in stage 2."""
    head: float | None = None
    """In stage 1, the objective of the model's own head."""


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    number: int
    state: TrialState
    params: Mapping[str, object]
    """Searched parameters that were active, by name: numbers, strings, booleans or None."""
    history: Sequence[StepValue] = ()
    """In the order of progress."""
    value: float | None = None
    """The final objective; only a finished trial has one."""
    standard_error: float | None = None
    """Bootstrap standard error of `value`."""
    seconds: float | None = None
    """Time it has trained and been evaluated."""
    reason: str = ""
    """Why it failed: the last lines of its error."""


@dataclass(frozen=True)
class RungEntry:
    """One trial's value at one rung."""

    trial: int
    value: float
    stopped: bool
    """False where the trial went on."""
    standard_error: float | None = None


@dataclass(frozen=True)
class RungRow:
    """A rung with everything recorded there."""

    stage: int
    step: int
    """Steps of the stage that are done, from 1."""
    entries: Sequence[RungEntry]
    """In order of arrival."""


@dataclass(frozen=True)
class Score:
    """A value with its bootstrap standard error."""

    value: float
    standard_error: float | None = None
    """None or NaN where it is not known."""


@dataclass(frozen=True)
class ClassScore:
    """One class of the winner's validation scores."""

    name: str
    group: str
    """`head`, `medium` or `tail`."""
    train_images: int
    score: Score | None
    """None where the split has too few images of the class to score it."""


@dataclass(frozen=True)
class Winner:
    """The best finished trial's validation scores."""

    trial: int
    overall: Score
    groups: Mapping[str, Score]
    """By `head`, `medium`, `tail`; those that have scored classes."""
    classes: Sequence[ClassScore]
    """In class order; empty where the metric has no per-class values."""
    class_title: str
    """What a class's score is, in words, such as `average precision`."""


@dataclass(frozen=True)
class Cost:
    """Where the time went, in seconds summed over trials."""

    spent: float
    saved_by_pruning: float
    """Estimated time that stopped trials would have taken to the end."""
    saved_by_reuse: float | None = None
    """Time of stage 1 that trials did not train again; None where reuse is off."""


@dataclass(frozen=True)
class ReportData:
    """All that the report shows."""

    title: str
    """Such as the run's name."""
    facts: Mapping[str, str]
    """Run facts in the order to print: space, data set, split, seeds, trainer, versions, start, end, ..."""
    metric: str
    """The objective's name, such as `mAP`."""
    metric_title: str
    """The objective in words, such as `mean average precision`."""
    trials: Sequence[TrialRow]
    rungs: Sequence[RungRow]
    """In the order a trial meets them."""
    winner: Winner | None
    """None while no trial has finished."""
    importances: Mapping[str, float]
    """By parameter, summing to 1; empty where they cannot be computed."""
    cost: Cost
    foresight: Sequence[Foresight] = ()
    """How well each stage-1 rung foretells the final value."""
    turned_off: frozenset[Rung] = frozenset()
    """Rungs that stop no more trials, because their probe foretells too little."""
    default_trial: int | None = None
    """The trial with the paper's values, if the run has one."""
    log_parameters: frozenset[str] = frozenset()
    """Parameters that are searched on a log scale."""
    notes: Sequence[str] = field(default=())
    """Sentences the reader should know first: bundled data, an interrupted run, classes not counted, ..."""

    def finished(self) -> list[TrialRow]:
        """Finished trials, best first; equal values in order of number."""
        done = [trial for trial in self.trials if trial.state == "finished" and trial.value is not None]
        return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))

    def searched(self) -> list[str]:
        """All searched parameters, in order of first appearance."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.params))


def render(data: ReportData) -> str:
    """The report as one HTML page; no part of it is loaded from elsewhere.

    Imports matplotlib, which takes about a second.
    """
    sections = [
        ("Leaderboard", "Leaderboard", _leaderboard(data)),
        ("History", "Optimisation history", _history(data)),
        ("Rungs", "Rungs: who went on", _rungs(data)),
        ("Importance", "Parameter importance", _importance(data)),
        ("Coordinates", "Parallel coordinates: where good trials are", _coordinates(data)),
        ("Classes", "Scores of the winner, head to tail", _classes(data)),
        ("Curves", "Learning curves", _curves(data)),
        ("Cost", "Time spent and saved", _cost(data)),
        ("Trials", "All trials", _trials(data)),
        ("Run", "The run", _facts(data)),
    ]
    navigation = _join(_tag("a", name, href=f"#{name.lower()}") for name, _, _ in sections)
    body = _join(_tag("section", _tag("h2", heading) + content, id=name.lower()) for name, heading, content in sections)
    title = clean(data.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)} – search report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header>{_tag('p', 'Hyperparameter search', klass='kicker')}{_tag('h1', title)}{_summary(data)}</header>\n"
        f"<nav>{navigation}</nav>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def clean(value: object) -> str:
    """Text without characters that HTML or UTF-8 cannot hold; an error message of a trial may hold any."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(value))


def parameter_text(value: object) -> str:
    """A parameter's value as the YAML of a space would have it, numbers to four digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration_text(seconds: float) -> str:
    """A duration in the two largest units that matter, such as `1 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def known(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


class _Html(str):
    """Markup: text that is already escaped. Any other string is escaped where it enters the page."""

    __slots__ = ()

    def __add__(self, other: str) -> _Html:
        return _Html(str.__add__(self, _escaped(other)))


def _escaped(value: object) -> _Html:
    return value if isinstance(value, _Html) else _Html(html.escape(clean(value)))


def _join(parts: Iterable[object]) -> _Html:
    return _Html("".join(_escaped(part) for part in parts))


def _tag(name: str, content: object = "", klass: str = "", **attributes: str) -> _Html:
    given = {"class": klass, **attributes} if klass else attributes
    text = "".join(f' {key}="{html.escape(value)}"' for key, value in given.items())
    return _Html(f"<{name}{text}>{_escaped(content)}</{name}>")


def _figure(svg: str, caption: str, wide: bool = False) -> _Html:
    """A figure that scrolls sideways on a narrow screen instead of shrinking until it cannot be read."""
    return _tag(
        "figure",
        _tag("div", _Html(svg), klass="plot wide" if wide else "plot") + _tag("figcaption", caption),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], kinds: Mapping[int, str]) -> _Html:
    """A table that scrolls sideways in its box.

    `kinds` are the classes of columns that are not short texts: `number`, `name` (may break) or `free` (long).
    """

    def row(cells: Sequence[object], tag: str) -> _Html:
        return _tag("tr", _join(_tag(tag, cell, klass=kinds.get(i, "")) for i, cell in enumerate(cells)))

    body = _join(row(cells, "td") for cells in rows)
    table = _tag("table", _tag("thead", row(head, "th")) + _tag("tbody", body))
    return _tag("div", table, klass="table", tabindex="0")


def _split_table(head: Sequence[str], rows: Sequence[Sequence[object]], kinds: Mapping[int, str], what: str) -> _Html:
    """The first rows of a table, and the rest behind a click."""
    shown = _table(head, rows[:_MAX_OPEN_ROWS], kinds)
    if len(rows) <= _MAX_OPEN_ROWS:
        return shown
    rest = _table(head, rows[_MAX_OPEN_ROWS:], kinds)
    return shown + _tag("details", _tag("summary", f"{len(rows) - _MAX_OPEN_ROWS} more {what}") + rest)


def _nothing(text: str) -> _Html:
    return _tag("p", text, klass="nothing")


def _score(score: Score | None) -> str:
    if score is None or not known(score.value):
        return "–"
    return _number(score.value, score.standard_error)


def _number(value: float | None, error: float | None = None) -> str:
    """A score to four digits, with its standard error where that is known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f} ± {error:.4f}" if error is not None and math.isfinite(error) else f"{value:.4f}"


def _summary(data: ReportData) -> _Html:
    """What a reader wants to know first, as tiles and sentences."""
    counts = {state: sum(trial.state == state for trial in data.trials) for state in _STATES}
    best = data.finished()[:1]
    tiles = [
        (f"best {data.metric}", _number(best[0].value) if best else "–", _best_detail(data)),
        (
            "trials",
            str(len(data.trials)),
            ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "none yet",
        ),
        ("time spent", duration_text(data.cost.spent), "summed over trials"),
        ("time saved", duration_text(_saved(data.cost)), _saved_detail(data.cost)),
    ]
    cards = _join(
        _tag("div", _tag("dt", name) + _tag("dd", value) + _tag("dd", detail, klass="detail"), klass="tile")
        for name, value, detail in tiles
    )
    notes = _join(_tag("p", note, klass="note") for note in data.notes)
    return _tag("dl", cards, klass="tiles") + notes


def _best_detail(data: ReportData) -> str:
    finished = data.finished()
    if not finished:
        return "no trial has finished"
    best = finished[0]
    found = f"± {best.standard_error:.4f}, " if known(best.standard_error) else ""
    found += f"trial {best.number}, validation"
    paper = next((trial for trial in finished if trial.number == data.default_trial), None)
    if paper is None:
        return found
    if paper is best:
        return f"{found}: the paper's values"
    gain = (best.value or 0.0) - (paper.value or 0.0)
    return f"{found}; {gain:+.4f} against the paper's values"


def _saved(cost: Cost) -> float:
    return cost.saved_by_pruning + (cost.saved_by_reuse or 0.0)


def _saved_detail(cost: Cost) -> str:
    whole = cost.spent + _saved(cost)
    by = "by pruning" if cost.saved_by_reuse is None else "by pruning and reuse"
    return f"{by}, {_saved(cost) / whole:.0%} of the whole" if whole > 0 else by


def _group(name: str) -> _Html:
    return _tag("span", name, klass=f"badge {name}")


def _leaderboard(data: ReportData) -> _Html:
    finished = data.finished()
    if not finished:
        return _nothing("No trial has finished yet. Stopped and failed trials have no final value and no rank.")
    names = _varying(data)
    head = ["rank", "trial", f"{data.metric} ± SE", "time", *names]
    rows: list[list[object]] = []
    for rank, trial in enumerate(finished, start=1):
        name: object = f"{trial.number}"
        if trial.number == data.default_trial:
            name = _escaped(name) + " " + _tag("span", "paper's values", klass="badge paper")
        time = duration_text(trial.seconds) if trial.seconds is not None else "–"
        values = [parameter_text(trial.params[n]) if n in trial.params else "–" for n in names]
        rows.append([str(rank), name, _number(trial.value, trial.standard_error), time, *values])
    text = (
        f"Finished trials by {data.metric_title} on the validation split, larger is better; SE is the bootstrap "
        "standard error. Trials within about one SE of each other are not told apart by this split, and the best "
        "of many, chosen on it, looks somewhat better here than it is. "
    )
    fixed = [name for name in data.searched() if name not in names]
    if fixed and len(finished) > 1:
        text += f"The same in all trials: {', '.join(fixed)}. "
    return _tag("p", text) + _split_table(head, rows, dict.fromkeys((0, 2, 3), "number"), "finished trials")


def _varying(data: ReportData) -> list[str]:
    """Parameters that differ between trials, or all of them where there is one trial."""
    names = data.searched()
    if len(data.trials) < 2:
        return names
    return [name for name in names if len({parameter_text(t.params.get(name, "–")) for t in data.trials}) > 1]


def _history(data: ReportData) -> _Html:
    from lt_search import report_figures as figures

    if not data.trials:
        return _nothing("No trial has started yet.")
    caption = (
        f"{data.metric} of each finished trial on the validation split, with one standard error; the line is the "
        "best so far. Stopped, failed and running trials have no final value: they are marks at the lower edge."
    )
    return _figure(figures.optimisation_history(data), caption, wide=True)


def _rungs(data: ReportData) -> _Html:
    from lt_search import report_figures as figures

    if not any(rung.entries for rung in data.rungs):
        return _nothing("No trial has reached a rung yet, or this run prunes nothing.")
    survival = _figure(
        figures.rung_survival(data),
        "Trials that reached each rung, and what the rung decided. A stage 1 that several trials share counts once.",
    )
    values = _figure(
        figures.rung_values(data),
        f"Their {data.metric} there, with one standard error: of the probe in stage 1, of the model in stage 2. "
        "Values are compared within a rung only.",
    )
    return _tag("div", survival + values, klass="pair") + _probes(data)


def _probes(data: ReportData) -> _Html:
    """Whether the probe of stage 1 earns its place."""
    if not data.foresight:
        return _join(())
    rows = []
    for found in data.foresight:
        off = "turned off" if found.rung in data.turned_off else ""
        few = found.addresses < FEWEST
        told = ["too few" if few else _correlation(seen) for seen in (found.probe, found.head)]
        rows.append([str(found.rung), str(found.addresses), *told, off])
    head = ["rung", "stage 1s", "probe", "stage-1 head", ""]
    text = (
        f"How well a stage-1 rung foretells the final {data.metric}: Spearman's rank correlation of the value there "
        f"with the best final value of that stage 1, and its {CONFIDENCE:.0%} interval. A rung whose probe has an "
        f"interval below {BAR} over {ENOUGH} stage 1s or more is turned off. Only stage 1s of finished trials are "
        "counted: those that were stopped are missing at one end, which makes these correlations smaller than they "
        "would be over all, so a rung is rather turned off too early than too late."
    )
    return _tag("p", text) + _table(head, rows, {1: "number", 2: "number", 3: "number"})


def _correlation(found: Correlation | None) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "–"


def _importance(data: ReportData) -> _Html:
    from lt_search import report_figures as figures

    if not data.importances:
        return _nothing("Needs several finished trials whose parameters and values differ.")
    caption = (
        f"Share of the variation of {data.metric} among finished trials that a parameter explains. "
        "An estimate: with few trials it is a rough one."
    )
    return _tag("div", _figure(figures.importance(data), caption), klass="single")


def _coordinates(data: ReportData) -> _Html:
    from lt_search import report_figures as figures

    names = figures.coordinates(data)
    if not names:
        return _nothing("Needs at least two trials whose parameters differ.")
    hidden = len(_varying(data)) - len(names)
    caption = (
        f"A line is a trial, an axis a parameter, the last axis the final {data.metric} (up is better). Darker is "
        "better, the winner is red; grey lines are trials that did not finish. A line at “off” did not use "
        "the parameter."
    )
    if hidden:
        caption += f" {hidden} parameters are left out: the least important ones."
    return _figure(figures.parallel_coordinates(data), caption, wide=True)


def _classes(data: ReportData) -> _Html:
    from lt_search import report_figures as figures

    winner = data.winner
    if winner is None:
        return _nothing("No trial has finished yet.")
    if not winner.classes:
        return _nothing(f"{data.metric} counts images whatever their class and has no per-class values.")
    caption = (
        f"Trial {winner.trial} on the validation split: {winner.class_title} with one bootstrap standard error, "
        "classes from most to fewest training images."
    )
    rows: list[list[object]] = [[f"all classes ({data.metric})", "", "", _score(winner.overall)]]
    rows += [[f"mean of {name}", _group(name), "", _score(score)] for name, score in winner.groups.items()]
    rows += [
        [score.name, _group(score.group), f"{score.train_images:,}", _score(score.score)]
        for score in figures.by_frequency(winner)
    ]
    head = ["class", "group", "training images", f"{winner.class_title}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}SE"]
    table = _table(head, rows, {0: "name", 2: "number", 3: "number"})
    unscored = [c.name for c in winner.classes if c.score is None]
    if unscored:
        table += _tag("p", f"Not scored, for want of images in this split: {', '.join(unscored)}.", klass="nothing")
    figure = _figure(figures.class_scores(data.metric, winner), caption)
    return _tag("div", figure + _tag("div", table), klass="pair")


def _curves(data: ReportData) -> _Html:
    from lt_search import report_figures as figures

    best = data.winner.trial if data.winner else None
    captions = {
        1: f"Stage 1: {data.metric} of the probe, which foretells stage 2, at the rungs and at its end. ",
        2: f"Stage 2: {data.metric} of the model after each round. ",
    }
    shown = []
    for stage, text in captions.items():
        if any(known(value.value) for trial in data.trials for value in trial.history if value.stage == stage):
            winner = f"Trial {best}, the winner, is the thick line" if best is not None else ""
            head = "; dashed, its own head" if winner and stage == 1 else ""
            caption = f"{text}{winner}{head}{'.' if winner else ''}"
            shown.append(_figure(figures.learning_curves(data, stage), caption))
        else:
            shown.append(_nothing(f"No trial has a value of stage {stage} yet."))
    return _tag("div", _join(shown), klass="pair")


def _cost(data: ReportData) -> _Html:
    from lt_search import report_figures as figures

    cost = data.cost
    if cost.spent + _saved(cost) <= 0:
        return _nothing("No time was measured yet.")
    sentence = f"Trials took {duration_text(cost.spent)} in sum. "
    sentence += f"Stopping trials early saved an estimated {duration_text(cost.saved_by_pruning)}"
    if cost.saved_by_reuse is None:
        sentence += "."
    else:
        sentence += f", and using a stage 1 again instead of training it {duration_text(cost.saved_by_reuse)}."
    caption = "Time summed over trials. What is saved is estimated from the trials that did run to the end."
    return _tag("p", sentence) + _figure(figures.cost(data), caption, wide=True)


def _trials(data: ReportData) -> _Html:
    if not data.trials:
        return _nothing("No trial has started yet.")
    rows = []
    for trial in sorted(data.trials, key=lambda row: row.number):
        last = trial.history[-1] if trial.history else None
        params = ", ".join(f"{name} = {parameter_text(value)}" for name, value in trial.params.items())
        more = _tag("details", _tag("summary", "show") + _tag("p", params, klass="params")) if params else "–"
        if trial.reason:
            more = _tag("pre", trial.reason) + more
        rows.append(
            [
                str(trial.number),
                _tag("span", trial.state, klass=f"badge {trial.state}"),
                f"stage {last.stage}, step {last.step}" if last else "–",
                _number(last.value) if last else "–",
                _number(trial.value, trial.standard_error),
                duration_text(trial.seconds) if trial.seconds is not None else "–",
                more,
            ]
        )
    head = [
        "trial",
        "state",
        "last step",
        f"{data.metric} there",
        f"final {data.metric}",
        "time",
        "parameters, errors",
    ]
    return _split_table(head, rows, dict.fromkeys((0, 3, 4, 5), "number") | {6: "free"}, "trials")


def _facts(data: ReportData) -> _Html:
    facts = {"objective": f"{data.metric}, {data.metric_title}; maximised", **data.facts}
    return _tag("dl", _join(_tag("dt", k) + _tag("dd", v) for k, v in facts.items()), klass="facts")


_STATES: tuple[TrialState, ...] = ("finished", "pruned", "failed", "running")

_STYLE = """
:root { --ink: #1c2430; --soft: #5a6472; --line: #dfe3e8; --paper: #fff; --ground: #f6f7f9; --blue: #0072b2; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
header, nav, main { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
.kicker { margin: 0; color: var(--soft); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; }
h1 { margin: 0 0 18px; font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 10px; font-size: 1.2rem; }
p { max-width: 75ch; margin: 0 0 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 0 0 14px; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.tile dt { color: var(--soft); font-size: .85rem; }
.tile dd { margin: 0; font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile dd.detail { font-size: .85rem; font-weight: 400; color: var(--soft); line-height: 1.4; }
.note { max-width: none; background: #fff8e6; border-left: 4px solid #e69f00; padding: 8px 14px;
  overflow-wrap: anywhere; }
nav { position: sticky; top: 0; z-index: 2; display: flex; gap: 4px 18px; overflow-x: auto; white-space: nowrap;
  background: var(--ground); padding-top: 10px; padding-bottom: 10px; font-size: .88rem; }
nav a { color: var(--blue); text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 20px;
  margin: 0 0 16px; scroll-margin-top: 52px; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: .88rem; max-width: 85ch; margin-top: 6px; }
.plot { overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; min-width: 440px; }
.plot.wide svg { min-width: 760px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px 28px;
  align-items: start; }
.pair > * { min-width: 0; }
.single { max-width: 640px; }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
td.name { white-space: normal; min-width: 7rem; overflow-wrap: anywhere; }
td.free { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
th { background: #eef1f4; font-weight: 600; white-space: normal; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; }
.badge { display: inline-block; padding: 0 8px; border-radius: 9px; font-size: .8rem; white-space: nowrap;
  border: 1px solid currentColor; }
.finished, .head { color: #00598c; }
.pruned { color: #8a5a00; }
.failed, .tail { color: #a84300; }
.running { color: #8d3f6c; }
.medium { color: #00694d; }
.paper { color: var(--soft); }
details { margin-top: 6px; }
td details { margin: 0; }
summary { cursor: pointer; color: var(--blue); }
pre { margin: 0 0 4px; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; max-height: 12em;
  overflow: auto; background: var(--ground); padding: 6px 8px; border-radius: 4px; }
.params { margin: 0; overflow-wrap: anywhere; }
.nothing { color: var(--soft); font-style: italic; margin: 6px 0 0; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  header, nav, main { padding-left: 12px; padding-right: 12px; }
  section { padding: 14px 12px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile { padding: 10px 12px; }
  .tile dd { font-size: 1.25rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 8px; }
}
@media print { nav { display: none; } section { break-inside: avoid; } }
"""

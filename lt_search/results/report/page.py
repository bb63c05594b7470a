"""One self-contained HTML page about a run: `render(ReportData) -> str`.

The page requests nothing: style and figures (SVG) are inside it. It is made from `ReportData` alone, so it can be made
of a running, an interrupted or a finished search.
"""

from __future__ import annotations

import html
import math

from lt_search.pruning.probe_audit import CONFIDENCE, MIN_SAMPLES, Correlation
from lt_search.results.report.content import Cost, ReportData, Score, TrialState
from lt_search.results.report.markup import STYLE, Html, clean, escaped, figure, join, nothing, split_table, table, tag
from lt_search.results.report.text import duration_text, known, parameter_text


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
    navigation = join(tag("a", name, href=f"#{name.lower()}") for name, _, _ in sections)
    body = join(tag("section", tag("h2", heading) + content, id=name.lower()) for name, heading, content in sections)
    title = clean(data.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)} – search report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>{tag('p', 'Hyperparameter search', klass='kicker')}{tag('h1', title)}{_summary(data)}</header>\n"
        f"<nav>{navigation}</nav>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _score(score: Score | None) -> str:
    if score is None or not known(score.value):
        return "–"
    return _number(score.value, score.standard_error)


def _number(value: float | None, error: float | None = None) -> str:
    """A score to four digits, with its standard error where that is known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f} ± {error:.4f}" if error is not None and math.isfinite(error) else f"{value:.4f}"


def _summary(data: ReportData) -> Html:
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
    cards = join(
        tag("div", tag("dt", name) + tag("dd", value) + tag("dd", detail, klass="detail"), klass="tile")
        for name, value, detail in tiles
    )
    notes = join(tag("p", note, klass="note") for note in data.notes)
    return tag("dl", cards, klass="tiles") + notes


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


def _group(name: str) -> Html:
    return tag("span", name, klass=f"badge {name}")


def _leaderboard(data: ReportData) -> Html:
    finished = data.finished()
    if not finished:
        return nothing("No trial has finished yet. Stopped and failed trials have no final value and no rank.")
    names = _varying(data)
    head = ["rank", "trial", f"{data.metric} ± SE", "time", *names]
    rows: list[list[object]] = []
    for rank, trial in enumerate(finished, start=1):
        name: object = f"{trial.number}"
        if trial.number == data.default_trial:
            name = escaped(name) + " " + tag("span", "paper's values", klass="badge paper")
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
    return tag("p", text) + split_table(head, rows, dict.fromkeys((0, 2, 3), "number"), "finished trials")


def _varying(data: ReportData) -> list[str]:
    """Parameters that differ between trials, or all of them where there is one trial."""
    names = data.searched()
    if len(data.trials) < 2:
        return names
    return [name for name in names if len({parameter_text(t.params.get(name, "–")) for t in data.trials}) > 1]


def _history(data: ReportData) -> Html:
    from lt_search.results.report import figures

    if not data.trials:
        return nothing("No trial has started yet.")
    caption = (
        f"{data.metric} of each finished trial on the validation split, with one standard error; the line is the "
        "best so far. Stopped, failed and running trials have no final value: they are marks at the lower edge."
    )
    return figure(figures.optimisation_history(data), caption, wide=True)


def _rungs(data: ReportData) -> Html:
    from lt_search.results.report import figures

    if not any(rung.entries for rung in data.rungs):
        return nothing("No trial has reached a rung yet, or this run prunes nothing.")
    survival = figure(
        figures.rung_survival(data),
        "Trials that reached each rung, and what the rung decided. A stage 1 that several trials share counts once.",
    )
    values = figure(
        figures.rung_values(data),
        f"Their {data.metric} there, with one standard error: of the probe in stage 1, of the model in stage 2. "
        "Values are compared within a rung only.",
    )
    return tag("div", survival + values, klass="pair") + _probes(data)


def _probes(data: ReportData) -> Html:
    """Whether the probe of stage 1 earns its place."""
    if not data.probe_audit:
        return join(())
    rows = []
    for found in data.probe_audit:
        few = found.n < MIN_SAMPLES
        cells = ["too few" if few else _correlation(seen) for seen in (found.probe, found.head)]
        rows.append([str(found.rung), str(found.n), *cells])
    head = ["rung", "stage-1 runs", "probe", "stage-1 head"]
    text = (
        f"Spearman's rank correlation between the score at a stage-1 rung and the best final {data.metric} of that "
        f"stage-1 run, with its {CONFIDENCE:.0%} interval. Only stage-1 runs of finished trials are counted: those "
        "that were stopped are missing at one end, which makes these correlations smaller than they would be over all."
    )
    return tag("p", text) + table(head, rows, {1: "number", 2: "number", 3: "number"})


def _correlation(found: Correlation | None) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "–"


def _importance(data: ReportData) -> Html:
    from lt_search.results.report import figures

    if not data.importances:
        return nothing("Needs several finished trials whose parameters and values differ.")
    caption = (
        f"Share of the variation of {data.metric} among finished trials that a parameter explains. "
        "An estimate: with few trials it is a rough one."
    )
    return tag("div", figure(figures.importance(data), caption), klass="single")


def _coordinates(data: ReportData) -> Html:
    from lt_search.results.report import figures

    names = figures.coordinates(data)
    if not names:
        return nothing("Needs at least two trials whose parameters differ.")
    hidden = len(_varying(data)) - len(names)
    caption = (
        f"A line is a trial, an axis a parameter, the last axis the final {data.metric} (up is better). Darker is "
        "better, the winner is red; grey lines are trials that did not finish. A line at “off” did not use "
        "the parameter."
    )
    if hidden:
        caption += f" {hidden} parameters are left out: the least important ones."
    return figure(figures.parallel_coordinates(data), caption, wide=True)


def _classes(data: ReportData) -> Html:
    from lt_search.results.report import figures

    winner = data.winner
    if winner is None:
        return nothing("No trial has finished yet.")
    if not winner.classes:
        return nothing(f"{data.metric} counts images whatever their class and has no per-class values.")
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
    scores = table(head, rows, {0: "name", 2: "number", 3: "number"})
    unscored = [c.name for c in winner.classes if c.score is None]
    if unscored:
        scores += tag("p", f"Not scored, for want of images in this split: {', '.join(unscored)}.", klass="nothing")
    return tag("div", figure(figures.class_scores(data.metric, winner), caption) + tag("div", scores), klass="pair")


def _curves(data: ReportData) -> Html:
    from lt_search.results.report import figures

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
            shown.append(figure(figures.learning_curves(data, stage), caption))
        else:
            shown.append(nothing(f"No trial has a value of stage {stage} yet."))
    return tag("div", join(shown), klass="pair")


def _cost(data: ReportData) -> Html:
    from lt_search.results.report import figures

    cost = data.cost
    if cost.spent + _saved(cost) <= 0:
        return nothing("No time was measured yet.")
    sentence = f"Trials took {duration_text(cost.spent)} in sum. "
    sentence += f"Stopping trials early saved an estimated {duration_text(cost.saved_by_pruning)}"
    if cost.saved_by_reuse is None:
        sentence += "."
    else:
        sentence += f", and using a stage 1 again instead of training it {duration_text(cost.saved_by_reuse)}."
    caption = "Time summed over trials. What is saved is estimated from the trials that did run to the end."
    return tag("p", sentence) + figure(figures.cost(data), caption, wide=True)


def _trials(data: ReportData) -> Html:
    if not data.trials:
        return nothing("No trial has started yet.")
    rows = []
    for trial in sorted(data.trials, key=lambda row: row.number):
        last = trial.history[-1] if trial.history else None
        params = ", ".join(f"{name} = {parameter_text(value)}" for name, value in trial.params.items())
        more = tag("details", tag("summary", "show") + tag("p", params, klass="params")) if params else "–"
        if trial.reason:
            more = tag("pre", trial.reason) + more
        rows.append(
            [
                str(trial.number),
                tag("span", trial.state, klass=f"badge {trial.state}"),
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
    return split_table(head, rows, dict.fromkeys((0, 3, 4, 5), "number") | {6: "free"}, "trials")


def _facts(data: ReportData) -> Html:
    facts = {"objective": f"{data.metric}, {data.metric_title}; maximised", **data.facts}
    return tag("dl", join(tag("dt", k) + tag("dd", v) for k, v in facts.items()), klass="facts")


_STATES: tuple[TrialState, ...] = ("finished", "pruned", "failed", "running", "interrupted")

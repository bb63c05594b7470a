"""HTML page of a run's report, rendered from `ReportData` alone; the page loads nothing from elsewhere."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lt_search.pruning.probe_audit import CONFIDENCE, MIN_SAMPLES
from lt_search.results.report.content import ReportData
from lt_search.results.report.text import clean, duration_text, known, parameter_text, score_text

SECTIONS = (
    "Leaderboard", "History", "Rungs", "Importance", "Coordinates", "Classes", "Curves", "Cost", "Trials", "Run",
)  # fmt: skip
"""Sections in order, as the navigation names them; each has a template, and an anchor, of that name in lower case."""


def render(data: ReportData) -> str:
    """The report as one HTML page with its style and its figures (SVG) inside.

    Imports matplotlib, which takes about a second.
    """
    from lt_search.results.report import figures

    page = _environment().get_template("page.html.j2")
    return page.render(data=data, figures=figures, sections=SECTIONS, confidence=CONFIDENCE, fewest=MIN_SAMPLES)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration_text, "parameter": parameter_text, "score": score_text}
    environment.tests["known"] = known
    environment.globals["enumerate"] = enumerate
    return environment

"""HTML from Python values, and the style of a page: what is not markup already is escaped where it enters."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

_MAX_OPEN_ROWS = 25
"""Rows of a table that are shown at once; the rest is one click away."""


def clean(value: object) -> str:
    """Text without characters that HTML or UTF-8 cannot hold; an error message of a trial may hold any."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(value))


class Html(str):
    """Markup: text that is already escaped. Any other string is escaped where it enters the page."""

    __slots__ = ()

    def __add__(self, other: str) -> Html:
        return Html(str.__add__(self, escaped(other)))


def escaped(value: object) -> Html:
    """A value as markup."""
    return value if isinstance(value, Html) else Html(html.escape(clean(value)))


def join(parts: Iterable[object]) -> Html:
    """Values one after another."""
    return Html("".join(escaped(part) for part in parts))


def tag(name: str, content: object = "", klass: str = "", **attributes: str) -> Html:
    """An element; `klass` are its CSS classes."""
    given = {"class": klass, **attributes} if klass else attributes
    text = "".join(f' {key}="{html.escape(value)}"' for key, value in given.items())
    return Html(f"<{name}{text}>{escaped(content)}</{name}>")


def figure(svg: str, caption: str, wide: bool = False) -> Html:
    """A figure that scrolls sideways on a narrow screen instead of shrinking until it cannot be read."""
    return tag(
        "figure",
        tag("div", Html(svg), klass="plot wide" if wide else "plot") + tag("figcaption", caption),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]], kinds: Mapping[int, str]) -> Html:
    """A table that scrolls sideways in its box.

    `kinds` are the classes of columns that are not short texts: `number`, `name` (may break) or `free` (long).
    """

    def row(cells: Sequence[object], kind: str) -> Html:
        return tag("tr", join(tag(kind, cell, klass=kinds.get(i, "")) for i, cell in enumerate(cells)))

    body = join(row(cells, "td") for cells in rows)
    whole = tag("table", tag("thead", row(head, "th")) + tag("tbody", body))
    return tag("div", whole, klass="table", tabindex="0")


def split_table(head: Sequence[str], rows: Sequence[Sequence[object]], kinds: Mapping[int, str], what: str) -> Html:
    """The first rows of a table, and the rest behind a click."""
    shown = table(head, rows[:_MAX_OPEN_ROWS], kinds)
    if len(rows) <= _MAX_OPEN_ROWS:
        return shown
    rest = table(head, rows[_MAX_OPEN_ROWS:], kinds)
    return shown + tag("details", tag("summary", f"{len(rows) - _MAX_OPEN_ROWS} more {what}") + rest)


def nothing(text: str) -> Html:
    """What stands where there is nothing to show."""
    return tag("p", text, klass="nothing")


STYLE = """
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

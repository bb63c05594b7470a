from __future__ import annotations

from lt_search.results.report.markup import escaped, join, split_table, table, tag


def test_text_is_escaped_once_where_it_enters_and_markup_is_not() -> None:
    inner = tag("b", "<1 & 2>")
    assert inner == "<b>&lt;1 &amp; 2&gt;</b>"
    assert escaped(inner) is inner
    assert tag("p", inner + " < " + join([inner, "&"])) == f"<p>{inner} &lt; {inner}&amp;</p>"


def test_an_attribute_cannot_be_left() -> None:
    assert tag("a", "x", klass='"><script>', href='"') == '<a class="&quot;&gt;&lt;script&gt;" href="&quot;">x</a>'


def test_characters_that_a_page_cannot_hold_are_replaced() -> None:
    assert escaped("a\x00b\ud800c\td") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\td"


def test_a_long_table_keeps_its_rest_behind_a_click() -> None:
    rows = [[number, "x"] for number in range(30)]
    assert split_table(["n", "what"], rows[:25], {0: "number"}, "rows") == table(
        ["n", "what"], rows[:25], {0: "number"}
    )
    page = split_table(["n", "what"], rows, {0: "number"}, "rows")
    shown, rest = page.split("<details>")
    assert "<summary>5 more rows</summary>" in rest
    assert shown.count("<tr>") == 26
    assert rest.count("<tr>") == 6
    assert '<td class="number">25</td>' in rest

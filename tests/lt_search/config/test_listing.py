from __future__ import annotations

import io

from rich.console import Console, RenderableType

from lt_search.config.listing import list_spaces, show_space


def text_of(shown: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=400)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_space_is_listed_with_its_data_and_what_it_is() -> None:
    lines = text_of(list_spaces()).splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith("lmd: "))
    assert "multi-class" in lines[number] and "relation-aware" in lines[number + 1]
    assert "in each of 16 rows" in next(line for line in lines if line.startswith("baselines: "))


def test_a_space_shows_each_field_with_default_range_and_meaning() -> None:
    lines = text_of(show_space("lmd")).splitlines()
    line = next(line for line in lines if line.startswith("stage2.q "))
    assert "0.8" in line and "uniform(0.1, 1.0) when stage2.label_loss == gce" in line
    assert "generalised cross-entropy" in line
    line = next(line for line in lines if line.startswith("stage2.classifier_lr "))
    assert "full: loguniform(1e-5, 1e-1); small: loguniform(1e-2, 5.0)" in line


def test_rows_are_shown_with_what_makes_them_and_what_they_search() -> None:
    lines = text_of(show_space("baselines")).splitlines()
    line = next(line for line in lines if line.startswith("crt "))
    assert "stage2.method=crt" in line and "stage2.lr loguniform(1e-2, 50)" in line

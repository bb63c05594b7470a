"""What a comparison refuses before anything is trained; whole comparisons are in `tests/searches/`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lt_search.config.options import RunOptions, SpecOptions
from lt_search.errors import ExitCode, UserError
from lt_search.storage.run_folder import COMPARISON
from lt_search.tuning.comparison import compare, search_or_compare
from tests.helpers.extra_data import extra_table


@pytest.fixture
def rows(tiny_space: Path) -> Path:
    tiny_space.write_text(tiny_space.read_text() + "rows:\n  one: {}\n  two: {set: {stage1.lr: 1.5}}\n")
    return tiny_space


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is started: `search` or `compare`, instead of doing it."""
    started: list[str] = []
    for name in ("search", "compare"):
        monkeypatch.setattr(f"lt_search.tuning.comparison.{name}", lambda *_, name=name: started.append(name))
    return started


def test_a_space_of_rows_is_compared_unless_one_is_chosen(
    rows: Path, tiny_space: Path, tiny_csv: Path, tmp_path: Path, chosen: list[str]
) -> None:
    how = RunOptions(storage=str(tmp_path / "runs"))
    for options in (SpecOptions(str(rows)), SpecOptions(str(rows), row="one"), SpecOptions("ldrnet")):
        search_or_compare(replace(options, dataset=str(tiny_csv)), how, Console(quiet=True))
    assert chosen == ["compare", "search", "search"]


def test_an_existing_comparison_is_resumed_by_name_and_by_path(
    tmp_path: Path, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / COMPARISON).write_text("rows: [one]\noptions: {}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "runs/a", str(folder), "b"):
        how = RunOptions(storage=str(tmp_path / "runs"), resume=name)
        search_or_compare(SpecOptions(), how, Console(quiet=True))
    assert chosen == ["compare", "compare", "compare", "search"]


def test_mistakes_in_every_row_are_reported_before_the_first_one_trains(
    rows: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    text = rows.read_text().replace("two: {set: {stage1.lr: 1.5}}", "two: {set: {stage1.lr: 99}}")
    rows.write_text(text + "  three: {search: {stage1.nothing: bool()}}\n")
    storage = tmp_path / "runs"
    with pytest.raises(UserError) as raised:
        compare(SpecOptions(str(rows), str(tiny_csv)), RunOptions(storage=str(storage), name="a"), Console(quiet=True))
    found = str(raised.value)
    assert "must be at most 10 (given: 99)" in found
    assert "stage1.nothing" in found
    assert not storage.exists() or not os.listdir(storage)


@pytest.fixture
def cxr_rows(tmp_path: Path) -> Path:
    path = tmp_path / "cxr_rows.yaml"
    path.write_text(
        """
trainer: cxr
metric: mAP
set: {stage1.backbone: conv4, stage1.weights: none, stage1.d_model: 8, stage1.heads: 2, stage1.epochs: 1}
budgets: {small: {trials: 1, image_size: 8, set: {stage2.rounds: 1}}}
rows:
  zero: {set: {stage1.missing_labels: zero}}
  mask: {set: {stage1.missing_labels: mask}}
"""
    )
    return path


def test_rows_are_compared_with_the_same_extra_data(
    cxr_rows: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, SpecOptions] = {}

    def search(options: SpecOptions, how: RunOptions, console: Console, inputs: object = None) -> ExitCode:
        begun[str(options.row)] = options
        return ExitCode.INTERRUPTED

    monkeypatch.setattr("lt_search.tuning.comparison.search", search)
    monkeypatch.setattr("lt_search.tuning.comparison.ray_cluster", lambda address: nullcontext())
    extra = extra_table(tmp_path / "more", "a", "b")
    options = SpecOptions(str(cxr_rows), str(tiny_csv), extra_data=(str(extra),))
    runs = str(tmp_path / "runs")
    compare(options, RunOptions(storage=runs, name="both"), Console(quiet=True))
    assert begun.pop("zero").extra_data == (str(extra),)
    moved = extra.with_name("moved.csv")
    moved.write_bytes(extra.read_bytes())
    for given, expected in (((), (str(extra),)), ((str(moved),), (str(moved),))):
        resumed = SpecOptions("", extra_data=given)
        compare(resumed, RunOptions(storage=runs, resume="both"), Console(quiet=True))
        assert begun.pop("zero").extra_data == expected


def test_weights_that_a_later_row_lacks_are_reported_before_the_first_one_trains(tmp_path: Path) -> None:
    space = tmp_path / "weights.yaml"
    space.write_text(
        """
trainer: decoupled
metric: BACC
set: {stage1.backbone: conv4, stage1.weights: none}
budgets: {small: {trials: 1}}
rows:
  one: {}
  two: {set: {stage1.backbone: resnet18, stage1.weights: /no/such/file.pt}}
"""
    )
    with pytest.raises(UserError, match=r"no/such/file\.pt: no such file"):
        compare(SpecOptions(str(space), "digits-lt"), RunOptions(storage=str(tmp_path / "runs")), Console(quiet=True))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["rows: nothing", "rows: [a]\noptions: [1]", "[1]", "rows: [a]\noptions: {spice: x}"])
def test_a_damaged_comparison_is_named(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / COMPARISON).write_text(text)
    with pytest.raises(UserError, match=r"comparison\.yaml: is damaged"):
        compare(SpecOptions(""), RunOptions(storage=str(tmp_path / "runs"), resume="a"), Console(quiet=True))


def test_a_comparison_whose_options_were_edited_is_refused(
    rows: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_search.tuning.comparison.search", lambda *_: ExitCode.INTERRUPTED)
    monkeypatch.setattr("lt_search.tuning.comparison.ray_cluster", lambda address: nullcontext())
    how = RunOptions(storage=str(tmp_path / "runs"))
    compare(SpecOptions(str(rows), str(tiny_csv)), replace(how, name="a"), Console(quiet=True))
    compare(SpecOptions(), replace(how, resume="a"), Console(quiet=True))
    kept = tmp_path / "runs/a" / COMPARISON
    kept.write_text(kept.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="was changed after"):
        compare(SpecOptions(), replace(how, resume="a"), Console(quiet=True))

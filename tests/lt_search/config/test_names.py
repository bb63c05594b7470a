from __future__ import annotations

import pytest

from lt_search.config.names import numbered_stem, row_name_problem, run_name_problem


@pytest.mark.parametrize("name", ["a", "my-run_2.1", "stage1-0001", "x" * 100, "étude"])
def test_names_of_folders_are_accepted(name: str) -> None:
    assert run_name_problem(name) is None and row_name_problem(name) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a.", "a/b", "a b", "-a", "x" * 101, "é" * 60, "stage1", "Stage1"]
)
def test_names_that_cannot_name_a_run_are_refused(name: str) -> None:
    assert run_name_problem(name) is not None


@pytest.mark.parametrize("name", ["comparison.yaml", "ranking.csv", "driver.lock"])
def test_files_of_a_comparison_cannot_name_its_rows(name: str) -> None:
    assert row_name_problem(name) is not None and run_name_problem(name) is None


def test_a_default_name_leaves_room_for_its_number() -> None:
    assert numbered_stem("lmd") == "lmd" and numbered_stem("/some/where/mine.yaml") == "mine"
    assert len(numbered_stem("x" * 250 + ".yaml")) == 100

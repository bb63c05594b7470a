from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.config.space import load_space, parse_space, shipped_spaces
from lt_search.errors import UserError


def test_every_shipped_space_can_be_read() -> None:
    names = list(shipped_spaces())
    assert {"ldrnet", "ldrnet-stage2"} <= set(names)
    for name in names:
        assert {"small", "full"} <= set(load_space(name).budgets)


def test_an_unknown_space_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean ldrnet"):
        load_space("ldrnett")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_space(str(tmp_path / "mine.yaml"))


def test_all_mistakes_of_a_file_come_in_one_message() -> None:
    text = """
trainer: ldrnet
metric: mAP
search:
  stage1.lr: loguniform(0, 1)
  stage2.q: {range: "uniform(1, 0.1)", when: "stage2.gce_form > 2"}
budgets:
  small: {trials: 3, search: {stage2.alpha: "uniform(1)"}}
"""
    with pytest.raises(UserError) as raised:
        parse_space(text, "mine.yaml")
    places = [problem.place for problem in raised.value.problems]
    assert places == [
        "mine.yaml: search.stage1.lr",
        "mine.yaml: search.stage2.q",
        "mine.yaml: search.stage2.q.when",
        "mine.yaml: budgets.small.search.stage2.alpha",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: [", "not valid YAML"),
        ("trainer: ldrnet\nmetric: mAP\nbudgets: {}\nsurch: {}", "surch"),
        ("trainer: ldrnet\nmetric: mAP\nbudgets: {small: {trials: 0}}", "trials"),
        ("trainer: ldrnet\nmetric: mAP\nbudgets: {small: {trials: 3, rungs: {eta: 1}}}", "eta"),
        *(
            (f"trainer: ldrnet\nmetric: mAP\nbudgets: {{small: {{trials: 3, rungs: {{stage1: [{p}]}}}}}}", "fractions")
            for p in (".nan", "-0.5", "0", "2.7")
        ),
        ("trainer: lmd\nmetric: BACC\nset: {stage1: 5}\nbudgets: {}", "is no field of a stage"),
        ("trainer: lmd\nmetric: BACC\nbudgets: {}\nrows: {a b: {}}", "cannot name a folder"),
        ("just words", "mine.yaml"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_space(text, "mine.yaml")

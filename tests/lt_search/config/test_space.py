from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.config.budget_resolver import check_space
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
    with pytest.raises(UserError, match=r"use one of .*ldrnet-stage2, ldrnet, ") as raised:
        load_space("vit-large")
    assert "did you mean" not in str(raised.value)


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
        "mine.yaml: budgets.small.search.stage2.alpha",
    ]
    assert "'uniform(1, 0.1)' is reversed" in str(raised.value) and "'stage2.gce_form > 2' is not" in str(raised.value)


LMD = "trainer: lmd\nmetric: BACC\nbudgets: {small: {trials: 3}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: [", "not valid YAML"),
        ("trainer: ldrnet\nmetric: mAP\nbudgets: {}\nsurch: {}", "surch"),
        ("trainer: ldrnet\nmetric: mAP\nbudgets: {small: {trials: 0}}", "trials"),
        ("trainer: ldrnet\nmetric: mAP\nbudgets: {small: {trials: 3, rungs: {eta: 1}}}", "eta"),
        *(
            (
                f"trainer: ldrnet\nmetric: mAP\nbudgets: {{small: {{trials: 3, rungs: {{stage1: [{p}]}}}}}}",
                "fraction above 0",
            )
            for p in (".nan", "-0.5", "0", "2.7")
        ),
        (f"{LMD}set: {{stage1: 5}}", "set.stage1: is not in a stage"),
        (f"{LMD}rows: {{a b: {{}}}}", "cannot name a folder"),
        (f"{LMD}rows: {{stage1: {{}}}}", "'stage1' is reserved"),
        (f"{LMD}rows: {{ranking.csv: {{}}}}", "'ranking.csv' is reserved"),
        ("trainer: lmd\nmetric: BACC\nbudgets: {}", "budgets: must have at least 1 entries"),
        (f"{LMD}metric: mAP", "line 4, column 1: the key 'metric' occurs twice, first in line 2"),
        (f"{LMD}search:\n  stage1.lr: uniform(0, 1)\n  stage1.lr: uniform(0, 2)", "line 6.*first in line 5"),
        (f"{LMD}search: [stage1.lr]", "search: must be a mapping"),
        (f"{LMD}search: {{stage1.lr: [0, 1]}}", r"search.stage1.lr: must be a range such as uniform\(0, 1\)"),
        (f"{LMD}search: {{stage1.lr: 'uniform(0, .nan)'}}", "nan"),
        (f"{LMD}search: {{stage1.lr: 'uniform(0, inf)'}}", "inf is not a finite number"),
        (f"{LMD}set: {{stage1.lr: .inf}}", "set.stage1.lr: must be a finite number"),
        (f"{LMD}set: {{stage1.lr: 2024-01-01}}", "set.stage1.lr: must be one value"),
        (f"{LMD}set: {{stage1.lr: 2024-99-01}}", "has a value that cannot be read"),
        (f"{LMD}set: {{stage1.lr: !!float x}}", "has a value that cannot be read"),
        (f"{LMD}set: {{stage1.epochs: {'9' * 5000}}}", "the integer has too many digits"),
        (f"{LMD}set: {{stage1.lr: {'[' * 5000}{']' * 5000}}}", "is nested too deeply"),
        (f"{LMD}set: &a {{stage1.lr: *a}}", "set.stage1.lr: must be one value"),
        (f"{LMD}set: {{1: 2}}", "set.1: must be text"),
        ("just words", "mine.yaml"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        parse_space(text, "mine.yaml")
    for internal in ("ParameterEntry", "Input should", "Value error", "<unicode string>", "Node(", "Traceback"):
        assert internal not in str(raised.value)


def test_a_name_that_is_merged_and_overridden_is_not_a_doubled_key() -> None:
    budgets = "budgets: {small: {trials: 3, set: {<<: *s, stage1.lr: 0.2}}}"
    text = f"trainer: lmd\nmetric: BACC\nset: &s {{stage1.lr: 0.1}}\n{budgets}"
    assert parse_space(text, "mine.yaml").budgets["small"].set == {"stage1.lr": 0.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("metric: mPA", "mine.yaml: metric: unknown metric 'mPA'"),
        ("trainer: trainers.base:TwoStageTrainer", "trainer: .*is incomplete: it lacks"),
        ("trainer: no_such_module:Mine", "cannot be imported.*\n.*PYTHONPATH"),
        (
            "search: {stage1.lrr: bool()}",
            "mine.yaml: search.stage1.lrr: lmd has no parameter.*\n.*did you mean stage1.lr",
        ),
        ("search: {stage1.colour_of_hat: bool()}", "lists all fields"),
        ("search: {stage1.lr: 'uniform(0, 99)'}", "outside the field's bounds at 0"),
        ("search: {stage1.lr: 'uniform(0.5, 0.6)'}", "leaves out 0.01, the value of the first trial"),
        ("search: {stage1.lr: {range: 'uniform(0.001, 0.5)', when: stage1.nope == 1}}", "no parameter 'stage1.nope'"),
        ("set: {stage1.lr: 99}", "mine.yaml: stage1.lr: must be at most"),
        ("budgets: {small: {trials: 3, rungs: {stage1: [999]}}}", "a rung at step 999 is outside"),
    ],
)
def test_a_space_is_refused_without_data_for_what_a_search_would_refuse(change: str, message: str) -> None:
    key = change.partition(":")[0]
    lines = [line for line in LMD.splitlines() if not line.startswith(f"{key}:")]
    space = parse_space("\n".join([*lines, change]), "mine.yaml")
    with pytest.raises(UserError, match=message):
        check_space(space, "mine.yaml")


def test_shipped_spaces_have_no_mistakes() -> None:
    for name in shipped_spaces():
        check_space(load_space(name), name)

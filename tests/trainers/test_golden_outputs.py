from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import Field

from tests.trainers import golden
from trainers.images import augment
from trainers.methods.lmd import LMDConfig, LMDStage1, LMDTrainer
from trainers.registry import BUILT_IN, find_trainer


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_stage_1_gives_what_is_recorded_for_its_code_version(name: str) -> None:
    recorded = golden.read()[name]
    measured = golden.measure(find_trainer(name), recorded)
    problems = golden.must_be_raised({name: recorded}, {name: measured})
    assert not problems, "\n".join(problems)
    new = golden.incomplete(recorded, measured)
    assert not new, f"not recorded, or gone: {', '.join(new)}; run {golden.COMMAND}"
    assert measured["code_version"] == recorded["code_version"], f"run {golden.COMMAND}"


class _OtherDefault(LMDStage1):
    flips: Any = "horizontal"


class _OtherConfig(LMDConfig):
    stage1: _OtherDefault = Field(default_factory=_OtherDefault)


class _LMD(LMDTrainer):
    config_type: ClassVar[Any] = _OtherConfig


def test_another_default_asks_for_a_higher_code_version() -> None:
    recorded = golden.read()["lmd"]
    (problem,) = golden.must_be_raised({"lmd": recorded}, {"lmd": golden.measure(_LMD, recorded)})
    assert "raise code_version of lmd" in problem
    assert "the default of stage1.flips is 'horizontal', and was 'both'" in problem


def test_another_augmentation_asks_for_a_higher_code_version(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = golden.read()["ldrnet"]
    monkeypatch.setattr(augment, "ROTATE_DEGREES", 13.0)
    changes = golden.changes(recorded, golden.measure(find_trainer("ldrnet"), recorded))
    assert [change.partition(":")[0] for change in changes] == ["multi-label, augmentation=crop+flip+rotate"]


def test_the_record_is_not_written_anew_under_the_same_code_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = golden.RECORD.read_text()
    monkeypatch.setattr(golden, "BUILT_IN", ["lmd"])
    monkeypatch.setattr(golden, "find_trainer", lambda name: _LMD)
    assert golden.main() == 1
    assert golden.RECORD.read_text() == before
    assert f"raise code_version of lmd (now {LMDTrainer.code_version})" in capsys.readouterr().err

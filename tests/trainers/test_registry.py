from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.methods.ldrnet import LDRNetTrainer
from trainers.registry import BUILT_IN, UnknownTrainer, available, find_trainer


def test_built_in_trainers_are_found_by_name() -> None:
    assert find_trainer("ldrnet") is LDRNetTrainer
    assert set(BUILT_IN) <= set(available())
    for name in BUILT_IN:
        assert find_trainer(name).name == name


def test_a_class_of_any_module_is_found() -> None:
    assert find_trainer("trainers.methods.ldrnet:LDRNetTrainer") is LDRNetTrainer


def test_installed_packages_bring_trainers_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lt_search.trainers]\nmine = trainers.methods.ldrnet:LDRNetTrainer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine" in available()
    assert find_trainer("mine") is LDRNetTrainer


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("ldrnte", "unknown trainer 'ldrnte'", "did you mean ldrnet"),
        ("zzz", "unknown trainer 'zzz'", "use one of .*ldrnet.*module:Class"),
        ("crx-lt", "unknown trainer", "use one of"),
        ("no_such_module:Thing", "cannot be imported: .*No module named 'no_such_module'", "PYTHONPATH.*every node"),
        (":Thing", "cannot be imported", "correct the name"),
        ("trainers.methods.ldrnet:Gone", "is not a class derived from", "module:Class"),
        ("trainers.methods.ldrnet:LDRNet", "is not a class derived from", "module:Class"),
        ("trainers.methods.ldrnet:NONE", "is not a class derived from", "module:Class"),
        ("trainers.base:TwoStageTrainer", "incomplete: it lacks .*begin_stage2, code_version, config_type", "define"),
    ],
)
def test_unknown_trainers_are_refused_with_the_reason_and_the_fix(name: str, message: str, fix: str) -> None:
    with pytest.raises(UnknownTrainer, match=message) as raised:
        find_trainer(name)
    assert re.search(fix, raised.value.fix)


@pytest.mark.parametrize("code", ["raise RuntimeError('boom')", "import no_such_module", "x =", "raise SystemExit(3)"])
def test_a_module_that_fails_while_it_is_imported_is_refused(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_trainer.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("broken_trainer", None)
    with pytest.raises(UnknownTrainer, match=r"'broken_trainer:Thing' cannot be imported: \w+(Error|Exit)") as raised:
        find_trainer("broken_trainer:Thing")
    assert raised.value.fix == "correct broken_trainer"


def test_listing_trainers_imports_none_of_them() -> None:
    code = (
        "import sys; from trainers.registry import available; available();"
        "assert not {'trainers.methods.ldrnet', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

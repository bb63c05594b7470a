from __future__ import annotations

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
    ("name", "message"),
    [
        ("ldrnte", "unknown trainer 'ldrnte'.*did you mean ldrnet"),
        ("zzz", "there are: .*ldrnet.*module:Class"),
        ("no_such_module:Thing", "cannot be imported: No module named 'no_such_module'"),
        ("trainers.methods.ldrnet:Gone", "cannot be imported.*Gone"),
        (":Thing", "cannot be imported"),
        ("trainers.methods.ldrnet:LDRNet", "no class derived from"),
        ("trainers.methods.ldrnet:NONE", "no class derived from"),
    ],
)
def test_unknown_trainers_are_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UnknownTrainer, match=message):
        find_trainer(name)


def test_listing_trainers_imports_none_of_them() -> None:
    code = (
        "import sys; from trainers.registry import available; available();"
        "assert not {'trainers.methods.ldrnet', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

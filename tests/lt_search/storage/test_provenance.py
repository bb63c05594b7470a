from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lt_search.storage import provenance as module


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _provenance_of(file: Path) -> dict[str, Any]:
    """What the package would report if it were installed where this copy of its module is."""
    spec = importlib.util.spec_from_file_location("installed_elsewhere", file)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    found: dict[str, Any] = copy.provenance()
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The module in the site-packages of an environment inside somebody's repository, which has a commit."""
    file = tmp_path / "project/.venv/site-packages/lt_search/storage/provenance.py"
    file.parent.mkdir(parents=True)
    shutil.copy(str(module.__file__), file)
    project = tmp_path / "project"
    (project / "analysis.txt").touch()
    _git(project, "init")
    _git(project, "add", "analysis.txt")
    _git(project, "commit", "-m", "Mine")
    return file


def test_the_commit_of_a_repository_around_the_installed_package_is_not_reported(installed: Path) -> None:
    assert _provenance_of(installed)["git"] is None


def test_the_commit_of_the_packages_own_checkout_is_reported(installed: Path) -> None:
    _git(installed.parent, "add", installed.name)
    _git(installed.parent, "commit", "-m", "The package")
    assert _provenance_of(installed)["git"] == _git(installed.parent, "rev-parse", "HEAD")[:12]


def test_outside_any_repository_there_is_no_commit(tmp_path: Path) -> None:
    file = tmp_path / "provenance.py"
    shutil.copy(str(module.__file__), file)
    assert _provenance_of(file)["git"] is None


def test_a_machine_is_described_by_its_processor_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("processor\t: 0\nmodel name\t: Abacus 3000: fast\nprocessor\t: 1\nmodel name\t: other\n")
    monkeypatch.setattr(module, "CPU_INFO", cpu_info)
    found = module.machine("cpu")
    assert found["processor"] == "Abacus 3000: fast"
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert found["numpy"] == version("numpy")


def test_a_processor_whose_model_the_system_does_not_name_is_described_by_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "none")
    assert module.machine("cpu")["processor"] in {platform.processor(), platform.machine()}

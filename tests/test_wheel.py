"""The wheel: built, installed into an environment of its own and run from another folder, as users do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from functools import partial
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("lt_search", "search_spaces", "trainers")

SEARCH = """
import sys
import ray
from lt_search.cli import main
from lt_search.tuning.cluster import ray_cluster

def origin():
    import lt_search, search_spaces, trainers
    return [package.__file__ for package in (lt_search, search_spaces, trainers)]

with ray_cluster(None):
    print(*origin(), *ray.get(ray.remote(origin).remote()), sep="\\n")
    code = main(sys.argv[1:])
sys.exit(code)
"""
"""Prints where driver and workers import the packages from, then runs the command line on the same Ray."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout: setuptools would also pack what an earlier `build` folder holds."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of an environment with the wheel, and with the dependencies of this one but not its editable install."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(environment)}))
    _pip("--python", scripts / "python", "install", "--no-deps", "--no-index", wheel)
    (site_packages,) = environment.glob("**/site-packages")
    # Python reads the .pth files of site-packages, not those of folders that are named in one.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    ended = subprocess.run(command, text=True, capture_output=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    files = (path for package in PACKAGES for path in (REPOSITORY / package).rglob("*") if path.is_file())
    expected = {str(path.relative_to(REPOSITORY)) for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    assert packed == expected
    assert {"METADATA", "licenses/LICENSE", "entry_points.txt"} <= metadata


@pytest.mark.slow
def test_an_installed_package_searches_evaluates_and_tunes_from_another_folder(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["LT_SEARCH_CACHE"] = str(tmp_path / "cache")

    def run(*command: object) -> str:
        arguments = [str(installed / str(command[0])), *map(str, command[1:])]
        ended = subprocess.run(
            arguments, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False, timeout=400
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    lt_search = partial(run, "lt-search")
    assert "lmd-stage2" in lt_search("spaces")
    short = ("stage1.epochs=1", "stage1.consistency_start=0", "stage2.rounds=1", "stage2.virtual_size=500")
    options = ("--space", "lmd-stage2", "--trials", 1, "--image-size", 8, "--cpus-per-trial", 1, "--name", "tiny")
    searched = run("python", "-c", SEARCH, "search", *options, *(f"--set={field}" for field in short))
    origins = searched.splitlines()[: 2 * len(PACKAGES)]
    assert all(Path(origin).is_relative_to(installed.parent) for origin in origins), origins
    assert "BACC" in lt_search("evaluate", "runs/tiny/best")
    lt_search("posthoc", "tiny", "--settings", 5, "--models", 1, "--views", 1)
    assert list((tmp_path / "runs/tiny/posthoc").iterdir())
    report = tmp_path / "runs/tiny/report.html"
    report.unlink()
    lt_search("report", "tiny")
    assert report.read_text().rstrip().endswith("</html>")

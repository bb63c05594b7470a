"""The code of a trainer of the user's own counts, as the process has loaded it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lt_search.config.spec import RunSpec
from lt_search.storage.addresses import stage1_address
from lt_search.storage.trainer_source import source_digest
from trainers.methods.ldrnet import LDRNet

CODE = """\
from tests.tiny import TinyTrainer


class Mine(TinyTrainer):
    scale = {scale}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's own."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "mine_for_a_test.py"
    path.write_text(CODE.format(scale=1))
    yield path
    sys.modules.pop(path.stem, None)


def _as_of_now(path: Path) -> type[object]:
    """The trainer as a process that starts now has it."""
    sys.modules.pop(path.stem, None)
    importlib.invalidate_caches()
    found: type[object] = importlib.import_module(path.stem).Mine
    return found


def _address(spec: RunSpec, path: Path) -> str:
    return stage1_address(spec.model_copy(update={"trainer": f"{path.stem}:Mine"}), {"stage1.lr": 0.3})


def test_an_edited_trainer_has_other_stage_1s_in_the_next_process(tiny_spec: RunSpec, mine: Path) -> None:
    _as_of_now(mine)
    before = _address(tiny_spec, mine)
    mine.write_text(CODE.format(scale=-1000))
    assert _address(tiny_spec, mine) == before, "this process still runs what it has loaded"
    _as_of_now(mine)
    assert _address(tiny_spec, mine) != before
    mine.write_text(CODE.format(scale=1))
    _as_of_now(mine)
    assert _address(tiny_spec, mine) == before


def test_a_built_in_trainers_code_version_says_when_it_changes() -> None:
    assert source_digest(LDRNet) is None


def test_what_was_typed_into_an_interpreter_has_no_digest() -> None:
    assert source_digest(type("Typed", (), {"__module__": "no_such_module"})) is None

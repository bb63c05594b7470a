"""The log of a trial: standard JSON, and what happens where lines were cut off or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lt_search.errors import UserError
from lt_search.storage.files import FolderStore
from lt_search.storage.records import StepReport, last_step, log_name, read_reports
from lt_search.storage.repair import repair_logs, sole_driver_of_sound

FIRST, SECOND = (StepReport(3, 1, 1, step, scalars={"loss": 0.5}) for step in (1, 2))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "run")


def test_nan_and_infinities_are_null_and_become_nan_again() -> None:
    inner = StepReport(3, 1, 1, 1, scalars={"loss": math.inf})
    report = StepReport(3, 1, 1, 2, value=math.nan, scalars={"loss": math.nan, "mAP": 0.5}, history=[inner])
    text = report.to_json()
    plain = json.loads(text, parse_constant=pytest.fail)
    assert plain == report.to_plain()
    assert plain["value"] is None and plain["scalars"] == {"loss": None, "mAP": 0.5}
    read = StepReport.from_json(text)
    assert read.value is None and math.isnan(read.scalars["loss"]) and read.scalars["mAP"] == 0.5
    assert math.isnan(read.history[0].scalars["loss"])


def test_a_log_of_an_earlier_version_with_nan_is_read(store: FolderStore) -> None:
    store.append_line(log_name(3), '{"number": 3, "attempt": 1, "stage": 1, "step": 1, "scalars": {"loss": NaN}}')
    [report] = read_reports(store, 3)
    assert math.isnan(report.scalars["loss"])


def test_lines_that_were_cut_off_are_skipped(store: FolderStore) -> None:
    store.append_line(log_name(3), FIRST.to_json())
    with store.path(log_name(3)).open("ab") as file:
        file.write(SECOND.to_json().encode()[:40])
    store.append_line(log_name(3), SECOND.to_json())
    with store.path(log_name(3)).open("ab") as file:
        file.write(b'{"num\0\0\0')
    assert read_reports(store, 3) == [FIRST, SECOND]
    assert last_step(store, 3) == SECOND.rung
    assert repair_logs(store) == []


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x80garbage", b'{"number": 3\xff', b"[]", b"7", b"[" * 100_000, b'{"x": 1}', b"null"]
)
def test_damaged_lines_are_named_and_repaired(store: FolderStore, damage: bytes) -> None:
    store.write(log_name(3), b"\n".join([FIRST.to_json().encode(), damage, SECOND.to_json().encode(), b""]))
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: is damaged\n +fix: lt-search repair"):
        read_reports(store, 3)
    with pytest.raises(UserError, match="line 2"), sole_driver_of_sound(store):
        pass
    before = store.read(log_name(3))
    [said] = repair_logs(store)
    assert "1 damaged lines" in said
    assert read_reports(store, 3) == [FIRST, SECOND]
    [aside] = store.list("set-aside")
    assert store.read(f"{aside}/{log_name(3)}") == before


def test_a_folder_in_place_of_a_log_is_named_and_moved_away(store: FolderStore) -> None:
    store.path(log_name(3)).mkdir(parents=True)
    with pytest.raises(UserError, match=r"metrics\.jsonl: is a folder"):
        last_step(store, 3)
    assert "was a folder" in repair_logs(store)[0]
    assert read_reports(store, 3) == []

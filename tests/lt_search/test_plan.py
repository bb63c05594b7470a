from __future__ import annotations

from pathlib import Path

import pytest

from lt_search.messages import StepReport
from lt_search.plan import arrivals, checkpoint_bytes, expected_steps, going_on, measured_seconds, render_plan
from lt_search.run_folder import new_run
from lt_search.rungs import Rung
from lt_search.spec import RunSpec
from lt_search.store import FolderStore


@pytest.mark.parametrize(("come", "eta", "go"), [(27, 3, 9), (9, 3, 3), (4, 3, 3), (2, 3, 2), (16, 2, 8)])
def test_a_rung_keeps_its_share_but_never_stops_the_first_eta(come: int, eta: int, go: int) -> None:
    assert going_on(come, eta) == go


def test_arrivals_and_steps_of_a_halving_search(tiny_spec: RunSpec) -> None:
    assert tiny_spec.eta == 2
    assert arrivals(tiny_spec, 16) == {Rung(1, 1): 16, Rung(1, 3): 8, Rung(2, 1): 4}
    # stage 1: 16 take step 1, 8 take steps 2 and 3, 4 take step 4; stage 2: 4, then 2
    assert expected_steps(tiny_spec, 16) == {1: 16 + 8 + 8 + 4, 2: 4 + 2}


def test_without_pruning_every_trial_takes_every_step(tiny_spec: RunSpec) -> None:
    spec = tiny_spec.model_copy(update={"prune": False})
    assert expected_steps(spec, 16) == {1: 16 * 4, 2: 16 * 2}


def test_time_is_measured_from_earlier_runs_on_the_same_data(tiny_spec: RunSpec, tmp_path: Path) -> None:
    storage = FolderStore(tmp_path / "runs")
    assert measured_seconds(tiny_spec, storage) == {}
    store = new_run(storage, "a", tiny_spec, {})
    for stage, step, seconds in ((1, 1, 2.0), (1, 2, 4.0), (2, 1, 10.0)):
        store.append_line("trials/0000/metrics.jsonl", StepReport(0, 1, stage, step, seconds=seconds).to_json())
    other = tiny_spec.model_copy(update={"data": tiny_spec.data.model_copy(update={"fingerprint": "other"})})
    new_run(storage, "b", other, {}).append_line(
        "trials/0000/metrics.jsonl", StepReport(0, 1, 1, 1, seconds=99.0).to_json()
    )
    assert measured_seconds(tiny_spec, storage) == {1: 3.0, 2: 10.0}
    steps = expected_steps(tiny_spec, 16)
    total = 3 * steps[1] + 10 * steps[2]
    shown = render_plan(tiny_spec, 16, 2, 10, storage, {})
    assert f"{total // 60:.0f}m {total % 60:02.0f}s of work" in shown


def test_disk_counts_weights_and_two_moments(tiny_spec: RunSpec) -> None:
    floats = 16 * 3 + 3 + 16 * 3  # weight, bias and velocity of the tiny trainer
    assert checkpoint_bytes(tiny_spec, {}) == 3 * 4 * floats

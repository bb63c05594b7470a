from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from lt_search.config.parameters import propose
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.results.report.collect import write_report
from lt_search.samplers import ReseededSampler
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, sole_driver
from lt_search.storage.records import StepReport
from lt_search.storage.run_folder import JOURNAL, LOOKS, new_run
from lt_search.storage.schema import ADDRESS, FINAL

FINISHED, UNFINISHED = 0, 1


@pytest.fixture
def run(tiny_spec: RunSpec, tmp_path: Path) -> FolderStore:
    """A run with a finished trial and one that stands in the middle of stage 2; no driver holds it."""
    store = new_run(FolderStore(tmp_path / "runs"), "run", tiny_spec, {})
    with sole_driver(store.root):
        journal = Journal(store.path(JOURNAL), ReseededSampler(0))
    lengths = dict(enumerate(tiny_spec.stage_lengths, start=1))
    for number in (FINISHED, UNFINISHED):
        propose(journal.study.ask(), tiny_spec.parameters, flatten(tiny_spec.config))
        journal.set(number, ADDRESS, str(number))
        for stage, length in lengths.items():
            for step in range(1, length + (number == FINISHED or stage == 1)):
                final = stage == 2 and step == length
                report = StepReport(number, 1, stage, step, final=final, value=0.5)
                if final:
                    errors = {"groups": {}, "per_class": [0.1, 0.1, 0.1]}
                    report = replace(report, per_class={tiny_spec.metric: [0.2, 0.5, 0.8]}, score_errors=errors)
                store.append_line(log_of(number), report.to_json())
                journal.report(number, step + (lengths[1] if stage == 2 else 0), 0.5)
    journal.set(FINISHED, FINAL, [0.5, 0.1])
    journal.tell(FINISHED, TrialState.COMPLETE, 0.5)
    return store


def log_of(number: int) -> str:
    return f"trials/{number:04d}/metrics.jsonl"


def report_of(spec: RunSpec, run: FolderStore) -> str:
    write_report(spec, Journal.reader(run.path(JOURNAL)), run)
    return run.read("report.html").decode()


def states(page: str) -> list[str]:
    trials = page.split('<section id="trials">')[1]
    return re.findall(r'<span class="badge (\w+)">', trials)


def test_unfinished_trials_run_only_while_a_driver_holds_the_run(tiny_spec: RunSpec, run: FolderStore) -> None:
    page = report_of(tiny_spec, run)
    assert states(page) == ["finished", "interrupted"]
    assert "1 finished, 1 interrupted" in page and "interrupted trials: 1. Continue it with `--resume`." in page
    with sole_driver(run.root):
        page = report_of(tiny_spec, run)
    assert states(page) == ["finished", "running"]
    assert "--resume" not in page


def remove(path: Path) -> None:
    path.unlink()


def overwrite_with_noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(4096))


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def drop_a_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize("damage", [remove, overwrite_with_noise, replace_by_a_folder, drop_a_line])
def test_a_damaged_log_is_reported_in_the_page(
    tiny_spec: RunSpec, run: FolderStore, damage: Callable[[Path], None]
) -> None:
    assert "missing or damaged" not in report_of(tiny_spec, run)
    damage(run.path(log_of(UNFINISHED)))
    page = report_of(tiny_spec, run)
    assert f"metrics.jsonl is missing or damaged in the folders of trials {UNFINISHED}:" in page
    assert f"Trial {FINISHED} on the validation split" in page, "the other trial's log is whole"


def test_a_winner_without_log_and_checkpoint_keeps_its_value(tiny_spec: RunSpec, run: FolderStore) -> None:
    overwrite_with_noise(run.path(log_of(FINISHED)))
    page = report_of(tiny_spec, run)
    assert f"The last step of trial {FINISHED} can be read from neither its log nor its checkpoint." in page
    assert '<td class="number">0.5000 ± 0.1000</td>' in page


def test_a_record_of_test_scores_that_cannot_be_read_is_reported(tiny_spec: RunSpec, run: FolderStore) -> None:
    assert "not scored; trials never see it" in report_of(tiny_spec, run)
    run.write(LOOKS, "{}\n{}\n")
    assert f"scored 2 times (see {LOOKS})" in report_of(tiny_spec, run)
    replace_by_a_folder(run.path(LOOKS))
    assert f"{LOOKS} cannot be read" in report_of(tiny_spec, run)

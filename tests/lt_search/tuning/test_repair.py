"""`lt-search repair`: what it finds, what it trains again, and what is refused until it was called."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState
from rich.console import Console

from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.parameters import propose
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.data.registry import load_dataset
from lt_search.errors import ExitCode, UserError
from lt_search.results.export import export_run, read_export, read_model
from lt_search.samplers import ReseededSampler
from lt_search.storage.checkpoints import checkpoint_files, load_checkpoint
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, sole_driver
from lt_search.storage.records import log_name
from lt_search.storage.run_folder import JOURNAL, new_run
from lt_search.storage.schema import ADDRESS, FINAL
from lt_search.storage.trial_config import claim_trial_folder
from lt_search.training.inputs import LoadedInputs, RunInputs, TrialJob
from lt_search.training.session import TrialSession
from lt_search.tuning.repair import repair_run
from lt_search.tuning.search import search


@pytest.fixture
def run(tiny_spec: RunSpec, tmp_path: Path) -> FolderStore:
    """A run with three finished trials, really trained."""
    store = new_run(FolderStore(tmp_path / "runs"), "run", tiny_spec, {})
    inputs = RunInputs.of(tiny_spec, load_dataset(tiny_spec.options["dataset"]), {}, store.root)
    loaded = LoadedInputs(inputs, torch.device("cpu"))
    journal = Journal(store.path(JOURNAL), ReseededSampler(0))
    for _ in range(3):
        trial = journal.study.ask()
        config = tiny_spec.resolve(propose(trial, tiny_spec.parameters, flatten(tiny_spec.config)))
        claim_trial_folder(store, trial.number, config)
        session = TrialSession(TrialJob(trial.number, 1, config), loaded)
        while not (report := session.advance()).ended:
            store.append_line(log_name(trial.number), report.to_json())
        store.append_line(log_name(trial.number), report.to_json())
        journal.set(trial.number, ADDRESS, str(trial.number))
        journal.set(trial.number, FINAL, [report.value, report.standard_error])
        journal.tell(trial.number, TrialState.COMPLETE, report.value)
    return store


def repair(run: FolderStore, spec: RunSpec) -> tuple[ExitCode, str]:
    console = Console(file=io.StringIO(), width=200)
    return repair_run(run, spec, console), console.file.getvalue()  # type: ignore[attr-defined]


def best(run: FolderStore) -> tuple[int, float]:
    trial = Journal.reader(run.path(JOURNAL)).study.best_trial
    return trial.number, trial.values[0]


def flip(run: FolderStore, number: int) -> None:
    [name] = checkpoint_files(run, number)
    content = bytearray(run.read(name))
    content[-7] ^= 4
    run.write(name, bytes(content))


def test_a_sound_run_stays_as_it_is(run: FolderStore, tiny_spec: RunSpec) -> None:
    files = {name: run.read(name) for name in run.list(".", "**/*") if run.path(name).is_file()}
    code, said = repair(run, tiny_spec)
    assert code is ExitCode.DONE and "are intact" in said and "--resume run" in said
    assert {name: run.read(name) for name in files} == files


@pytest.mark.parametrize("harm", ["flip", "remove", "another"])
def test_a_winner_with_damaged_weights_is_trained_again(run: FolderStore, tiny_spec: RunSpec, harm: str) -> None:
    sound = read_model(read_export(export_run(tiny_spec, run)))
    number, value = best(run)
    [name] = checkpoint_files(run, number)
    if harm == "flip":
        flip(run, number)
    elif harm == "remove":
        run.remove(name)
    else:
        run.write(name, run.read(checkpoint_files(run, (number + 1) % 3)[0]))
    with pytest.raises(UserError, match="lt-search repair"):
        export_run(tiny_spec, run)
    assert read_export(run.path("best")).trial == number, "the earlier export stays"
    code, said = repair(run, tiny_spec)
    assert code is ExitCode.DONE and f"trial {number} reaches its value of {value} again" in said
    again = read_model(read_export(export_run(tiny_spec, run)))
    assert all(torch.equal(again[key], sound[key]) for key in sound)
    assert best(run) == (number, value)
    assert "are intact" in repair(run, tiny_spec)[1]


def test_an_export_of_a_trial_that_is_lost_is_moved_away(run: FolderStore, tiny_spec: RunSpec) -> None:
    export_run(tiny_spec, run)
    assert run.exists("best/best.yaml")
    run.remove(JOURNAL)
    said = repair(run, tiny_spec)[1]
    assert "best/ is not of a finished trial" in said and not run.exists("best")


def test_of_the_others_only_damaged_ones_are_trained_again(run: FolderStore, tiny_spec: RunSpec) -> None:
    damaged, removed = (number for number in range(3) if number != best(run)[0])
    flip(run, damaged)
    run.remove(checkpoint_files(run, removed)[0])
    code, said = repair(run, tiny_spec)
    assert code is ExitCode.DONE and f"trial {damaged}: training it again" in said
    assert f"trial {removed}:" not in said and checkpoint_files(run, removed) == []


def test_a_trial_that_does_not_reach_its_value_again_gets_no_weights(
    run: FolderStore, tiny_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, value = best(run)
    flip(run, number)
    monkeypatch.setattr("tests.tiny.TinyTrainer.begin_stage2", lambda trainer: trainer.weight.neg_())
    code, said = repair(run, tiny_spec)
    assert code is ExitCode.FAILED and f"and had {value}" in said
    assert checkpoint_files(run, number) == []
    monkeypatch.undo()
    assert repair(run, tiny_spec)[0] is ExitCode.DONE
    config = tiny_spec.resolve(Journal.reader(run.path(JOURNAL)).trial(number).params)
    assert load_checkpoint(run, number, config) is not None


def test_a_run_with_a_damaged_journal_or_log_is_refused_until_it_is_repaired(
    run: FolderStore, tiny_spec: RunSpec
) -> None:
    run.write(JOURNAL, run.read(JOURNAL).replace(b'"trial_id":2', b'"trial_id":1'))
    run.write(log_name(0), b"\xff\xfe\x00\n" + run.read(log_name(0)))
    how = RunOptions(storage=str(run.root.parent), resume="run")
    with pytest.raises(UserError) as refused:
        search(SpecOptions(""), how, Console(quiet=True))
    assert [problem.fix for problem in refused.value.problems] == [f"lt-search repair {run.root}"] * 2
    with pytest.raises(UserError, match="journal"):
        export_run(tiny_spec, run)
    code, said = repair(run, tiny_spec)
    assert code is ExitCode.DONE and "lost: trials 2" in said and "1 damaged lines" in said
    assert [trial.number for trial in Journal.reader(run.path(JOURNAL)).trials()] == [0, 1]
    assert read_export(export_run(tiny_spec, run)).trial == best(run)[0]


def test_a_run_that_is_being_driven_is_not_repaired(run: FolderStore, tiny_spec: RunSpec) -> None:
    with sole_driver(run.root), pytest.raises(UserError, match="is being driven"):
        repair(run, tiny_spec)

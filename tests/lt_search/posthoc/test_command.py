"""From a finished run to its `posthoc/`, and back from it."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from lt_search.checkpoints import Checkpoint, save_checkpoint
from lt_search.data.decoded import open_images, pixels_checksum
from lt_search.data.registry import load_dataset
from lt_search.errors import UserError
from lt_search.evaluation import evaluate_export
from lt_search.exit_codes import ExitCode
from lt_search.journal import Journal, sole_driver
from lt_search.messages import RunInputs, StepReport, TrialJob
from lt_search.metrics import score
from lt_search.posthoc import pipeline
from lt_search.posthoc.command import tune_run
from lt_search.posthoc.package import read_package
from lt_search.referee import ADDRESS, FINAL
from lt_search.run_folder import JOURNAL, SETTINGS, new_run
from lt_search.sampler import ReseededSampler, propose
from lt_search.session import LoadedInputs
from lt_search.spec import RunSpec
from lt_search.store import FolderStore
from lt_search.values import flatten
from tests.tiny import TinyTrainer
from trainers.task import Task
from trainers.thresholds import f1_thresholds


def finished_run(spec: RunSpec, storage: Path, rates: tuple[float, ...] = (0.05, 0.1, 0.2)) -> FolderStore:
    """A run with finished trials of some learning rates, and the one of the last rate not yet finished."""
    data = load_dataset(spec.options["dataset"])
    pixels = {}
    for part in data.parts():
        open_images(part, spec.data.image_size)
        pixels[part.name] = pixels_checksum(part, spec.data.image_size)
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"pixels": pixels})})
    store = new_run(FolderStore(storage), "run", spec, {})
    loaded = LoadedInputs(RunInputs.of(spec, data, {}, store.root), torch.device("cpu"))
    with sole_driver(store.root):
        journal = Journal(store.path(JOURNAL), ReseededSampler(0))
    for number, rate in enumerate(rates):
        values = {"stage1.lr": rate, "stage1.optimiser": "sgd", "stage2.bias": 0.0}
        journal.study.enqueue_trial(values)
        trial = journal.study.ask()
        trainer = loaded.build_trainer(spec.resolve(propose(trial, spec.parameters, flatten(spec.config))))
        for step in range(spec.stage_lengths[0]):
            trainer.stage1_step(step)
        assert isinstance(trainer, TinyTrainer)
        trainer.bias -= 5  # nothing is predicted positive any more: thresholds have something to mend
        value = loaded.evaluate(trainer.predict_logits(loaded.val_images)).scalars[spec.metric]
        report = StepReport(number, 1, 2, spec.stage_lengths[1], final=True, value=value, scalars={spec.metric: value})
        save_checkpoint(store, TrialJob(number, 1, {}), Checkpoint(report, trainer.state()))
        journal.set(number, ADDRESS, str(number))
        journal.set(number, FINAL, [value, 0.1])
        journal.study.tell(trial, value)
    return store


@pytest.fixture
def run(tiny_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    # The validation split has too few positives for thresholds as they are meant.
    monkeypatch.setattr(pipeline, "f1_thresholds", partial(f1_thresholds, min_positives=2))
    return finished_run(tiny_spec, tmp_path / "runs")


def tune(run: FolderStore, **options: int) -> str:
    console = Console(file=io.StringIO(), width=200)
    given = {"trials": 50, "models": 3, "views": 8, **options}
    assert tune_run("run", FolderStore(run.root.parent), console, **given) is ExitCode.DONE
    return console.file.getvalue()  # type: ignore[attr-defined]


def evaluate(folder: Path, split: str = "val") -> tuple[ExitCode, str]:
    console = Console(file=io.StringIO(), width=200)
    return evaluate_export(folder, split, console), console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_adopted_is_evaluated_to_the_very_same_numbers(run: FolderStore) -> None:
    said = tune(run)
    assert "thresholds True" in said
    code, shown = evaluate(run.path("posthoc"))
    assert code is ExitCode.DONE
    assert "exactly the numbers" in shown
    content = yaml.safe_load(run.read("posthoc/posthoc.yaml"))
    assert content["summary"] in run.read("report.html").decode()
    package = read_package(run.path("posthoc"))
    data = load_dataset(package.export.spec.options["dataset"])
    logits = package.predict(data, data.val)
    assert content["scalars"]["mAP"] == score("mAP", Task.MULTI_LABEL, data.val.labels, logits.numpy())


def test_a_look_at_test_is_recorded_in_the_run(run: FolderStore) -> None:
    tune(run)
    assert "look 1" in evaluate(run.path("posthoc"), "test")[1]
    assert run.exists("test_looks.jsonl")


def test_predictions_are_computed_once_and_a_damaged_file_again(
    run: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(run)
    kept = run.list("posthoc/predictions")
    assert len(kept) == 3
    asked: list[int] = []
    from lt_search.posthoc import command

    real = command.predict_views
    monkeypatch.setattr(
        command, "predict_views", lambda export, *rest: asked.append(export.trial) or real(export, *rest)
    )
    run.path(kept[1]).write_bytes(b"damaged")
    again = tune(run)
    assert asked == [int(Path(kept[1]).name[:4])]
    assert first.splitlines()[4:] == again.splitlines()[4:]


@pytest.mark.parametrize(
    ("old", "new"), [("thresholds:\n", "thresholds: 3\nother:\n"), ("trial: ", "trial: 1"), ("views: 0", "views: many")]
)
def test_a_file_that_was_changed_by_hand_is_refused(run: FolderStore, old: str, new: str) -> None:
    tune(run)
    path = run.path(f"posthoc/{SETTINGS}")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError):
        read_package(run.path("posthoc"))


def test_a_run_without_a_finished_trial_is_refused(tiny_spec: RunSpec, tmp_path: Path) -> None:
    store = finished_run(tiny_spec, tmp_path / "runs")
    for number in range(3):
        store.remove(f"trials/{number:04d}")
    with pytest.raises(UserError, match="no finished trial whose weights are kept"):
        tune(store)


def test_models_that_are_not_used_are_not_kept(run: FolderStore) -> None:
    tune(run, models=3)
    used = {f"posthoc/models/{m['trial']:04d}" for m in yaml.safe_load(run.read("posthoc/posthoc.yaml"))["models"]}
    assert set(run.list("posthoc/models")) == used
    assert np.isfinite(yaml.safe_load(run.read("posthoc/posthoc.yaml"))["cross_fitted"])

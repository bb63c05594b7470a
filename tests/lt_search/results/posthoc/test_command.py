"""From a finished run to its `posthoc/`, and back from it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors import SafetensorError

from lt_search.config.parameters import propose
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.data.decoded import open_images, pixels_checksum
from lt_search.data.registry import load_dataset
from lt_search.data.table import Dataset, Part
from lt_search.errors import ExitCode, Problem, UserError
from lt_search.locks import held
from lt_search.metrics.evaluate import score
from lt_search.results.evaluate import evaluate_export
from lt_search.results.export import Export
from lt_search.results.posthoc import command, pipeline
from lt_search.results.posthoc.command import tune_run
from lt_search.results.posthoc.package import read_package
from lt_search.results.posthoc.pipeline import Predictions
from lt_search.results.posthoc.search import Evidence, Found
from lt_search.results.posthoc.settings import Settings
from lt_search.results.posthoc.thresholds import f1_thresholds
from lt_search.results.report.collect import write_report
from lt_search.results.summary import RunSummary
from lt_search.samplers import ReseededSampler
from lt_search.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, sole_driver
from lt_search.storage.records import StepReport
from lt_search.storage.run_folder import JOURNAL, SETTINGS, new_run, open_run
from lt_search.storage.schema import ADDRESS, FINAL
from lt_search.training.inputs import LoadedInputs, RunInputs
from tests.tiny import TinyTrainer
from trainers.task import Task


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
        config = spec.resolve(propose(trial, spec.parameters, flatten(spec.config)))
        trainer = loaded.build_trainer(config)
        for step in range(spec.stage_lengths[0]):
            trainer.stage1_step(step)
        assert isinstance(trainer, TinyTrainer)
        trainer.bias -= 5  # nothing is predicted positive any more: thresholds have something to mend
        value = loaded.evaluate(trainer.predict_logits(loaded.val_images)).scalars[spec.metric]
        report = StepReport(number, 1, 2, spec.stage_lengths[1], final=True, value=value, scalars={spec.metric: value})
        save_checkpoint(store, number, 1, config, Checkpoint(report, trainer.state()))
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
    assert "evaluation 1 on" in evaluate(run.path("posthoc"), "test")[1]
    assert run.exists("test_looks.jsonl")


def test_predictions_are_computed_once_and_a_damaged_file_again(
    run: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(run)
    kept = run.list("posthoc/predictions")
    assert len(kept) == 3
    asked: list[int] = []
    real = command.predict_views
    monkeypatch.setattr(
        command, "predict_views", lambda export, *rest: asked.append(export.trial) or real(export, *rest)
    )
    run.path(kept[1]).write_bytes(b"damaged")
    again = tune(run)
    assert asked == [int(Path(kept[1]).name[:4])]
    assert first.splitlines()[4:] == again.splitlines()[4:]


def test_predictions_serve_a_narrower_call_and_outlive_it(run: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, given = [], []
    real_views, real_tune = command.predict_views, command.tune

    def views_of(export: Export, data: Dataset, part: Part, n_views: int) -> Predictions:
        asked.append((export.trial, n_views))
        own = real_views(export, data, part, 1).own
        return Predictions(own, torch.stack([own + view for view in range(n_views)]), None)

    def tuned(evidence: Evidence, *rest: Any) -> Found:
        given.append([model.views for model in evidence.models])
        return real_tune(evidence, *rest)

    monkeypatch.setattr(command, "predict_views", views_of)
    monkeypatch.setattr(command, "tune", tuned)
    tune(run, models=3, views=5)
    kept = run.list("posthoc/predictions")
    tune(run, models=1, views=2)
    assert len(asked) == 3 and run.list("posthoc/predictions") == kept
    assert torch.equal(given[1][0], given[0][0][:2])
    tune(run, models=1, views=8)
    assert asked[3:] == [(asked[0][0], 8)]
    assert len(run.list("posthoc/predictions")) == 3, "the narrower file of that model is gone"


def test_predictions_of_models_that_are_gone_are_removed_and_what_is_being_written_is_not(run: FolderStore) -> None:
    gone, other = "posthoc/predictions/0099-0123456789abcdef-8.safetensors", "posthoc/predictions/.0001-x.part"
    run.write(gone, b"")
    run.write(other, b"")
    tune(run)
    assert not run.exists(gone) and run.exists(other)


@pytest.fixture
def without_gain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, nothing is adopted."""
    real = command.tune
    return lambda: monkeypatch.setattr(command, "tune", lambda *given: replace(real(*given), settings=Settings()))


def test_what_was_adopted_stays_where_nothing_is_adopted_later(
    run: FolderStore, without_gain: Callable[[], None]
) -> None:
    def package() -> dict[str, bytes]:
        return {name: run.read(name) for name in [f"posthoc/{SETTINGS}", *run.list("posthoc/models", "*/*")]}

    tune(run)
    before = package()
    without_gain()
    said = tune(run, models=1, views=1)
    assert "nothing is adopted; " in said and "stays as it was tuned before" in said
    assert "adopted: " not in said
    assert package() == before
    assert evaluate(run.path("posthoc"))[0] is ExitCode.DONE


@pytest.mark.parametrize("change", ["weights", "no longer finished", "outdone"])
def test_what_was_adopted_goes_with_its_models_and_where_a_trial_alone_is_better(
    run: FolderStore, without_gain: Callable[[], None], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    tune(run)
    number = read_package(run.path("posthoc")).models[0].trial
    if change == "weights":
        spec, trials = open_run(run, str(run.root))[1], Journal.reader(run.path(JOURNAL)).trials()
        configs = [spec.resolve(trial.params) for trial in trials]
        changed, another = number, (number + 1) % 3
        checkpoint, other = (load_checkpoint(run, n, configs[n]) for n in (changed, another))
        assert checkpoint is not None and other is not None
        save_checkpoint(run, changed, 1, configs[changed], replace(checkpoint, state=other.state))
    elif change == "outdone":
        content = yaml.safe_load(run.read(f"posthoc/{SETTINGS}"))
        run.write(f"posthoc/{SETTINGS}", yaml.safe_dump({**content, "cross_fitted": 0.0}))
    else:
        real = command.summarise

        def without_it(*given: Any) -> RunSummary:
            summary = real(*given)
            return replace(summary, trials=tuple(t for t in summary.trials if t.number != number))

        monkeypatch.setattr(command, "summarise", without_it)
    without_gain()
    assert "best stays the model to use" in tune(run)
    assert not run.exists(f"posthoc/{SETTINGS}") and run.list("posthoc/models") == []


def test_two_at_once_are_refused(run: FolderStore) -> None:
    with (
        held(run.path(f"posthoc/{command.LOCK}"), lambda holder: Problem("", holder)),
        pytest.raises(UserError, match=r"run: is being tuned by process \d+ on"),
    ):
        tune(run)
    tune(run)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_said_in_one_line(run: FolderStore, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*given: object) -> None:
        raise error

    monkeypatch.setattr(command, "save_file", full)
    with pytest.raises(UserError, match=r"posthoc: cannot be written \(No space left on device\)"):
        tune(run)


def test_the_report_says_that_settings_know_nothing_of_a_better_trial(run: FolderStore) -> None:
    tune(run)
    text = run.read(f"posthoc/{SETTINGS}").decode()
    best = yaml.safe_load(text)["best_trial"]
    stale = "run `lt-search posthoc run` again"
    assert stale not in run.read("report.html").decode() and stale not in evaluate(run.path("posthoc"))[1]
    run.write(f"posthoc/{SETTINGS}", text.replace(f"best_trial: {best}", f"best_trial: {best + 7}"))
    assert f"tuned before trial {best}: {stale}" in evaluate(run.path("posthoc"))[1]
    assert f"tuned before trial {best}: {stale}" in report_of(run)


@pytest.mark.parametrize("content", ["summary: [", "a sentence", "- summary", "settings: {}", b"\xff\xfe\x00"])
def test_the_report_says_that_settings_cannot_be_read(run: FolderStore, content: str | bytes) -> None:
    run.write(f"posthoc/{SETTINGS}", content)
    assert f"posthoc/{SETTINGS} cannot be read" in report_of(run)


def report_of(run: FolderStore) -> str:
    spec = open_run(run, str(run.root))[1]
    write_report(spec, Journal.reader(run.path(JOURNAL)), run)
    return run.read("report.html").decode()


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


def test_a_damaged_model_is_refused_with_the_command_that_writes_it_again(run: FolderStore) -> None:
    tune(run)
    model = read_package(run.path("posthoc")).models[0].model_file
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors does not match .*\n.*lt-search posthoc RUN"):
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


@pytest.mark.parametrize("harm", ["damaged journal", "read-only report"])
def test_a_look_at_the_test_split_is_recorded_where_the_report_cannot_be_written_again(
    run: FolderStore, harm: str
) -> None:
    tune(run)
    if harm == "damaged journal":
        run.write(JOURNAL, b"garbage\n" + run.read(JOURNAL))
    else:
        run.remove("report.html")
        run.path("report.html").mkdir()
    code, shown = evaluate(run.path("posthoc"), "test")
    assert code is ExitCode.DONE and "95 % interval" in shown
    assert "evaluation 1 on this run's test split" in shown and "report could not be written again" in shown
    assert run.read("test_looks.jsonl").count(b"\n") == 1

"""The command line as a person meets it, as far as no search is needed: mistakes, help, listings, plans."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState
from PIL import Image

from lt_search.cli import main
from lt_search.config.parameters import propose
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.samplers import ReseededSampler
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal, sole_driver
from lt_search.storage.run_folder import JOURNAL, new_run
from lt_search.storage.schema import ADDRESS, TRIALS
from tests.helpers.extra_data import extra_table
from tests.helpers.published import make_isic, make_nih, make_odir
from tests.helpers.tiny_encoders import save_clip


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> Outcome:
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def _csv(folder: Path, *lines: str, header: str = "image,label") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "labels.csv"
    table.write_text("\n".join([header, *lines]) + "\n")
    for line in lines:
        name = line.split(",")[0]
        if name.endswith(".png"):
            Image.new("L", (8, 8), 90).save(folder / name)
    return table


def test_every_mistake_of_one_command_is_in_one_message(run, tmp_path: Path) -> None:
    outcome = run("search", "--trials", "0", "--seed", "x", "--gpus-per-trial", "1.5", "--time-budget", "soon")
    assert outcome.code == 2
    assert "invalid input: 5 errors" in outcome.err
    for place in (
        "--trials: must be at least 1",
        "--seed: must be an integer (given: 'x')",
        "--gpus-per-trial: 1.5",
        "--time-budget: 'soon'",
        "--space",
    ):
        assert place in outcome.err
    assert os.listdir(tmp_path) == []


def test_mistakes_in_options_come_with_empty_values_and_with_mistakes_in_what_they_name(run, tmp_path: Path) -> None:
    outcome = run("search", "--time-budget", "1h1h", "--gpus-per-trial", "x", "--metric", "", "--space", "")
    places = ("--time-budget: ", "--gpus-per-trial: ", "--metric: is empty", "--space: is empty")
    assert outcome.code == 2
    assert sum(line.startswith("  --") for line in outcome.err.splitlines()) == len(places)
    for place in places:
        assert place in outcome.err
    (tmp_path / "file").touch()
    argv = ("--space", "ldrnt", "--seed", "x", "--dataset", "nope", "--storage", tmp_path / "file", "--name", "a/b")
    outcome = run("search", *argv)
    assert outcome.code == 2
    for place in ("--space: there is no search space 'ldrnt'", "--seed: ", "unknown data set", "--storage: ", "--name"):
        assert place in outcome.err


def test_mistakes_in_the_space_the_data_and_the_storage_come_together(run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run("search", "--space", "nope", "--dataset", "nope.csv", "--storage", tmp_path / "file")
    assert outcome.code == 2
    assert "invalid input: 3 errors" in outcome.err
    for place in ("--space", "nope.csv", "--storage"):
        assert place in outcome.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--space", "ldrnett"], "did you mean ldrnet?"),
        (["--space", "ldrnet", "--dataset", "digitsml"], "did you mean digits-ml?"),
        (["--space", "ldrnet", "--dataset", "digits-lt"], "takes multi-label data"),
        (["--space", "ldrnet", "--metric", "mPA"], "did you mean mAP?"),
        (["--space", "ldrnet", "--metric", "macro_ece"], "'macro_ece' is better when smaller"),
        (["--space", "ldrnet", "--set", "stage2.alhpa=1"], "did you mean stage2.alpha?"),
        (["--space", "ldrnet", "--set", "stage2.alpha=9"], "--set stage2.alpha=9"),
        (["--space", "ldrnet", "--search", "stage2.q=uniform(1,0.1)"], "reversed"),
        (["--space", "ldrnet", "--search", "stage2.q=loguniform(0,1)"], "log scale"),
        (["--space", "ldrnet", "--search", "stage2.q=uniform(0.1,2)"], "outside the field's bounds at 2"),
        (["--space", "ldrnet", "--set", "stage2.e_step_start=3"], "before every loss is active"),
        (["--space", "ldrnet", "--budget", "huge"], "--budget: must be one of auto, small, full (given: 'huge')"),
        (["--space", "ldrnet", "--storage", "s3://bucket"], "only folders"),
        (["--space", "ldrnet", "--name", "a/b"], "cannot name a folder"),
        (["--space", "ldrnet", "--name", "x" * 300], "--name: has 300 letters and may have 100"),
        (["--space", "ldrnet", "--name", "stage1"], "'stage1' is reserved"),
        (["--space", "ldrnet", "--metric", ""], "--metric: is empty"),
        (["--space", "ldrnet", "--storage="], "--storage: is empty"),
        (["--space", "ldrnet", "--set", ""], "--set: is empty"),
        (["--space", "ldrnet", "--time-budget", "1h1h"], "'1h1h' is not a duration"),
        (["--space", "ldrnet", "--set", "stage1.lr=nan"], "must be a finite number"),
        (["--space", "ldrnet", "--search", "stage2.q=uniform(0.1, nan)"], "nan is not a finite number"),
        (["--space", f"{'x' * 300}.yaml"], "File name too long"),
        (["--resume", "x" * 300], "too long"),
        (["--space", "ldrnet", "--dataset", f"{'x' * 300}.csv"], "too long"),
        (["--space", "ldrnet", "--storage", "x" * 300], "too long"),
        (["--space", "ldrnet", "--address", "127.0.0.1:1"], "--address"),
        (["--resume", "nothing"], "is not a run"),
        (["--resume", "a", "--name", "b"], "give one of the two"),
        (["--space", "ldrnet", "--gpus-per-trial", "64"], "a trial takes"),
        (
            ["--space", "ldrnet", "--set", "stage1.backbone=resnet18", "--set", "stage1.weights=/no/such/file.pt"],
            "--set stage1.weights=none",
        ),
    ],
)
def test_a_mistake_gives_code_2_and_its_fix_and_no_traceback(run, argv: list[str], message: str) -> None:
    outcome = run("search", *argv)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(Path("runs").glob("*")), "nothing half-written"


def test_missing_published_weights_are_an_error_with_the_full_budget(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "empty")
    _no_network(monkeypatch)
    outcome = run("search", "--space", "ldrnet", "--budget", "full", "--image-size", "32")
    assert outcome.code == 2
    for backbone in ("resnet50", "densenet121"):
        assert backbone in outcome.err
    assert "--set stage1.weights=FILE" in outcome.err
    assert "--set stage1.weights=none" in outcome.err


SHORT = ("--dataset", "digits-ml:200", "--set", "stage1.images_per_epoch=64", "--set", "stage2.e_step_images=64")
"""Options that make a step of LDRNet a short one."""


def test_missing_published_weights_are_said_and_done_without_with_the_small_budget(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", "empty")
    monkeypatch.setattr("lt_search.tuning.plan.MEASURED_SECONDS", 0.0)
    _no_network(monkeypatch)
    options = ("--set", "stage1.backbone=mobilenet_v3_small", "--set", "stage1.weights=imagenet", *SHORT)
    outcome = run("search", "--space", "ldrnet", "--budget", "small", *options, "--plan")
    assert outcome.code == 0, outcome.err
    assert "continuing with stage1.weights=none" in outcome.out


def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends all look-ups to a proxy where nothing listens, so that the test is the same with and without internet."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


def test_broken_images_are_all_listed_and_nothing_is_written(run, tmp_path: Path) -> None:
    lines = [f"{i}.png,{'a|b' if i % 2 else 'b' if i % 3 else ''}" for i in range(40)]
    table = _csv(tmp_path / "data", *lines)
    (tmp_path / "data/3.png").write_bytes((tmp_path / "data/3.png").read_bytes()[:40])
    (tmp_path / "data/5.png").write_text("not an image")
    (tmp_path / "data/7.png").unlink()
    outcome = run("search", "--space", "ldrnet", "--dataset", table)
    assert outcome.code == 2
    for name in ("3.png", "5.png", "7.png"):
        assert name in outcome.err
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("image,labels", ["a.png,x"], "label"),
        ("image,label", ["a.png,x|y", "a.png,y"], "a.png"),
        ("image,label", ["a.png,x", "b.png,x"], "one class"),
        ("image,label,patient,split", ["a.png,x|y,p1,train", "b.png,y,p1,test", "c.png,x,p2,val"], "p1"),
        ("image,label,split", ["a.png,x,train", "b.png,x|y,val", "c.png,x|y,test"], "y"),
    ],
)
def test_a_wrong_table_is_refused(run, tmp_path: Path, header: str, lines: list[str], message: str) -> None:
    outcome = run("search", "--space", "ldrnet", "--dataset", _csv(tmp_path / "data", *lines, header=header))
    assert outcome.code == 2
    assert message in outcome.err


def test_plan_measures_one_trial_and_starts_no_search(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lt_search.tuning.plan.MEASURED_SECONDS", 0.0)
    outcome = run("search", "--space", "ldrnet", "--trials", "20", "--plan", *SHORT)
    assert outcome.code == 0
    words = ("20, ", "rung", "stage-1 trainings", "device-hours", "MiB a checkpoint", "2 steps of stage 1, 2 steps of")
    for word in words:
        assert word in outcome.out
    assert not list((tmp_path / "runs").glob("*"))


def test_spaces_lists_all_and_shows_every_field(run) -> None:
    listing = run("spaces").out
    assert "ldrnet-stage2" in listing
    shown = run("spaces", "ldrnet").out
    for field in ("stage1.lr", "stage2.alpha", "stage2.gce_form"):
        assert field in shown
    assert run("spaces", "nothing").code == 2


def test_data_check_says_what_is_there(run, tmp_path: Path) -> None:
    lines = [f"{i}.png,{'a|b' if i % 2 else 'b' if i % 3 else ''}" for i in range(40)]
    table = _csv(tmp_path / "data", *lines)
    outcome = run("data", "check", "--dataset", table)
    assert outcome.code == 0
    for word in ("multi-label", "a", "b", "train", "val", "test"):
        assert word in outcome.out
    (tmp_path / "data/5.png").write_text("not an image")
    outcome = run("data", "check", "--dataset", table)
    assert outcome.code == 2
    assert "5.png" in outcome.out + outcome.err


def test_data_check_describes_a_published_data_set_with_its_split_and_metrics(run, tmp_path: Path) -> None:
    outcome = run("data", "check", "--dataset", "isic2019:lt-10", "--data-root", make_isic(tmp_path / "isic"))
    assert outcome.code == 0, outcome.err
    for word in (
        "isic2019:lt-10: multi-class",
        "70:10:20 of each class",
        "objective: BACC",
        "quadratic_kappa",
        "MEL, NV",
    ):
        assert word in outcome.out
    outcome = run("data", "check", "--dataset", "nih-cxr14", "--data-root", make_nih(tmp_path / "nih"))
    assert outcome.code == 0, outcome.err
    for word in ("nih-cxr14: multi-label", "7:1:2 by patient", "objective: mAP", "macro_auc", "(no label)", "patients"):
        assert word in outcome.out
    outcome = run("data", "check", "--dataset", "odir5k", "--data-root", make_odir(tmp_path / "odir"))
    assert outcome.code == 0, outcome.err
    for word in ("odir5k: multi-label, 70 images, 8 classes", "2 RGB views", "objective: odir_score", "pooled_kappa"):
        assert word in outcome.out


def test_extra_data_is_checked_and_planned_with(run, tiny_csv: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lt_search.tuning.plan.MEASURED_SECONDS", 0.0)
    extra_table(tmp_path / "images", "a|hernia", "b", "")
    (tmp_path / "images/labels.csv").rename(tmp_path / "more.csv")
    data = ("--dataset", tiny_csv, "--extra-data", f"more.csv={tmp_path / 'images'}")
    said = ("extra data more: 3 images", "unknown there: c", "are dropped: hernia")
    checked = run("data", "check", *data)
    assert checked.code == 0, checked.err
    small = ("--budget", "small", "--set", "stage1.d_model=8", "--set", "stage1.heads=2", "--set", "stage1.epochs=2")
    planned = run("search", "--space", "cxr", *data, *small, "--trials", "2", "--plan")
    assert planned.code == 0, planned.err
    for words in said:
        assert words in checked.out and words in planned.out
    wrong = run("search", "--space", "ldrnet", *data, "--metric", "mPA")
    assert wrong.code == 2
    assert (
        "invalid input: 2 errors" in wrong.err
        and "--extra-data: ldrnet does not take labels that are unknown" in wrong.err
    )
    missing = run("search", "--space", "cxr", *data, "--extra-data", "none.csv")
    assert missing.code == 2 and f"--extra-data: {tmp_path / 'none.csv'}: no such file" in missing.err


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("isic2019", "ISIC_2019_Training_Input"),
        ("nih-cxr14", "Data_Entry_2017.csv"),
        ("hyper-kvasir", "labeled-images"),
        ("isic-archive-lt", "VASC.csv"),
        ("odir5k", "Training Images"),
        ("cxr-lt-2023", "train.csv"),
        ("skin7", "ISIC2018_Task3_Training_GroundTruth.csv"),
    ],
)
def test_data_check_of_the_wrong_folder_names_all_that_is_missing(run, tmp_path: Path, name: str, wanted: str) -> None:
    (tmp_path / "there.txt").touch()
    outcome = run("data", "check", "--dataset", name, "--data-root", tmp_path)
    assert outcome.code == 2
    assert wanted in outcome.err and "there.txt" in outcome.err
    assert "Traceback" not in outcome.err
    assert run("data", "check", "--dataset", name).code == 2


def test_embed_labels_writes_a_file_that_a_search_takes(run, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    options = ("--model", "clip", "--dataset", "digits-ml:200", "--output", "new/text.safetensors")
    outcome = run("data", "embed-labels", *options, "--pooling", "mean")
    assert outcome.code == 0, outcome.err
    for word in ("new/text.safetensors", "tokens (", "embeddings (10, 16)", "of clip, revision local, mean pooling"):
        assert word in outcome.out
    prompt = ("--set", "stage1.prompt=new/text.safetensors")
    planned = run("search", "--space", "ldrnet", "--dataset", "digits-ml:200", *prompt, "--plan")
    assert planned.code == 0, planned.err


def test_every_mistake_of_embed_labels_is_in_one_message(run, tmp_path: Path) -> None:
    options = ("--model", tmp_path, "--revision", "main", "--pooling", "max", "--output", "text.pt")
    outcome = run("data", "embed-labels", "--dataset", "digits-ml:200", *options)
    assert outcome.code == 2
    for place in ("--revision", "--pooling: must be one of cls, eos, mean (given: 'max')", "--output: 'text.pt'"):
        assert place in outcome.err
    (tmp_path / "text").mkdir()
    options = ("--model", "text", "--output", "text.safetensors")
    outcome = run("data", "embed-labels", "--dataset", "digits-ml:200", *options)
    assert outcome.code == 2
    assert "--model: text: cannot be loaded as a text encoder" in outcome.err
    assert not (tmp_path / "text.safetensors").exists()


@pytest.mark.parametrize("command", ["status", "export", "report"])
def test_commands_on_a_run_that_does_not_exist_are_refused(run, command: str) -> None:
    outcome = run(command, "nothing")
    assert outcome.code == 2
    assert "'nothing'" in outcome.err
    for name, message in (("x" * 300, "too long"), ("", "RUN: is empty")):
        outcome = run(command, name)
        assert (outcome.code, message in outcome.err) == (2, True), outcome.err


@pytest.fixture
def begun(tiny_spec: RunSpec, tmp_path: Path) -> Path:
    """A run with a finished trial and an unfinished one, that no process drives."""
    store = new_run(FolderStore(tmp_path / "runs"), "mine", tiny_spec, {})
    journal = Journal(store.path(JOURNAL), ReseededSampler(0))
    journal.study.set_user_attr(TRIALS, 3)
    for _ in range(2):
        propose(journal.study.ask(), tiny_spec.parameters, flatten(tiny_spec.config))
    for number in range(2):
        journal.set(number, ADDRESS, f"address of {number}")
    journal.tell(0, TrialState.COMPLETE, 0.5)
    return store.root


def test_unfinished_trials_of_a_run_that_no_process_drives_are_interrupted(run, begun: Path) -> None:
    out = run("status", "mine").out
    assert "1 of 3 done: 1 interrupted, 1 finished" in out
    assert "no search is running; resume it with: lt-search search --resume mine" in out
    with sole_driver(begun):
        out = run("status", "mine").out
    assert "1 of 3 done: 1 running, 1 finished" in out and "resume" not in out


@pytest.mark.parametrize("old", [False, True])
def test_a_spec_that_was_edited_is_refused(run, begun: Path, old: bool) -> None:
    kept = begun / "run.yaml"
    text = kept.read_text()
    if old:  # no digest was written
        text = "\n".join(line for line in text.splitlines() if "spec_digest" not in line)
        kept.write_text(text)
    assert run("status", "mine").code == 0
    changes = ["\nseed: 1", "\nprune: false"] + ([] if old else ["\neta: 5"])
    for change in changes:
        key = change.partition(":")[0]
        kept.write_text(re.sub(f"{key}: .*", change, text))
        outcome = run("status", "mine")
        assert outcome.code == 2, change
        assert "changed" in outcome.err and "Traceback" not in outcome.err


def test_a_file_system_that_refuses_a_file_is_explained(run, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (begun / "report.html").mkdir()
    outcome = run("report", "mine")
    assert outcome.code == 1
    assert "report.html" in outcome.err and "fix:" in outcome.err and "Traceback" not in outcome.err

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(begun / "report.html"))

    monkeypatch.setattr("lt_search.results.report.collect.write_report", read_only)
    outcome = run("report", "mine")
    assert outcome.code == 1 and "Read-only file system" in outcome.err


def test_an_ascii_terminal_ends_no_command(begun: Path, tiny_csv: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for words in (("status", "mine"), ("spaces", "lmd"), ("data", "check", "--dataset", tiny_csv), ("status", "nïx")):
        ended = subprocess.run(
            [sys.executable, "-m", "lt_search", *map(str, words)],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": os.pathsep.join([*map(str, sys.path)])},
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode == (2 if words[-1] == "nïx" else 0)
        assert ended.stdout.isascii()


def test_on_windows_one_line_names_wsl(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    outcome = run("spaces")
    assert outcome.code == 1
    assert "WSL" in outcome.err and outcome.err.count("\n") == 1


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("lt-search ")


def test_spaces_refuses_a_file_that_search_would_refuse(run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "trainer: lmd\nmetric: mPA\nbudgets: {small: {trials: 3, set: {stage1.lr: 99}}}\n"
    )
    outcome = run("spaces", "mine.yaml")
    assert outcome.code == 2
    assert "invalid input: 2 errors" in outcome.err and "stage1.lr: must be at most" in outcome.err


def test_evaluate_of_a_folder_that_is_no_export_is_refused(run, tmp_path: Path) -> None:
    outcome = run("evaluate", tmp_path)
    assert outcome.code == 2
    assert "best.yaml, model.safetensors, metrics.json missing" in outcome.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--settings", "0", "--views", "9"), "--settings: must be at least 1 (given: '0')"),
        (("--settings", "0", "--views", "9"), "--views: must be at most 8 (given: '9')"),
        (("--models", "many"), "--models: must be an integer (given: 'many')"),
        ((), "'some-run' is not a run"),
    ],
)
def test_mistakes_of_posthoc_are_refused(run, argv: tuple[str, ...], message: str) -> None:
    outcome = run("posthoc", "some-run", *argv)
    assert outcome.code == 2
    assert message in outcome.err


def test_posthoc_hands_its_options_on(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def tune_run(name: str, storage: FolderStore, console: object, **options: object) -> int:
        given.update(options, name=name, storage=storage.root)
        return 0

    monkeypatch.setattr("lt_search.results.posthoc.command.tune_run", tune_run)
    words = ("--settings", 9, "--models", 2, "--views", 4, "--dataset", "x.csv", "--data-root", "d", "--storage", "s")
    assert run("posthoc", "some-run", *words).code == 0
    expected = {"name": "some-run", "storage": tmp_path / "s", "trials": 9, "models": 2, "views": 4}
    assert given == {**expected, "dataset": str(tmp_path / "x.csv"), "data_root": str(tmp_path / "d")}
    assert run("posthoc", "some-run").code == 0
    assert (given["trials"], given["models"], given["views"]) == (300, 5, 8)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from lt_search.cli import build_parser; build_parser().format_help(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "torchvision", "ray", "optuna", "pandas", "sklearn", "transformers"} & set(modules)


def test_the_console_script_ends_with_the_commands_exit_code(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("lt-search")
    ended = subprocess.run(
        [script, "status", "nothing", "--storage", tmp_path], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("lt-search: invalid input: 1 error\n")

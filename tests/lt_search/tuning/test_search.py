"""What a run is made of before its search starts, and what a resumed one refuses."""

from __future__ import annotations

import io
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import TrialState
from PIL import Image
from rich.console import Console

from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.parameters import Condition, parse_range, propose
from lt_search.config.resolver import resolve_spec
from lt_search.config.space import Space, load_space, parse_space
from lt_search.config.spec import RunSpec
from lt_search.config.values import flatten
from lt_search.data.decoded import open_images, pixels_checksum
from lt_search.errors import ExitCode, Problem, UserError
from lt_search.samplers import ReseededSampler
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.storage.run_folder import JOURNAL, new_run, open_run
from lt_search.storage.schema import TRIALS
from lt_search.training.inputs import RunInputs
from lt_search.tuning.comparison import search_or_compare
from lt_search.tuning.prepare import load_inputs, load_training_data
from lt_search.tuning.search import search, target_of
from lt_search.tuning.tune_loop import StopReason
from tests.helpers.extra_data import extra_table

SMALL = ("stage1.epochs=8", "stage1.d_model=16", "stage1.heads=2")


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    return extra_table(tmp_path / "more", "a", "b|hernia", "", "a|b")


@pytest.fixture
def options(tiny_csv: Path, extra: Path) -> SpecOptions:
    return SpecOptions("cxr", str(tiny_csv), extra_data=(str(extra),), budget="small", set=SMALL)


def _begun(options: SpecOptions, storage: Path) -> RunSpec:
    """A run that was killed before its first trial."""
    dataset = load_inputs(options, RunOptions(storage=str(storage))).dataset
    spec = resolve_spec(options, dataset, gpu=False)
    parts = {part.name: part for part in dataset.parts()} | {
        f"extra {number}": one.train for number, one in enumerate(dataset.extra, 1)
    }
    for part in parts.values():
        open_images(part, spec.data.image_size)
    pixels = {name: pixels_checksum(part, spec.data.image_size) for name, part in parts.items()}
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"pixels": pixels})})
    new_run(FolderStore(storage), "mine", spec, {})
    return spec


def _resumed(storage: Path, options: SpecOptions | None = None) -> str:
    with pytest.raises(UserError) as raised:
        how = RunOptions(storage=str(storage), resume="mine")
        search(options or SpecOptions(""), how, Console(quiet=True))
    return str(raised.value)


def _refuse(address: str | None) -> None:
    raise UserError(Problem("Ray", "reached Ray"))


def test_a_run_keeps_its_extra_data_and_its_retraining_gets_it_again(
    options: SpecOptions, extra: Path, tmp_path: Path
) -> None:
    _begun(options, tmp_path / "runs")
    _, spec = open_run(FolderStore(tmp_path / "runs"), "mine")
    assert spec.options["extra_data"] == [str(extra)]
    (facts,) = spec.data.extra
    assert (facts.name, facts.images, facts.unknown, facts.left_out) == ("more", 4, ["c"], ["hernia"])
    assert set(spec.data.pixels) == {"train", "val", "test", "extra 1"}
    dataset = load_training_data(spec.options, spec.data.name)
    inputs = RunInputs.of(spec, dataset, {}, tmp_path)
    (part,) = inputs.extra
    assert part.fingerprint == facts.fingerprint
    np.testing.assert_array_equal(part.labels, [[1, 0, -1], [0, 1, -1], [0, 0, -1], [1, 1, -1]])
    plain = load_training_data({**spec.options, "extra_data": []}, spec.data.name)
    assert inputs.train.fingerprint == plain.train.fingerprint and inputs.val.fingerprint == plain.val.fingerprint
    assert inputs.train_counts == tuple(plain.train_counts())


def test_options_of_a_run_without_the_option_mean_no_extra_data(tiny_spec: RunSpec) -> None:
    kept = {name: value for name, value in tiny_spec.options.items() if name != "extra_data"}
    assert load_training_data(kept, tiny_spec.data.name).extra == ()


def test_a_resumed_run_goes_on_with_its_extra_data_also_where_it_has_moved(
    options: SpecOptions, extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_search.tuning.search.ray_cluster", _refuse)
    _begun(options, tmp_path / "runs")
    assert "reached Ray" in _resumed(tmp_path / "runs")
    extra.rename(extra.with_name("renamed.csv"))
    assert "no such file" in _resumed(tmp_path / "runs")
    moved = SpecOptions("", extra_data=(str(extra.with_name("renamed.csv")),))
    assert "reached Ray" in _resumed(tmp_path / "runs", moved)


def test_a_resumed_run_with_other_extra_data_is_refused(
    options: SpecOptions, extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_search.tuning.search.ray_cluster", _refuse)
    runs = tmp_path / "runs"
    _begun(options, runs)
    other = extra_table(tmp_path / "other", "a", "b|hernia", "", "b", seed=2)
    for given in ((str(other),), (str(extra), str(other))):
        assert "is not that of the run (more)" in _resumed(runs, SpecOptions("", extra_data=given))
    extra.write_text(extra.read_text().replace("a|b", "b"))
    assert "the extra data (more) is not that of the run (more)" in _resumed(runs)


def test_a_resumed_run_whose_extra_images_have_changed_is_refused(
    options: SpecOptions, extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_search.tuning.search.ray_cluster", _refuse)
    _begun(options, tmp_path / "runs")
    image = extra.parent / "images/000.png"
    size = image.stat().st_size
    Image.new("L", (8, 8), 7).save(image)
    image.write_bytes(image.read_bytes().ljust(size, b"\0"))
    assert image.stat().st_size == size, "names, labels and sizes, all that the fingerprint sees, are the same"
    assert "the images of more are not those of the run" in _resumed(tmp_path / "runs")


def test_a_run_without_extra_data_takes_none_when_resumed(
    options: SpecOptions, extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_search.tuning.search.ray_cluster", _refuse)
    _begun(replace(options, extra_data=()), tmp_path / "runs")
    assert "reached Ray" in _resumed(tmp_path / "runs")
    found = _resumed(tmp_path / "runs", SpecOptions("", extra_data=(str(extra),)))
    assert "the extra data (more) is not that of the run (none)" in found


def _planned(options: SpecOptions, how: RunOptions) -> str:
    console = Console(file=io.StringIO(), width=200)
    assert search(options, replace(how, plan=True), console) == ExitCode.DONE
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def tiny(tiny_space: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpecOptions:
    """A search on a machine with 32 cores and a GPU for its trials, planned quickly."""
    monkeypatch.setattr("lt_search.tuning.plan.MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return SpecOptions(str(tiny_space), str(tiny_csv))


@pytest.mark.parametrize(
    ("how", "concurrent"),
    [
        ({}, 1),
        ({"max_concurrent": 64}, 1),
        ({"gpus_per_trial": "0.25"}, 4),
        ({"gpus_per_trial": "0"}, 32),
        ({"gpus_per_trial": "0", "cpus_per_trial": 5}, 6),
        ({"gpus_per_trial": "0", "max_concurrent": 3}, 3),
    ],
)
def test_a_plan_has_as_many_trials_at_a_time_as_its_search(
    tiny: SpecOptions, tmp_path: Path, how: dict[str, Any], concurrent: int
) -> None:
    shown = _planned(tiny, RunOptions(storage=str(tmp_path / "runs"), trials=40, **how))
    assert f"40, {concurrent} at a time" in shown


def test_a_plan_refuses_what_its_search_would(tiny: SpecOptions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the cluster has 32 CPUs and 1 GPUs in all"):
        _planned(tiny, RunOptions(storage=str(tmp_path / "runs"), gpus_per_trial="2"))


def test_where_nothing_is_searched_one_trial_is_planned(tiny: SpecOptions, tmp_path: Path) -> None:
    fixed = ("stage1.lr=0.5", "stage1.optimiser=sgd", "stage1.momentum=0.5", "stage2.bias=0.0")
    shown = _planned(replace(tiny, set=fixed), RunOptions(storage=str(tmp_path / "runs")))
    assert "trials      1, 1 at a time" in shown and "about 1 stage-1 trainings for 1 trials" in shown


def test_a_new_search_reads_its_space_once(tiny: SpecOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def parse(text: str, place: str) -> Space:
        read.append(place)
        return parse_space(text, place)

    monkeypatch.setattr("lt_search.config.space.parse_space", parse)
    console = Console(quiet=True)
    search_or_compare(tiny, RunOptions(storage=str(tmp_path / "runs"), trials=2, plan=True), console)
    assert read == [tiny.space]


def test_ranges_and_conditions_are_parsed_once_whatever_the_number_of_trials(
    tiny: SpecOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = Condition.parse

    def counting(text: str) -> Condition:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(Condition, "parse", counting)
    parse_range.cache_clear()
    _planned(tiny, RunOptions(storage=str(tmp_path / "runs"), trials=40))
    spaced = load_space(tiny.space).parameters("small").values()
    conditions = [str(parameter.when) for parameter in spaced if parameter.when]
    assert conditions and parsed == 3 * conditions, "in the space, in the spec, and in the space that this test read"
    assert parse_range.cache_info().misses == len({parameter.range for parameter in spaced})


def test_a_time_budget_in_which_no_trial_finishes_is_a_failure(
    tiny: SpecOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_search.tuning.search.ray_cluster", lambda address: nullcontext())
    monkeypatch.setattr("lt_search.tuning.search.carry_out", lambda *_: StopReason("the time budget is used up"))
    console = Console(file=io.StringIO(), width=200)
    how = RunOptions(storage=str(tmp_path / "my runs"), name="a", gpus_per_trial="0", time_budget=1)
    assert search(tiny, how, console) == ExitCode.FAILED
    assert isinstance(console.file, io.StringIO)
    hint = f"no trial has finished; resume with: lt-search search --resume a --storage '{tmp_path / 'my runs'}'"
    assert hint in console.file.getvalue()


@pytest.mark.parametrize(("asked", "kept", "target"), [(None, None, 6), (3, None, 3), (None, 9, 9), (12, 9, 12)])
def test_the_target_is_the_number_given_now_else_before_else_the_budgets(
    asked: int | None, kept: int | None, target: int
) -> None:
    assert target_of(asked, kept, lambda: 6) == target


def test_the_plan_of_a_resumed_run_is_what_it_has_left(tiny: SpecOptions, tmp_path: Path) -> None:
    spec = _begun(tiny, tmp_path / "runs")
    how = RunOptions(storage=str(tmp_path / "runs"), resume="mine")
    assert "6, 1 at a time; the first one has the defaults" in _planned(SpecOptions(""), how), "killed at once"
    journal = Journal(tmp_path / "runs/mine" / JOURNAL, ReseededSampler(0))
    journal.study.set_user_attr(TRIALS, 9)
    for number in range(5):
        propose(journal.study.ask(), spec.parameters, flatten(spec.config))
        if number < 4:
            journal.tell(number, TrialState.COMPLETE, 0.5)
    before = (tmp_path / "runs/mine" / JOURNAL).read_bytes()
    assert "5 to go, 1 at a time; 4 of 9 have ended" in _planned(SpecOptions(""), how)
    assert "16 to go, 1 at a time; 4 of 20 have ended" in _planned(SpecOptions(""), replace(how, trials=20))
    lowered = _planned(SpecOptions(""), replace(how, trials=2))
    assert "1 to go, 1 at a time; 4 of 5 have ended" in lowered, "what was begun is trained to its end"
    assert (tmp_path / "runs/mine" / JOURNAL).read_bytes() == before, "a plan changes nothing"
    journal.tell(4, TrialState.COMPLETE, 0.5)
    ended = _planned(SpecOptions(""), replace(how, trials=5))
    assert "all 5 trials have ended; plan more with --trials 10" in ended and "measuring" not in ended


def test_an_extra_image_that_cannot_be_decoded_is_named_before_the_search(
    options: SpecOptions, extra: Path, tmp_path: Path
) -> None:
    victim = extra.parent / "images/002.png"
    victim.write_bytes(victim.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"extra 1: the train images: 1 of 4 cannot be decoded: images/002\.png"):
        search(options, RunOptions(storage=str(tmp_path / "runs")), Console(quiet=True))

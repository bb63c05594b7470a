"""Options of the command line that are generated from option classes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from lt_search.config.command_line import add_options, read_argument, read_options
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.errors import Problems, UserError


def _read(text: str, options: type) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_options(parser, options)
    problems = Problems()
    found = read_options(parser.parse_args(shlex.split(text)), options, problems)
    problems.raise_if_any()
    return found


def test_options_are_read_as_their_fields_types() -> None:
    text = "--space lmd --seed 3 --set a=1 --set b=2 --no-prune --cost-ratio 20"
    read = _read(text, SpecOptions)
    assert read == {"space": "lmd", "seed": 3, "set": ("a=1", "b=2"), "prune": False, "cost_ratio": 20.0}
    assert SpecOptions(**read) == SpecOptions("lmd", seed=3, set=("a=1", "b=2"), prune=False, cost_ratio=20.0)
    assert _read("--time-budget 1h30m --plan --gpus-per-trial 0.5", RunOptions) == {
        "time_budget": 5400.0,
        "plan": True,
        "gpus_per_trial": "0.5",
    }


def test_options_that_were_not_given_are_not_there() -> None:
    assert _read("", SpecOptions) == {} == _read("", RunOptions)


def test_paths_mean_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read = _read(
        "--space my.yaml --dataset x.CSV --data-root d --extra-data y.csv=e --extra-data digits-ml", SpecOptions
    )
    here = str(tmp_path)
    assert read == {
        "space": f"{here}/my.yaml",
        "dataset": f"{here}/x.CSV",
        "data_root": f"{here}/d",
        "extra_data": (f"{here}/y.csv={here}/e", "digits-ml"),
    }


def test_every_mistake_is_collected_with_its_flag() -> None:
    with pytest.raises(UserError) as raised:
        _read("--seed x --budget huge --image-size 2 --cost-ratio nan --split-seed 1.5", SpecOptions)
    assert [str(problem) for problem in raised.value.problems] == [
        "--image-size: must be at least 8 (given: '2')",
        "--budget: must be one of auto, small, full (given: 'huge')",
        "--seed: must be an integer (given: 'x')",
        "--split-seed: must be an integer (given: '1.5')",
        "--cost-ratio: must be at most 1e+06 (given: 'nan')",
    ]


def test_the_help_is_the_fields_docstring_with_the_default() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, RunOptions)
    text = " ".join(parser.format_help().split())
    assert "--cpus-per-trial N CPU cores a trial takes (default: 1)" in text
    assert "--gpus-per-trial auto|F GPUs a trial takes" in text


def test_empty_values_are_collected_with_the_other_mistakes() -> None:
    problems = Problems()
    namespace = argparse.Namespace(metric="", search=["a=1", ""], seed="x", RUN=" ", set=["a=1"])
    assert read_options(namespace, SpecOptions, problems, ("metric", "seed", "set", "search")) == {"set": ("a=1",)}
    read_argument(namespace, "RUN", problems)
    with pytest.raises(UserError) as raised:
        problems.raise_if_any()
    assert [(problem.place, problem.what) for problem in raised.value.problems] == [
        ("--metric", "is empty"),
        ("--seed", "must be an integer (given: 'x')"),
        ("--search", "is empty"),
        ("RUN", "is empty"),
    ]

"""User options: those that define a search and decide its results, and those of its execution.

The command line is generated from these classes: the docstring of a field is the help of its option.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from lt_search.config.command_line import Argument
from lt_search.config.durations import parse_duration
from lt_search.config.hints import DEFAULT_STORAGE

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


def absolute_path(text: str) -> str:
    """A path that means the same from every folder."""
    return str(Path(text).expanduser().absolute())


def _data_set(text: str) -> str:
    return absolute_path(text) if text.lower().endswith(".csv") else text


def _space(text: str) -> str:
    return absolute_path(text) if text.lower().endswith((".yaml", ".yml")) else text


def _extra_data(text: str) -> str:
    from lt_search.data.registry import split_root

    data, root = split_root(text)
    return _data_set(data) + (f"={absolute_path(root)}" if root else "")


def _gpus(text: str) -> str:
    if text == "auto":
        return text
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither 'auto' nor a number") from None
    if not 0 <= number <= 64:
        raise ValueError(f"{text} is outside 0 to 64")
    if number > 1 and not number.is_integer():
        raise ValueError(f"{text} is neither a share of one GPU nor an integer number of GPUs")
    return text


def _tensor_file(text: str) -> str:
    if not text.endswith(".safetensors"):
        raise ValueError(f"{text!r} does not end with .safetensors")
    return str(Path(text).expanduser())


@dataclass(frozen=True, config=_CONFIG)
class SpecOptions:
    """Options that decide results. A run keeps them, so that `--resume` can check that they are the same."""

    space: Annotated[str, Argument("NAME|FILE.yaml", _space)] = ""
    """the search space; `lt-search spaces` lists them"""  # empty where a resumed run's own space is meant
    dataset: Annotated[str | None, Argument("NAME|FILE.csv", _data_set)] = None
    """digits-lt[:FACTOR], digits-ml[:IMAGES], isic2019[:lt-FACTOR|:balanced-FACTOR], isic-archive-lt[:lists|:patient],
    skin7[:fold-N], hyper-kvasir[:lists|:official-FOLDS-N], nih-cxr14[:official|:chexnet|:patient],
    cxr-lt-2023[:official|:subject], odir5k[:eyes], or a CSV file"""
    data_root: Annotated[str | None, Argument("DIR", absolute_path)] = None
    """the folder of a data set as downloaded; where a CSV's image paths start (default: its folder)"""
    _: KW_ONLY
    extra_data: Annotated[tuple[str, ...], Argument("NAME|FILE.csv[=DIR]", _extra_data)] = ()
    """further training data, may be repeated; =DIR is its root, as --data-root is of --dataset. Classes that it lacks
    are unknown in its images, for trainers that accept that, such as cxr"""
    image_size: Annotated[int | None, Field(ge=8, le=4096)] = None
    """side in pixels to which images are decoded"""
    budget: Literal["auto", "small", "full"] = "auto"
    """size of the search (trials, image size, epochs); auto chooses by the device"""
    metric: Annotated[str | None, Argument("NAME")] = None
    """objective, such as mAP (default: that of the data set, else that of the space)"""
    seed: Seed = 0
    """random seed of training and proposals"""
    split_seed: Seed = 0
    """random seed of the split, where the data comes without one"""
    set: Annotated[tuple[str, ...], Argument("NAME=VALUE")] = ()
    """fix a parameter or any config field; may be repeated"""
    search: Annotated[tuple[str, ...], Argument("NAME=RANGE")] = ()
    """search one more parameter, or another range; may be repeated"""
    sampler: Literal["staged", "tpe", "random"] = "staged"
    """sampler of proposals"""
    prune: bool = True
    """no pruning: train every trial to its end, for comparisons"""
    reuse: bool = True
    """no stage-1 reuse: train it in every trial, for comparisons"""
    cost_ratio: Annotated[float | None, Field(ge=1e-6, le=1e6)] = None
    """stage-1 over stage-2 cost in proposals (default: measured, so that proposals depend on the machine)"""
    row: Annotated[str | None, Argument("NAME")] = None
    """one row of a space that compares several (default: all in turn)"""


@dataclass(frozen=True, config=_CONFIG)
class RunOptions:
    """Options of the execution of a run. Not part of its spec, though another device can move the last bits."""

    storage: Annotated[str, Argument("DIR")] = DEFAULT_STORAGE
    """where runs are kept"""
    name: Annotated[str | None, Argument("NAME")] = None
    """name of the run (default: the space's name and a number)"""
    resume: Annotated[str | None, Argument("NAME")] = None
    """name or folder of a run to resume"""
    trials: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """trials to propose in all (default: as the budget says); with --resume it extends a run"""
    time_budget: Annotated[float | None, Field(gt=0), Argument("2h", parse_duration)] = None
    """stop after this time; the run stays resumable"""  # seconds
    max_concurrent: Annotated[int | None, Field(ge=1, le=100_000)] = None
    """most trials in parallel (default: as many as fit)"""
    address: Annotated[str | None, Argument("auto|HOST:PORT")] = None
    """address of a running Ray cluster (default: this machine)"""
    gpus_per_trial: Annotated[str, AfterValidator(_gpus), Argument("auto|F")] = "auto"
    """GPUs a trial takes; 0.5 lets two share one"""
    cpus_per_trial: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU cores a trial takes"""
    keep_gb: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """GB for models of finished trials, best first; the best one is always kept"""
    plan: bool = False
    """dry run: measure one trial and print the expected time and disk"""


@dataclass(frozen=True, config=_CONFIG)
class PosthocOptions:
    """Options of `posthoc`."""

    settings: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    """most settings to try"""
    models: Annotated[int, Field(ge=1, le=100)] = 5
    """number of best trials that may join an ensemble"""
    views: Annotated[int, Field(ge=1, le=8)] = 8
    """number of test-time views of an image, 1 to 8"""


@dataclass(frozen=True, config=_CONFIG)
class PruneOptions:
    """Options of `store prune`."""

    keep_gb: Annotated[float, Field(ge=0, le=1e9)]
    """GB to keep"""


@dataclass(frozen=True, config=_CONFIG)
class EmbedOptions:
    """Options of `data embed-labels`."""

    model: Annotated[str, Argument("NAME|DIR")]
    """name of a text encoder on the Hugging Face hub, or its folder"""
    output: Annotated[str, AfterValidator(_tensor_file), Argument("FILE.safetensors")]
    """the file to write"""
    revision: Annotated[str | None, Argument("WORD")] = None
    """branch, tag or commit on the hub (default: main)"""
    pooling: Literal["cls", "eos", "mean"] | None = None
    """how the tokens of a label become one embedding (default: as the encoder was trained)"""

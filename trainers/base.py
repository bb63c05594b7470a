"""Interface of a two-stage trainer and base classes of its configuration.

A trainer gets arrays and tensors and gives back tensors and floats. Its config has two sub-models, `stage1` and
`stage2`; that split *is* the information of which parameter belongs to which stage.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from trainers.images.tta import View
from trainers.networks.heads import LinearHead
from trainers.task import Task as Task  # noqa: PLC0414 - re-exported: the contract names it
from trainers.types import Images as Images  # noqa: PLC0414
from trainers.types import State as State  # noqa: PLC0414
from trainers.types import Weights as Weights  # noqa: PLC0414

_HUB_NAME = re.compile(r"(?!.*\.(safetensors|pt|pth|bin|npy|npz)$)\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")
"""A name on the hub; anything that ends like a tensor file is a path."""


@dataclass(frozen=True)
class Resource:
    """A tensor file that a config needs: resolved once by the driver, handed to every trial."""

    kind: Literal["backbone", "prompt", "label_embeddings"]
    """Weights of a network; text tokens (M, D') of all labels; or one text embedding a label, (C, D')."""
    name: str
    """Backbone name; for text the name of its tensor: `tokens` or `embeddings`."""
    source: str
    """A published name or a local path. For a backbone `imagenet` (the published torchvision weights) or a file; for
    text a file, or a text encoder: its name on the Hugging Face hub (`NAME` or `NAME@REVISION`) or its folder."""

    @property
    def key(self) -> str:
        """The key under which the trainer finds the tensors in `TrainerInputs.resources`."""
        return f"{self.kind}:{self.name}:{self.source}"

    @property
    def field(self) -> str:
        """The config field that names the source; `none` there means without this resource."""
        return "stage1.weights" if self.kind == "backbone" else f"stage1.{self.kind}"

    @property
    def published(self) -> bool:
        """Whether the source is a published name instead of a local path."""
        if self.kind == "backbone":
            return self.source == "imagenet"
        return bool(_HUB_NAME.fullmatch(self.source)) and not Path(self.source).exists()


def first_step(fraction: float, length: int) -> int:
    """The step (from 0), of `length`, that begins at or contains a fraction of a stage; 1 gives `length`."""
    # A product such as 0.29 * 100 may fall just below the integer that is meant.
    return math.floor(fraction * length + 1e-9)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


class Stage1Config(_Section):
    """Fields that every trainer's stage 1 has."""

    epochs: int = Field(30, ge=1, le=10_000)
    """Length of stage 1 in steps. A step is one pass over the training images, or `images_per_epoch` of them."""
    images_per_epoch: int | None = Field(None, ge=1)
    """Images in one stage-1 step, where a full pass is too long to wait for; None: all training images."""


class Stage2Config(_Section):
    """Fields that every trainer's stage 2 has."""

    rounds: int = Field(10, ge=1, le=10_000)
    """Length of stage 2 in steps; a step is one round (for EM-like methods one M-step and one E-step)."""


class TrainerConfig(_Section):
    """A trainer's whole configuration. Sub-classes narrow the types of both stages."""

    stage1: Stage1Config = Field(default_factory=Stage1Config)
    stage2: Stage2Config = Field(default_factory=Stage2Config)

    def resources(self) -> tuple[Resource, ...]:
        """The tensor files this config needs; none by default."""
        return ()

    def losses_active_from(self) -> dict[int, int]:
        """For each stage, the number of steps after which every one of its losses has been active.

        A rung at or before that step would compare trials before all of their losses are active, so it is refused.
        """
        return {1: 0, 2: 0}

    def most(self, n_classes: int) -> Mapping[str, int]:
        """Upper bounds of integer fields, by name, above which no value differs on data of that many classes.

        Searches stay within them, so that equal computations have equal addresses. Empty by default.
        """
        return {}

    def notes(self, train_counts: Mapping[str, int]) -> tuple[str, ...]:
        """Notes for the user on this config, given the training images per class; empty by default."""
        return ()


ConfigT = TypeVar("ConfigT", bound=TrainerConfig)


@dataclass(frozen=True)
class TrainerInputs:
    """Inputs of a trainer beside its config. All images are for training: it never sees validation or test images."""

    task: Task
    n_classes: int
    images: Images
    """(N, channels, S, S) uint8 training images."""
    labels: Tensor
    """(N, C) float32 of 0 / 1 for multi-label, (N,) int64 for multi-class. For trainers that take unknown labels, NaN
    or a negative number is an unknown label."""
    device: torch.device
    seed: int
    """The run's seed; every draw derives from (seed, stage, step), see `trainers.seeding`."""
    resources: Mapping[str, Weights] = field(default_factory=dict)
    """Resolved tensor files by `Resource.key`."""
    groups: Sequence[str] | None = None
    """(N,) group ids, such as the patient's, for trainers that split their images; None: each image by itself."""


class TwoStageTrainer(ABC, Generic[ConfigT]):
    """One paper's method, in two stages.

    The harness calls `stage1_step(0) ... stage1_step(epochs - 1)`, `begin_stage2()`, then `stage2_step(0) ...
    stage2_step(rounds - 1)`, with `predict_logits` / `probe_logits` in between, and may stop, save, and continue in
    another process after any step. A loaded trainer continues bit for bit on CPU.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[TrainerConfig]]
    tasks: ClassVar[frozenset[Task]]
    code_version: ClassVar[int]
    """Raised whenever a code change moves stage-1 results; part of a stage-1 artefact's address."""
    takes_unknown_labels: ClassVar[bool] = False
    """Whether multi-label training labels may be unknown, as where several data sets are joined. The training images
    may then be several arrays joined, with `len`, `shape` and indexing by an array of indices."""

    n_views: ClassVar[int] = 1
    """How many of the views of `trainers.images.tta.VIEWS` it can predict on; 1: the image itself alone."""

    def __init__(self, config: ConfigT, inputs: TrainerInputs) -> None:
        self.config = config
        self.inputs = inputs

    @abstractmethod
    def stage1_step(self, step: int) -> dict[str, float]:
        """Trains step `step` (0-based) of stage 1; returns scalars to log, such as mean losses."""

    @abstractmethod
    def begin_stage2(self) -> None:
        """Turns a finished stage 1 into the start of stage 2. A pure function of the stage-1 state and the config."""

    @abstractmethod
    def stage2_step(self, step: int) -> dict[str, float]:
        """Trains round `step` (0-based) of stage 2; returns scalars to log."""

    @abstractmethod
    def predict_logits(self, images: Images) -> Tensor:
        """Logits (N, C), float32 on CPU, of the current head in evaluation mode."""

    @abstractmethod
    def probe_logits(self, images: Images) -> Tensor:
        """Logits (N, C), float32 on CPU, of a closed-form class-balanced head fitted on the training features.

        Judges the representation by what stage 2 will need instead of by its biased head.
        """

    @abstractmethod
    def features(self, images: Images) -> Tensor:
        """Features in evaluation mode, float32 on CPU: (N, D), or (N, C, D) for class-aware methods."""

    @abstractmethod
    def state(self) -> State:
        """The whole state (weights, optimisers, statistics), such that `load_state` continues bit for bit.

        Its entry `model` holds all that `predict_logits` needs, and nothing more: it is what an export keeps.
        """

    @abstractmethod
    def load_state(self, state: State) -> None:
        """Takes over a state given by `state()` of a trainer with the same config and inputs."""

    def finished_stage1(self) -> State:
        """The part of a finished stage 1's state that stage 2 needs; all of `state()` by default.

        `load_state` takes it, and `begin_stage2` is called next.
        """
        return self.state()

    def kept_features(self, images: Images) -> Tensor | None:
        """The result of `features(images)` where it is cached; None by default."""
        return None

    def keep_features(self, images: Images, features: Tensor) -> None:
        """Caches what `kept_features` gave on a trainer with the same encoder; does nothing by default."""

    def view_logits(self, images: Images, view: View) -> Tensor:
        """Logits (N, C), float32 on CPU, of the current head on a view of each image.

        Asked for the first `n_views` of `trainers.images.tta.VIEWS`; for a trainer without further views, for the image
        itself alone.
        """
        return self.predict_logits(images)

    def linear_head(self) -> LinearHead | None:
        """The norms and biases of the current head where it is linear; None, by default, where it is not."""
        return None

    @classmethod
    @abstractmethod
    def from_model(cls, config: ConfigT, inputs: TrainerInputs, model: State) -> Self:
        """A trainer that predicts as the one did whose `state()["model"]` is given. Needs no resources."""

"""Inputs of a worker: a trial to train, and what all trials of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from lt_search.config.spec import parse_config, trainer_type
from lt_search.data.decoded import open_images
from lt_search.data.groups import joined_groups
from lt_search.data.joined import JoinedImages
from lt_search.metrics.bootstrap import Bootstrap, ScoreErrors
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import Evaluation, evaluate
from lt_search.pruning.rungs import Rung
from lt_search.storage.files import FolderStore
from lt_search.storage.stage_store import StageStore
from lt_search.storage.trainer_source import source_digest
from trainers.base import Task, TrainerInputs

if TYPE_CHECKING:
    from lt_search.config.spec import RunSpec
    from lt_search.data.table import Dataset, Part
    from trainers.base import Images, State, TwoStageTrainer, Weights


@dataclass(frozen=True)
class TrialJob:
    """One trial, as handed to a worker."""

    number: int
    attempt: int
    """Raised each time the trial is handed out; names its checkpoints, so that earlier workers do no harm."""
    config: Mapping[str, Any]
    """The full trainer config, nested."""
    address: str = ""
    """Of its stage 1, see `lt_search.storage.addresses`; empty where stage 1 is not shared."""
    compute: str = ""
    """What that address says it is computed on, see `lt_search.storage.addresses.compute_kind`."""
    stage1_stored: bool = False
    """Whether the driver saw that stage 1 in the stage store."""


@dataclass(frozen=True)
class RunInputs:
    """What all trials of a run share. Holds no test image, label or path."""

    trainer: str
    task: Task
    n_classes: int
    train_counts: tuple[int, ...]
    """Training images per class."""
    train: Part
    extra: tuple[Part, ...]
    """Further training images, whose labels may be unknown (-1); `train_counts` does not count them."""
    val: Part
    image_size: int
    metric: str
    seed: int
    stage_lengths: tuple[int, int]
    rungs: tuple[Rung, ...]
    resources: Mapping[str, Weights]
    """Resolved tensor files by key."""
    run_folder: str
    """Absolute path of the run, for checkpoints."""
    stage_storage: str | None = None
    """Absolute path of the storage whose stage-1 artefacts the run shares; None: each trial trains its own."""
    source: str | None = None
    """The trainer's code that addresses are made with, see `lt_search.storage.trainer_source`."""

    @classmethod
    def of(
        cls,
        spec: RunSpec,
        dataset: Dataset,
        weights: Mapping[str, Weights],
        run_folder: Path,
        stage_storage: Path | None = None,
    ) -> RunInputs:
        """The inputs of a run: train, with the data set's further training data, and val; never test."""
        return cls(
            trainer=spec.trainer,
            task=dataset.task,
            n_classes=len(dataset.classes),
            train_counts=tuple(spec.data.train_counts),
            train=dataset.train,
            extra=tuple(extra.train for extra in dataset.extra),
            val=dataset.val,
            image_size=spec.data.image_size,
            metric=spec.metric,
            seed=spec.seed,
            stage_lengths=spec.stage_lengths,
            rungs=spec.rung_list,
            resources=weights,
            run_folder=str(run_folder),
            stage_storage=None if stage_storage is None else str(stage_storage),
            source=source_digest(trainer_type(spec.trainer)),
        )


@dataclass(frozen=True)
class LoadedInputs:
    """A run's inputs with the images opened: made once per worker process, shared by all its trials."""

    inputs: RunInputs
    device: torch.device

    @cached_property
    def train_images(self) -> Images:
        """(N, channels, S, S) uint8, memory-mapped; further training images come after the data set's own."""
        parts = (self.inputs.train, *self.inputs.extra)
        arrays = [open_images(part, self.inputs.image_size) for part in parts]
        return arrays[0] if len(arrays) == 1 else cast("Images", JoinedImages(arrays))

    @cached_property
    def val_images(self) -> Images:
        """(N, channels, S, S) uint8, memory-mapped."""
        return open_images(self.inputs.val, self.inputs.image_size)

    @property
    def has_code_of_driver(self) -> bool:
        """Whether this process has loaded the code of the trainer that the driver makes addresses with."""
        return source_digest(trainer_type(self.inputs.trainer)) == self.inputs.source

    @cached_property
    def stages(self) -> StageStore | None:
        """The store of shared stage-1 artefacts; None where they are not shared."""
        storage = self.inputs.stage_storage
        return None if storage is None else StageStore(FolderStore(Path(storage)))

    @property
    def splits(self) -> dict[str, Images]:
        """The images of each split that trials see."""
        return {"train": self.train_images, "val": self.val_images}

    @cached_property
    def train_labels(self) -> torch.Tensor:
        """(N, C) float32 for multi-label, NaN where a label is unknown; (N,) int64 for multi-class."""
        labels = [torch.from_numpy(np.array(part.labels)) for part in (self.inputs.train, *self.inputs.extra)]
        if self.inputs.task == Task.MULTI_CLASS:
            return labels[0].long()
        joined = torch.cat([part.float() for part in labels])
        return joined.masked_fill(joined < 0, torch.nan)

    def build_trainer(self, config: Mapping[str, Any]) -> TwoStageTrainer[Any]:
        """A fresh trainer for a nested config."""
        trainer = trainer_type(self.inputs.trainer)
        return trainer(parse_config(trainer.config_type, config), self._trainer_inputs())

    def load_trainer(self, config: Mapping[str, Any], model: State) -> TwoStageTrainer[Any]:
        """A trainer that predicts with an exported model."""
        trainer = trainer_type(self.inputs.trainer)
        return trainer.from_model(parse_config(trainer.config_type, config), self._trainer_inputs(), model)

    def _trainer_inputs(self) -> TrainerInputs:
        return TrainerInputs(
            task=self.inputs.task,
            n_classes=self.inputs.n_classes,
            images=self.train_images,
            labels=self.train_labels,
            device=self.device,
            seed=self.inputs.seed,
            groups=joined_groups((self.inputs.train, *self.inputs.extra)),
            resources=self.inputs.resources,
        )

    def evaluate(self, logits: torch.Tensor) -> Evaluation:
        """All validation metrics of logits (N, C)."""
        return evaluate(
            self.inputs.task, self.inputs.val.labels, logits.numpy(), class_groups(self.inputs.train_counts)
        )

    def score_errors(self, logits: torch.Tensor) -> ScoreErrors:
        """Bootstrap standard errors of the objective over the patients or groups of the validation split."""
        inputs, val = self.inputs, self.inputs.val
        bootstrap = Bootstrap(inputs.metric, inputs.task, val.labels, val.groups)
        return bootstrap.score_errors(logits.numpy(), class_groups(inputs.train_counts))

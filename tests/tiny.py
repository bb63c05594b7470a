"""A two-stage trainer small enough for tests of the harness: a linear head on 4 x 4 pixel means.

It trains for real, keeps its whole state, and refuses to train a step twice or past its end, so that a search that
resumes wrongly fails its trials.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trainers.base import (
    Images,
    Stage1Config,
    Stage2Config,
    State,
    Task,
    TrainerConfig,
    TrainerInputs,
    TwoStageTrainer,
)
from trainers.seeding import generator


class TinyStage1(Stage1Config):
    epochs: int = Field(4, ge=1, le=1000)
    lr: float = Field(0.5, gt=0, le=10)
    """Learning rate of plain gradient descent."""
    optimiser: Literal["sgd", "momentum"] = "sgd"
    momentum: float = Field(0.5, ge=0, lt=1)
    late_loss_from: int = Field(0, ge=0)
    """Epochs before a (make-believe) second loss is switched on."""
    fail_above_lr: float = Field(100.0, gt=0)
    """Trials with a larger learning rate raise in their second epoch."""
    nan_above_lr: float = Field(100.0, gt=0)
    """Trials with a larger learning rate diverge to NaN in their second epoch."""
    die_above_lr: float = Field(100.0, gt=0)
    """The process of trials with a larger learning rate exits in their second epoch."""
    die_once: str = ""
    """A file: the process exits in its third epoch if the file is not there, and leaves it behind."""
    seconds: float = Field(0.0, ge=0)
    """Time that each epoch takes at least."""


class TinyStage2(Stage2Config):
    rounds: int = Field(2, ge=1, le=1000)
    bias: float = Field(0.0, ge=-1, le=1)
    """Pull towards class-balanced biases."""
    seconds: float = Field(0.0, ge=0)
    """Time that each round takes at least."""
    meet_in: str = ""
    """A folder: trials leave word there of the Ray node they are on, and go on when another node has done so, too."""


class TinyConfig(TrainerConfig):
    stage1: TinyStage1 = Field(default_factory=TinyStage1)
    stage2: TinyStage2 = Field(default_factory=TinyStage2)

    def losses_active_from(self) -> dict[int, int]:
        return {1: self.stage1.late_loss_from, 2: 0}


class TinyTrainer(TwoStageTrainer[TinyConfig]):
    name: ClassVar[str] = "tiny"
    config_type: ClassVar[type[TrainerConfig]] = TinyConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTI_LABEL, Task.MULTI_CLASS})
    code_version: ClassVar[int] = 1

    def __init__(self, config: TinyConfig, inputs: TrainerInputs) -> None:
        super().__init__(config, inputs)
        self.x = self.features(inputs.images)
        labels = inputs.labels
        self.y = F.one_hot(labels, inputs.n_classes).float() if labels.ndim == 1 else labels
        draws = generator("cpu", inputs.seed, "init")
        self.weight = torch.randn(self.x.shape[1], inputs.n_classes, generator=draws) * 0.01
        self.bias = torch.zeros(inputs.n_classes)
        self.velocity = torch.zeros_like(self.weight)
        self.done = [0, 0]

    def stage1_step(self, step: int) -> dict[str, float]:
        cfg = self.config.stage1
        self._count(0, step, cfg.epochs)
        if step == 1 and cfg.lr > cfg.die_above_lr:
            os._exit(1)
        if step == 2 and cfg.die_once and not Path(cfg.die_once).exists():
            Path(cfg.die_once).touch()
            os._exit(1)
        if step == 1 and cfg.lr > cfg.fail_above_lr:
            raise ArithmeticError(f"learning rate {cfg.lr} is too large <for & this test>")
        time.sleep(cfg.seconds)
        order = torch.randperm(len(self.x), generator=generator("cpu", self.inputs.seed, 1, step))
        for batch in order.split(64):
            error = torch.sigmoid(self.x[batch] @ self.weight + self.bias) - self.y[batch]
            gradient = self.x[batch].T @ error / len(batch)
            if cfg.optimiser == "momentum":
                self.velocity = gradient = cfg.momentum * self.velocity + gradient
            self.weight = self.weight - cfg.lr * gradient
            self.bias = self.bias - cfg.lr * error.mean(0)
        if step == 1 and cfg.lr > cfg.nan_above_lr:
            self.weight = self.weight * float("nan")
        logits = self.x @ self.weight + self.bias
        return {"loss": F.binary_cross_entropy_with_logits(logits, self.y).item()}

    def begin_stage2(self) -> None:
        self.velocity = torch.zeros_like(self.weight)

    def stage2_step(self, step: int) -> dict[str, float]:
        self._count(1, step, self.config.stage2.rounds)
        time.sleep(self.config.stage2.seconds)
        if self.config.stage2.meet_in:
            _meet_another_node(Path(self.config.stage2.meet_in))
        rate = self.y.mean(0).clamp(1e-3, 1 - 1e-3)
        self.bias = self.bias - self.config.stage2.bias * 0.1 * torch.logit(rate)
        self.weight = self.weight * (1 + 0.05 * self.config.stage2.bias)
        return {"shift": self.config.stage2.bias}

    def _count(self, stage: int, step: int, length: int) -> None:
        if step != self.done[stage] or step >= length:
            raise AssertionError(f"stage {stage + 1} step {step} after {self.done} of {length}")
        self.done[stage] += 1

    def predict_logits(self, images: Images) -> Tensor:
        return self.features(images) @ self.weight + self.bias

    def probe_logits(self, images: Images) -> Tensor:
        return self.predict_logits(images) + 0.1 * self.bias

    def features(self, images: Images) -> Tensor:
        pixels = torch.from_numpy(np.array(images)).float().mean(1, keepdim=True) / 255
        return F.adaptive_avg_pool2d(pixels, 4).flatten(1)

    def state(self) -> State:
        return {
            "model": {"weight": self.weight.clone(), "bias": self.bias.clone()},
            "velocity": self.velocity.clone(),
            "done": list(self.done),
        }

    def load_state(self, state: State) -> None:
        self.load_model(state["model"])
        self.velocity = state["velocity"].clone()
        self.done = list(state["done"])

    @classmethod
    def from_model(cls, config: TinyConfig, inputs: TrainerInputs, model: State) -> TinyTrainer:
        trainer = cls(config, inputs)
        trainer.load_model(model)
        return trainer

    def load_model(self, model: State) -> None:
        self.weight, self.bias = model["weight"].clone(), model["bias"].clone()


def _meet_another_node(folder: Path, seconds: float = 90) -> None:
    import ray

    (folder / ray.get_runtime_context().get_node_id()).touch()
    deadline = time.monotonic() + seconds
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("no trial came on another node")
        time.sleep(0.05)

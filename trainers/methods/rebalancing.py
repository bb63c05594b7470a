"""Stage 2 of decoupled training (Kang et al., arXiv 1910.09217): re-balancing of a `ClassHead` on a frozen encoder.

Shared by the trainers whose stage 2 is a choice among such methods. Features are those of un-augmented training images,
extracted once for as long as the encoder is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor

from trainers.base import Stage2Config
from trainers.features.gaussians import moments
from trainers.image_config import AugmentedStage1, ImageTrainerConfig
from trainers.image_trainer import ImageTrainer
from trainers.images import batches
from trainers.images.augment import training_images
from trainers.networks.heads import ClassHead, tau_normalise, to_nearest_mean

SHARE = "share"
"""Key of an optimiser's group for its share of the learning rate; 1 where it is missing."""

REFERENCE_BATCH = 512
"""Batch size that stage 2's learning rate is given for; the rate is scaled with the batch (Kang et al., issue 8)."""


class RebalancingStage2(Stage2Config):
    """The fields of the methods that several trainers have. Sub-classes say which methods there are."""

    method: str = "none"
    """How the classifier is re-balanced."""
    lr: float = Field(0.2, gt=0, le=100)
    """SGD's learning rate of the methods that learn, at a batch of 512, scaled with the batch; a cosine to 0."""
    batch_size: int = Field(512, ge=1, le=65_536)
    """Features in a batch of the methods that learn."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(5e-4, ge=0, le=1)
    """SGD's L2 penalty."""
    tau: float = Field(1.0, ge=0, le=10)
    """tau of `tau_norm`."""


class RebalancingConfig(ImageTrainerConfig):
    """A configuration with an augmented stage 1 and a stage 2 that re-balances."""

    stage1: AugmentedStage1 = Field(default_factory=AugmentedStage1)
    stage2: RebalancingStage2 = Field(default_factory=RebalancingStage2)


ConfigT = TypeVar("ConfigT", bound=RebalancingConfig)


class RebalancingTrainer(ImageTrainer[ConfigT]):
    """A trainer whose network's head is a `ClassHead`; sub-classes train stage 1 and choose the methods."""

    @property
    def _head(self) -> ClassHead:
        head = self.model.head
        assert isinstance(head, ClassHead)
        return head

    def rebalance_by_formula(self) -> None:
        """Applies the methods that learn nothing: `tau_norm` and `ncm`; leaves the head as it is for any other."""
        cfg = self.config.stage2
        if cfg.method == "tau_norm":
            tau_normalise(self._head, cfg.tau)
        elif cfg.method == "ncm":
            to_nearest_mean(self._head, moments(self.current_sums()).mean[0].float())

    def train_head(
        self,
        step: int,
        drawn: Iterable[tuple[Tensor, Tensor]],
        total: int,
        loss_of: Callable[[Tensor, Tensor], Tensor],
    ) -> float:
        """A round of `total` features with their targets, by the optimiser `head`; returns the mean loss."""
        rates = self._cosine_rates(step, math.ceil(total / self.config.stage2.batch_size))
        optimizer = self.optimizers["head"]

        def set_rate() -> None:
            rate = next(rates)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get(SHARE, 1.0)

        return self.train_on_features(drawn, loss_of=loss_of, optimizer=optimizer, before_batch=set_rate)

    def move_batch_norms(self, step: int, *, exponent: float | None) -> None:
        """Batch norms see one epoch of augmented images, drawn as `step_order` says; no parameter moves.

        The shift learning of MiSLAS (arXiv 2104.00466), where images are class-balanced (`exponent` 1).
        """
        cfg = self.config.stage1
        draws = self.draws(2, step, "augmentation")
        order = self.step_order(2, step, None, exponent=exponent)
        self.model.train()
        with torch.no_grad():
            for _, raw in batches.load(self.inputs.images, batches.split(order, cfg.batch_size), self.device):
                self.forward(training_images(raw, cfg.augmentations, draws))
        self.encoder_changed()

    def _cosine_rates(self, step: int, batches: int) -> Iterator[float]:
        """Learning rates of a round's batches, on one cosine from the start to the end of stage 2."""
        cfg = self.config.stage2
        top, steps = cfg.lr * cfg.batch_size / REFERENCE_BATCH, cfg.rounds * batches
        return (top * (1 + math.cos(math.pi * (step * batches + i) / steps)) / 2 for i in range(batches))

"""Decoupled training: the baselines of two-stage methods, with a choice of stage-1 loss and of stage 2.

After Kang et al., "Decoupling Representation and Classifier" (arXiv 1910.09217): stage 1 learns everything with one
long-tail loss or sampler, stage 2 re-balances the classifier on a frozen encoder. As the encoder is frozen, stage 2
works on features of un-augmented training images, extracted once. The losses are in `trainers.methods.long_tail`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from trainers.base import Task, TrainerConfig, TrainerInputs, Weights
from trainers.features.gaussians import Gaussians, fit
from trainers.features.sampling import class_balanced_order
from trainers.image_trainer import fused
from trainers.images import batches
from trainers.images.augment import training_images
from trainers.losses.sigmoid import bce
from trainers.losses.softmax import cross_entropy, label_aware_smoothing, log_prior, smoothing_by_count
from trainers.methods.long_tail import (
    COSINE_LOSSES,
    ONE_LABEL_LOSSES,
    SEVERAL_LABEL_LOSSES,
    LongTailStage1,
    LossFunction,
    loss_on_cosines,
    one_label_loss,
    several_label_loss,
)
from trainers.methods.rebalancing import SHARE, RebalancingConfig, RebalancingStage2, RebalancingTrainer
from trainers.networks.heads import ClassHead
from trainers.networks.network import PooledNetwork
from trainers.seeding import generator
from trainers.seeds import derive_seed

Method = Literal["none", "crt", "lws", "mislas", "tau_norm", "ncm", "logit_adjustment", "vfc"]

SEVERAL_LABEL_METHODS = frozenset({"none", "crt"})
"""The others move a label's scores as a whole, which changes no ranking within a label, or need one label an image."""


class DecoupledStage1(LongTailStage1):
    """The representation, under one long-tail loss or sampler."""

    epochs: int = Field(100, ge=1, le=10_000)
    """Length of stage 1 in passes over the training images, or over `images_per_epoch` of them."""
    batch_size: int = Field(128, ge=2, le=65_536)
    """Images in a batch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW. The rows of a comparison and what they are compared with should share it."""
    lr: float = Field(0.01, gt=0, le=10)
    """Learning rate, constant but for `ldam_drw`."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(5e-4, ge=0, le=1)
    """SGD's L2 penalty, AdamW's weight decay."""


class DecoupledStage2(RebalancingStage2):
    """The classifier, re-balanced on the frozen encoder."""

    method: Method = "none"
    """`none`: stage 1's head. `crt`: a new head on class-balanced samples. `lws`: a learned scale per class.
    `mislas` (arXiv 2104.00466), after `mixup`: a learned scale per class and, more slowly, the head, with label-aware
    smoothing, while batch norms adapt to class-balanced images. `tau_norm`: weights divided by their norm^tau. `ncm`:
    nearest class mean by cosine. `logit_adjustment`: logits minus tau log prior. `vfc`: a new head on virtual features.
    Several labels an image: `none` and `crt` only."""
    tau: float = Field(1.0, ge=0, le=10)
    """tau of `tau_norm` and of `logit_adjustment`."""
    head_lr_factor: float = Field(0.1, gt=0, le=1)
    """Factor on the learning rate of `mislas`'s head; its scales learn at the full rate."""
    smooth_head: float = Field(0.3, ge=0, lt=1)
    """Label smoothing of the most frequent class in `mislas`."""
    smooth_tail: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the rarest class in `mislas`."""
    virtual_size: int = Field(5_000, ge=1, le=10_000_000)
    """R of `vfc`: virtual features per class and round."""
    cov_eps: float = Field(0.01, ge=0, le=100)
    """Added to the diagonal of `vfc`'s covariances."""
    shrinkage: float = Field(0.0, ge=0, le=1)
    """g of `vfc`'s covariances, (1 - g) S + g tr(S) / D * I."""

    @property
    def trains(self) -> bool:
        """Whether rounds train something; else stage 2 is a formula."""
        return self.method in ("crt", "lws", "mislas", "vfc")


class DecoupledConfig(RebalancingConfig):
    """All parameters of the baselines; a row of a comparison uses few of them."""

    stage1: DecoupledStage1 = Field(default_factory=DecoupledStage1)
    stage2: DecoupledStage2 = Field(default_factory=DecoupledStage2)

    def losses_active_from(self) -> dict[int, int]:
        """All losses of `ldam_drw` are active after its first re-weighted epoch."""
        return {1: self.stage1.reweighted_from if self.stage1.loss == "ldam_drw" else 0, 2: 0}


class DecoupledTrainer(RebalancingTrainer[DecoupledConfig]):
    """Trains a baseline, see the module's docstring."""

    name: ClassVar[str] = "decoupled"
    config_type: ClassVar[type[TrainerConfig]] = DecoupledConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTI_CLASS, Task.MULTI_LABEL})
    code_version: ClassVar[int] = 2

    def __init__(self, config: DecoupledConfig, inputs: TrainerInputs) -> None:
        """As every trainer; raises `ValueError` also for a loss or a method that does not apply to the task."""
        _check_task(config, inputs.task)
        super().__init__(config, inputs)
        self.several = inputs.task == Task.MULTI_LABEL

    def build_network(self, resources: dict[str, Weights]) -> PooledNetwork:
        """Backbone, global average pooling and a `ClassHead`."""
        return PooledNetwork(self.config.stage1.backbone, resources.get("backbone"), self._first_head)

    def enter_stage(self, stage: int) -> None:
        """Also says what the head's logits are: cosines for LDAM, for GCL and for the nearest mean."""
        super().enter_stage(stage)
        method = self.config.stage2.method if stage == 2 else "none"
        self._head.cosine = method == "ncm" or (
            self.config.stage1.loss in COSINE_LOSSES and method in ("none", "lws", "mislas", "logit_adjustment")
        )

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One optimiser in stage 1; in stage 2 an SGD for what the method learns, if anything."""
        one, two, head = self.config.stage1, self.config.stage2, self._head
        if self.stage == 1:
            # Scales are stage 2's, and a cosine head has no use for a bias.
            parameters = [p for p in self.model.parameters() if p is not head.scale]
            if one.optimizer == "sgd":
                return {"stage1": self.sgd(parameters, one.lr, one.momentum, one.weight_decay)}
            adamw = torch.optim.AdamW(parameters, lr=one.lr, weight_decay=one.weight_decay, **fused(self.device))
            return {"stage1": adamw}
        if not two.trains:
            return {}
        parameters = [head.scale] if two.method in ("lws", "mislas") else [head.weight, head.bias]
        optimizer = self.sgd(parameters, two.lr, two.momentum, two.weight_decay)
        if two.method == "mislas":
            slow = [head.weight] if head.cosine else [head.weight, head.bias]
            optimizer.add_param_group({"params": slow, SHARE: two.head_lr_factor})
        return {"head": optimizer}

    def stage1_step(self, step: int) -> dict[str, float]:
        """An epoch under the chosen loss; logs `loss`."""
        cfg = self.config.stage1
        self.model.train()
        optimizer = self.optimizers["stage1"]
        reweighted = cfg.loss == "ldam_drw" and step >= cfg.reweighted_from
        optimizer.param_groups[0]["lr"] = cfg.lr * (cfg.drw_lr_factor if reweighted else 1.0)
        draws = self.draws(1, step, "augmentation")
        shares = np.random.default_rng(derive_seed(self.inputs.seed, 1, step, "mixup"))

        def loss(index: Tensor, raw: Tensor) -> Tensor:
            if cfg.loss == "balanced_mixup":
                plain, balanced = (training_images(part, cfg.augmentations, draws) for part in raw.unbind(1))
                return self._balanced_mixed_loss(plain, balanced, self.labels[index], shares)
            images, targets = training_images(raw, cfg.augmentations, draws), self.labels[index]
            if cfg.loss == "mixup":
                return self._mixed_loss(images, targets, draws, shares)
            return self._loss(self.forward(images), targets, draws, reweighted=reweighted)

        order = self.step_order(1, step, cfg.images_per_epoch, exponent=cfg.order_exponent)
        if cfg.loss == "balanced_mixup":
            order = self._with_balanced_partners(step, order)
        mean = self.train_on_images(1, step, order=order, batch_size=cfg.batch_size, loss_of=loss, optimizer=optimizer)
        return {"loss": mean}

    def begin_stage2(self) -> None:
        """Applies the methods that are formulas, and starts those that learn."""
        cfg = self.config.stage2
        self.enter_stage(2)
        if cfg.method in ("crt", "vfc"):
            self.fresh_head(lambda: self._new_head(self.model.dim))
        elif cfg.method == "logit_adjustment":
            self._head.offset -= cfg.tau * log_prior(self.counts)
        self.rebalance_by_formula()
        self.optimizers = self.build_optimizers()

    def stage2_step(self, step: int) -> dict[str, float]:
        """A round of the methods that learn, logging `head_loss`; nothing for the others."""
        cfg = self.config.stage2
        if not cfg.trains:
            return {}
        if cfg.method == "mislas":
            self.move_batch_norms(step, exponent=1.0)
        if cfg.method == "vfc":
            total = cfg.virtual_size * int((self.counts > 0).sum())
            drawn = self.virtual_features(step, self.kept_gaussians(self._fitted), cfg.virtual_size, cfg.batch_size)
        else:
            total = len(self.labels)
            drawn = self.balanced_features(step, total, cfg.batch_size)
        return {"head_loss": self.train_head(step, drawn, total, self._head_loss())}

    def _new_head(self, dim: int) -> ClassHead:
        return ClassHead(dim, self.inputs.n_classes)

    def _first_head(self, dim: int) -> ClassHead:
        head = self._new_head(dim)
        scale = self.config.stage1.cosine_scale
        if scale is not None:
            nn.init.constant_(head.scale, scale)
        return head

    def _loss(self, features: Tensor, targets: Tensor, draws: torch.Generator, *, reweighted: bool) -> Tensor:
        """The chosen loss of a batch of features (B, D)."""
        cfg, head, counts = self.config.stage1, self._head, self.counts
        if cfg.loss in COSINE_LOSSES:
            return loss_on_cosines(cfg, counts, head.cosines(features), targets, draws, reweighted=reweighted)
        loss = several_label_loss(cfg, counts, len(self.labels)) if self.several else one_label_loss(cfg, counts)
        return loss(head(features), targets)

    def _with_balanced_partners(self, step: int, order: batches.Indices) -> batches.Indices:
        """Indices (n, 2): those of `order` (n,), each with that of an image sampled class by class."""
        draws = generator("cpu", self.inputs.seed, 1, step, "balanced partners")
        return np.stack([order, class_balanced_order(self.labels, len(order), 1.0, draws).numpy()], axis=1)

    def _mixed_loss(
        self, images: Tensor, targets: Tensor, draws: torch.Generator, shares: np.random.Generator
    ) -> Tensor:
        """MixUp (Zhang et al., arXiv 1710.09412): one share per batch, partners by a random order."""
        alpha = self.config.stage1.mixup_alpha
        share = float(shares.beta(alpha, alpha))
        partner = torch.randperm(len(images), generator=draws, device=self.device)
        return self._loss_of_mixture(images[partner], images, targets[partner], targets, share)

    def _balanced_mixed_loss(
        self, images: Tensor, balanced: Tensor, targets: Tensor, shares: np.random.Generator
    ) -> Tensor:
        """Balanced-MixUp (Galdran et al., arXiv 2109.09850): one share of the class-balanced images per batch.

        `targets` (B, 2) or (B, 2, C) are those of `images` and of `balanced`.
        """
        share = float(shares.beta(self.config.stage1.mixup_alpha, 1.0))
        return self._loss_of_mixture(images, balanced, targets[:, 0], targets[:, 1], share)

    def _loss_of_mixture(self, images: Tensor, others: Tensor, targets: Tensor, theirs: Tensor, share: float) -> Tensor:
        """Cross-entropy, by task, of images mixed with a `share` of `others`, as labels `targets` with `theirs`."""
        logits = self._head(self.forward(torch.lerp(images, others, share)))
        if self.several:
            return bce(logits, torch.lerp(targets, theirs, share))
        own, other = (nn.functional.one_hot(part, self.inputs.n_classes).float() for part in (targets, theirs))
        return cross_entropy(logits, torch.lerp(own, other, share))

    def _head_loss(self) -> LossFunction:
        """Stage 2's loss as a function of logits and targets."""
        cfg = self.config.stage2
        if cfg.method != "mislas":
            return bce if self.several else cross_entropy
        smoothing = smoothing_by_count(self.counts, cfg.smooth_head, cfg.smooth_tail)
        return lambda logits, targets: label_aware_smoothing(logits, targets, smoothing)

    def _fitted(self) -> Gaussians:
        cfg = self.config.stage2
        return fit(
            self.current_sums("full"), cov_type="full", shrinkage=cfg.shrinkage, towards="identity", ridge=cfg.cov_eps
        )


def _check_task(config: DecoupledConfig, task: Task) -> None:
    """Raises `ValueError` for a loss or a method that does not apply to the task."""
    loss, method = config.stage1.loss, config.stage2.method
    if task == Task.MULTI_LABEL and loss in ONE_LABEL_LOSSES:
        raise ValueError(f"stage1.loss {loss} needs one label an image; several take plain, asymmetric, ...")
    if task == Task.MULTI_CLASS and loss in SEVERAL_LABEL_LOSSES:
        raise ValueError(f"stage1.loss {loss} is for several labels an image; one takes plain, focal, ldam_drw, ...")
    if task == Task.MULTI_LABEL and method not in SEVERAL_LABEL_METHODS:
        raise ValueError(
            f"stage2.method {method} changes no ranking within a label, or needs one label an image; several labels "
            "take none or crt"
        )

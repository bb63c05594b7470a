"""The baselines that a two-stage method must beat: one trainer with a choice of stage-1 loss and of stage 2.

After Kang et al., "Decoupling Representation and Classifier" (arXiv 1910.09217): stage 1 learns everything with one
long-tail loss or sampler, stage 2 re-balances the classifier on a frozen encoder. As the encoder is frozen, stage 2
works on features of un-augmented training images, extracted once. Sources of the losses are in `softmax_losses` and
`sigmoid_losses`; defaults are their papers'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from trainers.augment import training_images
from trainers.base import Task, TrainerConfig, TrainerInputs, Weights, first_step
from trainers.gaussians import Gaussians, fit
from trainers.heads import ClassHead
from trainers.image_config import AugmentedStage1
from trainers.pooled import PooledNetwork
from trainers.rebalancing import SHARE, RebalancingConfig, RebalancingStage2, RebalancingTrainer
from trainers.seeding import derive_seed
from trainers.sigmoid_losses import asymmetric, bce, focal_bce, positive_weights
from trainers.softmax_losses import (
    class_balanced_weights,
    cross_entropy,
    focal,
    label_aware_smoothing,
    ldam,
    ldam_margins,
    log_prior,
    logit_adjusted,
    smoothing_by_count,
)

Loss = Literal[
    "plain",
    "balanced_sampling",
    "mixup",
    "focal",
    "class_balanced",
    "ldam_drw",
    "balanced_softmax",
    "logit_adjustment",
    "asymmetric",
    "pos_weight",
]
Method = Literal["none", "crt", "lws", "mislas", "tau_norm", "ncm", "logit_adjustment", "vfc"]

ONE_LABEL_LOSSES = frozenset({"class_balanced", "ldam_drw", "balanced_softmax", "logit_adjustment"})
SEVERAL_LABEL_LOSSES = frozenset({"asymmetric", "pos_weight"})
SEVERAL_LABEL_METHODS = frozenset({"none", "crt"})
"""The others move a label's scores as a whole, which changes no ranking within a label, or need one label an image."""


class DecoupledStage1(AugmentedStage1):
    """The representation, under one long-tail loss or sampler."""

    epochs: int = Field(100, ge=1, le=10_000)
    """Length of stage 1 in passes over the training images, or over `images_per_epoch` of them."""
    batch_size: int = Field(128, ge=2, le=65_536)
    """Images in a batch."""
    lr: float = Field(0.01, gt=0, le=10)
    """SGD's learning rate, constant but for `ldam_drw`."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(5e-4, ge=0, le=1)
    """SGD's L2 penalty."""
    loss: Loss = "plain"
    """`plain` is cross-entropy, or binary cross-entropy for several labels an image. `balanced_sampling`, `mixup` and
    `focal` work for both; `class_balanced`, `ldam_drw`, `balanced_softmax` and `logit_adjustment` for one label;
    `asymmetric` and `pos_weight` for several."""
    sampling_exponent: float = Field(1.0, ge=0, le=2)
    """r of `balanced_sampling`: image i has probability ~ n_y^-r; 0.5 is square-root sampling."""
    mixup_alpha: float = Field(0.2, gt=0, le=10)
    """a of `mixup`: the share of the first image is drawn from Beta(a, a)."""
    focal_gamma: float = Field(2.0, ge=0, le=10)
    """gamma of `focal`."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """beta of the effective numbers in `class_balanced` and `ldam_drw`; near inverse frequency for small classes."""
    ldam_scale: float = Field(30.0, gt=0, le=1000)
    """s of `ldam_drw`."""
    ldam_margin: float = Field(0.5, ge=0, le=2)
    """Margin of the rarest class in `ldam_drw`."""
    drw_start: float = Field(0.8, ge=0, le=1)
    """Fraction of stage 1 after which `ldam_drw` weights classes."""
    drw_lr_factor: float = Field(0.1, gt=0, le=1)
    """Factor on the learning rate from `drw_start` on."""
    tau: float = Field(1.0, ge=0, le=10)
    """tau of `logit_adjustment` in training."""
    gamma_pos: float = Field(1.0, ge=0, le=10)
    """gamma+ of `asymmetric`."""
    gamma_neg: float = Field(4.0, ge=0, le=10)
    """gamma- of `asymmetric`; too strong on mild imbalance, where 2 or less is advised."""
    asl_margin: float = Field(0.05, ge=0, lt=1)
    """Probability margin m of `asymmetric`."""
    weight_power: float = Field(0.5, ge=0, le=2)
    """k of `pos_weight`: positives weigh ((1 - r) / r)^k, r the share of images with the label."""

    @property
    def reweighted_from(self) -> int:
        """First epoch (from 0) in which `ldam_drw` weights classes; `epochs` where `drw_start` is 1: never."""
        return first_step(self.drw_start, self.epochs)


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
    """Factor on the learning rate of `mislas`'s head; its scales learn at the whole rate."""
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
        """Stage 1 of `ldam_drw` is whole once its first re-weighted epoch has run."""
        return {1: self.stage1.reweighted_from if self.stage1.loss == "ldam_drw" else 0, 2: 0}


class DecoupledTrainer(RebalancingTrainer[DecoupledConfig]):
    """Trains a baseline, see the module's docstring."""

    name: ClassVar[str] = "decoupled"
    config_type: ClassVar[type[TrainerConfig]] = DecoupledConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTI_CLASS, Task.MULTI_LABEL})
    code_version: ClassVar[int] = 2

    def __init__(self, config: DecoupledConfig, inputs: TrainerInputs) -> None:
        """As every trainer; raises `ValueError` also for a loss or a method that the task has not."""
        _check_task(config, inputs.task)
        super().__init__(config, inputs)
        self.several = inputs.task == Task.MULTI_LABEL

    def build_network(self, resources: dict[str, Weights]) -> PooledNetwork:
        """Backbone, global average pooling and a `ClassHead`."""
        return PooledNetwork(self.config.stage1.backbone, resources.get("backbone"), self._first_head)

    def enter_stage(self, stage: int) -> None:
        """Also says what the head's logits are: cosines for LDAM and for the nearest mean."""
        super().enter_stage(stage)
        method = self.config.stage2.method if stage == 2 else "none"
        self._head.cosine = method == "ncm" or (
            self.config.stage1.loss == "ldam_drw" and method in ("none", "lws", "mislas", "logit_adjustment")
        )

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One SGD in stage 1; in stage 2 one for what the method learns, if anything."""
        one, two, head = self.config.stage1, self.config.stage2, self._head
        if self.stage == 1:
            # Scales are stage 2's, and a cosine head has no use for a bias.
            parameters = [p for p in self.model.parameters() if p is not head.scale]
            return {"stage1": self.sgd(parameters, one.lr, one.momentum, one.weight_decay)}
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
            images, targets = training_images(raw, cfg.augmentations, draws), self.labels[index]
            if cfg.loss == "mixup":
                return self._mixed_loss(images, targets, draws, shares)
            return self._loss(self.forward(images), targets, reweighted=reweighted)

        exponent = cfg.sampling_exponent if cfg.loss == "balanced_sampling" else None
        order = self.step_order(1, step, cfg.images_per_epoch, exponent=exponent)
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
        if self.config.stage1.loss == "ldam_drw":
            nn.init.constant_(head.scale, self.config.stage1.ldam_scale)
        return head

    def _loss(self, features: Tensor, targets: Tensor, *, reweighted: bool) -> Tensor:
        """The chosen loss of a batch of features (B, D)."""
        cfg, head = self.config.stage1, self._head
        if cfg.loss == "ldam_drw":
            weights = class_balanced_weights(self.counts, cfg.beta) if reweighted else None
            margins = ldam_margins(self.counts, cfg.ldam_margin)
            return ldam(head.cosines(features), targets, margins, cfg.ldam_scale, weights)
        return self._loss_on_logits()(head(features), targets)

    def _loss_on_logits(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The chosen loss as a function of logits (B, C) and targets."""
        cfg, counts = self.config.stage1, self.counts
        if self.several:
            weights = positive_weights(counts, len(self.labels), cfg.weight_power)
            several: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
                "focal": lambda z, y: focal_bce(z, y, cfg.focal_gamma),
                "asymmetric": lambda z, y: asymmetric(z, y, cfg.gamma_pos, cfg.gamma_neg, cfg.asl_margin),
                "pos_weight": lambda z, y: bce(z, y, 1 + y * (weights - 1)),
            }
            return several.get(cfg.loss, bce)
        one: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "focal": lambda z, y: focal(z, y, cfg.focal_gamma),
            "class_balanced": lambda z, y: cross_entropy(z, y, class_balanced_weights(counts, cfg.beta)),
            "balanced_softmax": lambda z, y: logit_adjusted(z, y, counts),
            "logit_adjustment": lambda z, y: logit_adjusted(z, y, counts, cfg.tau),
        }
        return one.get(cfg.loss, cross_entropy)

    def _mixed_loss(
        self, images: Tensor, targets: Tensor, draws: torch.Generator, shares: np.random.Generator
    ) -> Tensor:
        """MixUp (Zhang et al., arXiv 1710.09412): one share per batch, partners by a random order."""
        alpha = self.config.stage1.mixup_alpha
        share = float(shares.beta(alpha, alpha))
        partner = torch.randperm(len(images), generator=draws, device=self.device)
        logits = self._head(self.forward(torch.lerp(images[partner], images, share)))
        one_hot = targets if self.several else nn.functional.one_hot(targets, self.inputs.n_classes).float()
        mixed = torch.lerp(one_hot[partner], one_hot, share)
        return bce(logits, mixed) if self.several else cross_entropy(logits, mixed)

    def _head_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
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
    """Raises `ValueError` for a loss or a method that does not exist for the task."""
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
